"""Rows that occur more than once, texts with two labels, and one answer to everything; in a few bytes a row.

Knows: 64-bit keys of all rows, sorted once at the end; which row was first.
Does not know: what a key stands for (views.py); near duplicates by words (similar.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from peftsmith.data.part import Part
from peftsmith.data.tally import Tallies

_FEWEST_ROWS = 20
_SHARE_OF_TEXT, _SHARE_OF_CLASS = 0.5, 0.9


def note(tallies: Tallies, part: Part, similar: dict[int, int] | None) -> None:
    """Count duplicates; rows that differ in case and white space; rows with few other words.

    `similar` maps a row's number to that of an earlier row like it; None when near duplicates are not looked for.
    """
    numbers = part["numbers"]
    exact = _by_number(numbers, part["exact"])
    loose = _by_number(numbers, part["words"]) if similar is not None else {}
    similar = similar or {}
    for number in sorted(exact.keys() | loose.keys() | similar.keys()):
        if number in exact:
            tallies.add("data.rows.duplicate", number, f"as row {exact[number]}")
        elif number in loose:
            tallies.add("data.rows.near_duplicate", number, f"as row {loose[number]}")
        else:
            tallies.add("data.rows.similar", number, f"like row {similar[number]}")


def same_answer(numbers: Sequence[int], answers: Sequence[int]) -> tuple[int, int] | None:
    """(rows, first row number) of an answer that most rows have, or None; `answers` are keys, one for each number.

    Most are over half of the rows where the other answers mostly differ, and over nine tenths where they repeat,
    as yes and no do.
    """
    total = len(answers)
    if total < _FEWEST_ROWS:
        return None
    counts = Counter(answers)
    [(key, largest)] = counts.most_common(1)
    share = _SHARE_OF_TEXT if 2 * (len(counts) - 1) >= total - largest else _SHARE_OF_CLASS
    return (largest, numbers[answers.index(key)]) if largest > share * total else None


def _by_number(numbers: Sequence[int], keys: Sequence[int]) -> dict[int, int]:
    return {numbers[place]: numbers[first] for place, first in repeated(keys).items()}


def repeated(keys: Sequence[int]) -> dict[int, int]:
    """Place -> the first place with the same key, for every place that is not the first."""
    return {place: group[0] for group in groups(keys) for place in group[1:]}


def groups(keys: Sequence[int]) -> Iterator[list[int]]:
    """Places with equal keys, each group in order, where there are several."""
    again = {key for key, count in Counter(keys).items() if count > 1}
    by_key: dict[int, list[int]] = {}
    if again:
        for place, key in enumerate(keys):
            if key in again:
                by_key.setdefault(key, []).append(place)
    yield from by_key.values()
