"""Counting what was found in rows, in bounded memory.

Knows: a count, the first few row numbers and one detail for each finding id, and how findings are worded.
Does not know: what is looked for.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from peftsmith import files
from peftsmith.finding import Finding, catalogue, finding

_SHOWN_ROWS = 5
_SAMPLE = 20_000


@dataclass
class Tally:
    count: int = 0
    rows: list[int] = field(default_factory=list)
    detail: str = ""


class Tallies:
    """Finding id -> count, first rows, first detail. `detail` is untrusted text and is cleaned when shown."""

    def __init__(self, by_id: dict[str, Tally] | None = None) -> None:
        self.by_id = by_id or {}

    def add(self, id_: str, row: int, detail: str = "") -> None:
        tally = self.by_id.setdefault(id_, Tally())
        tally.count += 1
        if len(tally.rows) < _SHOWN_ROWS:
            tally.rows.append(row)
        tally.detail = tally.detail or detail

    def update(self, later: Tallies) -> None:
        """Add what was found in rows that follow."""
        for id_, found in later.by_id.items():
            tally = self.by_id.setdefault(id_, Tally())
            tally.count += found.count
            tally.rows = [*tally.rows, *found.rows][:_SHOWN_ROWS]
            tally.detail = tally.detail or found.detail

    def count(self, id_: str) -> int:
        return self.by_id[id_].count if id_ in self.by_id else 0

    def findings(self, rows: int, more: Mapping[str, Mapping[str, Any]] | None = None) -> Iterator[Finding]:
        """One finding for each id; evidence: count, share of `rows`, first row numbers, a detail, and `more[id]`."""
        for id_, tally in self.by_id.items():
            title = catalogue()[id_].title.removesuffix(".")
            shown = ", ".join(str(row) for row in tally.rows) + (", ..." if tally.count > len(tally.rows) else "")
            detail = files.clean(tally.detail, 200)
            message = f"{title}: {tally.count} of {rows} (row {shown})" + (f"; first: {detail}" if detail else "")
            evidence: dict[str, Any] = {
                "count": tally.count,
                "share": round(tally.count / max(rows, 1), 4),
                "rows": tally.rows,
            }
            if detail:
                evidence["detail"] = detail
            yield finding(id_, message, **evidence, **(more or {}).get(id_, {}))


class Lengths:
    """Token counts of all rows, four bytes each, for exact percentiles."""

    def __init__(self, values: array[int] | None = None) -> None:
        self._values = array("I") if values is None else values
        self.total = sum(self._values)

    def add(self, value: int) -> None:
        self._values.append(value)
        self.total += value

    def __len__(self) -> int:
        return len(self._values)

    def summary(self) -> dict[str, int] | None:
        """total, p50, p95, p99 (nearest rank: the smallest length that so many per cent do not exceed) and max."""
        if not self._values:
            return None
        ordered = sorted(self._values)
        ranks = {f"p{per_cent}": ordered[-(-len(ordered) * per_cent // 100) - 1] for per_cent in (50, 95, 99)}
        return {"total": self.total, **ranks, "max": ordered[-1]}

    def histogram(self, bins: int) -> list[tuple[int, int, int]]:
        """(from, to, how many) in at most `bins` bins of one width; both ends belong to the bin."""
        if not self._values:
            return []
        width = -(-(max(self._values) + 1) // bins)
        counts = [0] * (max(self._values) // width + 1)
        for value in self._values:
            counts[value // width] += 1
        return [(place * width, (place + 1) * width - 1, count) for place, count in enumerate(counts)]

    def padding(self, batch_size: int, limit: int) -> tuple[float, float] | None:
        """(share of padding in batches of rows drawn at random, share of unused places when packed to `limit`).

        Rows are cut at `limit` first. Packing is best-fit decreasing, as TRL's `bfd`, and both are measured on at
        most 20,000 rows, drawn with a fixed seed.
        """
        if not self._values:
            return None
        draw = random.Random(0)
        many = len(self._values) > _SAMPLE
        drawn = draw.sample(range(len(self._values)), _SAMPLE) if many else range(len(self._values))
        rows = [min(self._values[place], limit) for place in drawn]
        draw.shuffle(rows)
        batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        padded = sum(max(batch) * len(batch) for batch in batches)
        packs = _packs(rows, limit)
        used = sum(rows)
        return 1 - used / max(padded, 1), 1 - used / max(packs * limit, 1)


def _packs(rows: list[int], limit: int) -> int:
    """How many sequences of `limit` tokens hold all rows: each row goes where it leaves the least room."""
    rooms: list[int] = []  # of the sequences begun, in order
    packs = 0
    for row in sorted(rows, reverse=True):
        place = bisect_left(rooms, row)
        if place == len(rooms):
            packs += 1
            room = limit - row
        else:
            room = rooms.pop(place) - row
        insort(rooms, room)
    return packs
