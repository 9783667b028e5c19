"""Rows as a batch holds them: packed, padded or laid end to end.

Knows: TRL 1.16's pack_dataset (bfd, bfd_split, wrapped) and the collators of its trainers and of transformers.
Does not know: how rows and their labels came about (labels.py).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from peftsmith.data.labels import IGNORED, Row, Settings

_PACKED_TOGETHER = 1000  # rows that datasets.Dataset.map hands to the packing function at once


@dataclass(frozen=True)
class Prepared:
    """Ids and labels of one row of the prepared set; `lengths` are those of the samples packed into it."""

    ids: list[int]
    labels: list[int]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Token ids, labels, and the attention mask of a padded batch or the positions of a flattened one."""

    ids: list[list[int]]
    labels: list[list[int]]
    attention: list[list[int]] | None = None
    positions: list[list[int]] | None = None


def sequences(rows: Sequence[Row], settings: Settings) -> list[Prepared]:
    """The prepared set: kept rows as they are, or packed."""
    kept = [Prepared(row.ids, row.labels(), (len(row.ids),)) for row in rows if not row.dropped]
    if not settings.packing or settings.max_length is None:
        return kept
    pack = _wrapped if settings.packing_strategy == "wrapped" else _best_fit
    packed: list[Prepared] = []
    for start in range(0, len(kept), _PACKED_TOGETHER):
        packed += pack(kept[start : start + _PACKED_TOGETHER], settings.max_length, settings.packing_strategy)
    return packed


def _wrapped(rows: Sequence[Prepared], size: int, strategy: str) -> Iterator[Prepared]:
    """All rows end to end, cut every `size` places; where one sample ends and the next begins is forgotten."""
    ids = [token for row in rows for token in row.ids]
    labels = [label for row in rows for label in row.labels]
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        yield Prepared(part, labels[start : start + size], (len(part),))


def _best_fit(rows: Sequence[Prepared], size: int, strategy: str) -> Iterator[Prepared]:
    """Best fit, longest first. Source: trl 1.16 data_utils.py `_pack_bfd` (arXiv 2404.10830)."""
    pieces: list[Prepared] = []
    for row in rows:
        ends = range(0, len(row.ids), size) if strategy == "bfd_split" else ([0] if row.ids else [])
        for start in ends:
            part = row.ids[start : start + size]
            pieces.append(Prepared(part, row.labels[start : start + size], (len(part),)))
    bins: list[list[Prepared]] = []
    by_space: dict[int, deque[list[Prepared]]] = defaultdict(deque)
    spaces: list[int] = []  # of the bins that have room, ascending
    for piece in sorted(pieces, key=lambda each: -len(each.ids)):
        place = bisect_left(spaces, len(piece.ids))
        if place < len(spaces):
            space = spaces[place]
            chosen = by_space[space].popleft()
            if not by_space[space]:
                spaces.pop(place)
        else:
            space, chosen = size, []
            bins.append(chosen)
        chosen.append(piece)
        space -= len(piece.ids)
        if space > 0:
            if not by_space[space]:
                insort(spaces, space)
            by_space[space].append(chosen)
    for each in bins:
        yield Prepared(
            [token for piece in each for token in piece.ids],
            [label for piece in each for label in piece.labels],
            tuple(len(piece.ids) for piece in each),
        )


def batches(prepared: Sequence[Prepared], settings: Settings, pad_id: int, size: int) -> Iterator[Batch]:
    """SFTTrainer's collator over `size` sequences at a time. Source: trl 1.16 DataCollatorForLanguageModeling."""
    for start in range(0, len(prepared), size):
        part = prepared[start : start + size]
        yield _flat(part, settings, pad_id) if settings.flattens else padded(part, settings, pad_id)


def padded(rows: Sequence[Prepared], settings: Settings, pad_id: int) -> Batch:
    """Padded on the right to the longest row, or on to a multiple."""
    width = _up(max(len(row.ids) for row in rows), settings)
    return Batch(
        [row.ids + [pad_id] * (width - len(row.ids)) for row in rows],
        [row.labels + [IGNORED] * (width - len(row.labels)) for row in rows],
        attention=[[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows],
    )


def _flat(rows: Sequence[Prepared], settings: Settings, pad_id: int) -> Batch:
    """One sequence of them all; nothing predicts the first token of a sample, so that its label goes."""
    ids = [token for row in rows for token in row.ids]
    labels = [label for row in rows for label in row.labels]
    # A wrapped pack keeps no sample lengths: its positions run through
    positions = [place for row in rows for length in row.lengths for place in range(length)]
    more = _up(len(ids), settings) - len(ids)
    positions += [0] * more
    labels += [IGNORED] * more
    labels = [label if place else IGNORED for place, label in zip(positions, labels, strict=True)]
    return Batch([ids + [pad_id] * more], [labels], positions=[positions])


def _up(length: int, settings: Settings) -> int:
    step = settings.pad_to_multiple_of or 1
    return -(-length // step) * step
