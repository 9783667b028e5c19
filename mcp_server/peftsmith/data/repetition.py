"""Rows that occur more than once, texts with two labels, and one answer to everything; in a few bytes a row.

Knows: 64-bit keys of all rows, sorted once at the end; which row was first.
Does not know: what a key stands for (views.py); near duplicates by words (similar.py).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from peftsmith.data.tally import Tallies

_FEWEST_ROWS = 20
_SHARE_OF_TEXT, _SHARE_OF_CLASS = 0.5, 0.9


class Repetition:
    """Keys of rows in the order in which they came; 28 bytes a row, and a few more while they are sorted."""

    def __init__(self) -> None:
        self._rows = array("I")
        self._exact = array("Q")
        self._loose = array("Q")
        self._answers = array("Q")

    def add(self, number: int, exact: int, words: int, answer: int) -> None:
        self._rows.append(number)
        self._exact.append(exact)
        self._loose.append(words)
        self._answers.append(answer)

    def number(self, place: int) -> int:
        return self._rows[place]

    def note(self, tallies: Tallies, similar: dict[int, int] | None) -> None:
        """Count duplicates; rows that differ in case and white space; rows with few other words (`similar`)."""
        exact, loose = repeated(self._exact), repeated(self._loose) if similar is not None else {}
        similar = similar or {}
        for place in sorted(exact.keys() | loose.keys() | similar.keys()):
            number = self._rows[place]
            if place in exact:
                tallies.add("data.rows.duplicate", number, f"as row {self._rows[exact[place]]}")
            elif place in loose:
                tallies.add("data.rows.near_duplicate", number, f"as row {self._rows[loose[place]]}")
            else:
                tallies.add("data.rows.similar", number, f"like row {self._rows[similar[place]]}")

    def same_answer(self) -> tuple[int, int] | None:
        """(rows, first row number) of an answer that most rows have, or None.

        Most are over half of the rows where the other answers mostly differ, and over nine tenths where they repeat,
        as yes and no do.
        """
        total = len(self._answers)
        if total < _FEWEST_ROWS:
            return None
        largest, place, kinds = 0, 0, 0
        for group in groups(self._answers, alone=True):
            kinds += 1
            if len(group) > largest:
                largest, place = len(group), group[0]
        share = _SHARE_OF_TEXT if 2 * (kinds - 1) >= total - largest else _SHARE_OF_CLASS
        return (largest, self._rows[place]) if largest > share * total else None


def repeated(keys: Sequence[int]) -> dict[int, int]:
    """Place -> the first place with the same key, for every place that is not the first."""
    return {place: group[0] for group in groups(keys) for place in group[1:]}


def groups(keys: Sequence[int], *, alone: bool = False) -> Iterator[list[int]]:
    """Places with equal keys, each group in order; groups of one only when `alone`."""
    group: list[int] = []
    for place in sorted(range(len(keys)), key=keys.__getitem__):
        if group and keys[place] != keys[group[0]]:
            if alone or len(group) > 1:
                yield group
            group = []
        group.append(place)
    if group and (alone or len(group) > 1):
        yield group
