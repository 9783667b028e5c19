"""Rows that are nearly the same: sketches of their words, and the search for rows with like sketches.

Knows: word shingles, bottom-k sketches, an estimate of the Jaccard similarity, candidates by the smallest hashes.
Does not know: exact repetition (repetition.py).

Two rows are similar when the sets of their three-word shingles have a Jaccard similarity of at least 0.8, estimated for
question and answer on their own, case and white space aside. Texts under three words must be equal. The estimate
takes the k smallest hashes of both sets (k = 24 for questions, 12 for answers); below k shingles it is exact, above its
standard error is at most 0.1. Rows are compared when one of their four smallest hashes is the same, which rows of
similarity 0.8 miss in less than one of a hundred cases. Source: Broder, On the resemblance and containment of
documents (1997); Lee et al., Deduplicating training data makes language models better (arXiv 2107.06499) take 0.8 too.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

from peftsmith.data.part import Part
from peftsmith.data.views import View, key_of

LEAST = 0.8
_ASKED, _ANSWER = 24, 12
_WIDTH = _ASKED + _ANSWER
_KEYS = 4
_FACTORS = (0x2C1B3C6D, 0x297A2D39, 0x3D4D51CB)  # odd, below 2**30
_LEADERS = 8  # of one group of candidates; many more share only boilerplate
_MOST_WORDS = 1 << 18
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_WORDS = re.compile(f"{_UNSPACED.pattern}|[^\\s{_UNSPACED.pattern[1:-1]}]+")


class Sketch(NamedTuple):
    """The smallest hashes (32 bits) of the shingles of each side, in order.

    `words` is equal (64 bits) for rows that differ in nothing but case and white space.
    """

    asked: Sequence[int]
    answer: Sequence[int]
    words: int = 0

    def marks(self) -> list[int]:
        """The smallest hashes of both sides together: rows that share one are compared."""
        return sorted([*self.asked[:_KEYS], *(each ^ 0x5BD1E995 for each in self.answer[:_KEYS])])[:_KEYS]

    def like(self, other: Sketch) -> bool:
        return (
            jaccard(self.asked, other.asked, _ASKED) >= LEAST and jaccard(self.answer, other.answer, _ANSWER) >= LEAST
        )


class _Words(dict[str, int]):
    """A number for each word; forgotten when there are too many, since it can be made again."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MOST_WORDS:
            self.clear()
        digest = blake2b(word.encode("utf-8", "surrogatepass"), digest_size=4).digest()
        number = self[word] = int.from_bytes(digest, "little")
        return number


_words = _Words()


def sketch(view: View) -> Sketch:
    asked, answer = _numbers(view.asked), _numbers(view.answer)
    # of whole numbers only, whose hash is the same in every process
    words = hash((asked, answer, key_of(view.system), key_of(view.rest))) & 0xFFFFFFFFFFFFFFFF
    return Sketch(_smallest(asked, _ASKED), _smallest(answer, _ANSWER), words)


def _numbers(text: str) -> tuple[int, ...]:
    folded = text.casefold()
    words = folded.split() if folded.isascii() or not _UNSPACED.search(folded) else _WORDS.findall(folded)
    return tuple(map(_words.__getitem__, words))


def _smallest(numbers: tuple[int, ...], most: int) -> list[int]:
    """The `most` smallest hashes of three numbers in a row: a linear function of them, modulo 2**32.

    It is computed for all places at once, as one large integer with 64 bits for each: no sum of three products below
    2**62 reaches the next place.
    """
    if len(numbers) < 3:
        return [hash(numbers) & 0xFFFFFFFF] if numbers else []
    size = 8 * len(numbers)
    joined = int.from_bytes(array("Q", numbers).tobytes(), "little")
    summed = joined * _FACTORS[0] + (joined >> 64) * _FACTORS[1] + (joined >> 128) * _FACTORS[2]
    hashes = array("I", summed.to_bytes(size, "little"))[: 2 * len(numbers) - 4 : 2].tolist()
    if len(hashes) > 3 * most:
        # They lie evenly: of many only the lowest need be sorted, three times as many as wanted, as some occur twice.
        largest = (3 * most << 32) // len(hashes)
        low = sorted({each for each in hashes if each < largest})
        if len(low) >= most:
            return low[:most]
    return sorted(set(hashes))[:most]


def jaccard(one: Sequence[int], other: Sequence[int], most: int) -> float:
    """The estimate for two sketches of at most `most` hashes; 1 when both are empty."""
    first, second = set(one), set(other)
    union = sorted(first | second)[:most]
    return sum(each in first and each in second for each in union) / len(union) if union else 1.0


def keep(part: Part, number: int, row: Sketch) -> None:
    """Write a row's sketch into the part's columns; the same row's number is in its `numbers`."""
    for side, most in ((row.asked, _ASKED), (row.answer, _ANSWER)):
        part["sizes"].append(len(side))
        part["hashes"].extend([*side, *([0] * (most - len(side)))])
    part["marks"].extend([mark << 32 | number for mark in row.marks()])


def kept(part: Part, place: int) -> Sketch:
    """The sketch of the row at `place` among the part's."""
    start, asked, answer = _WIDTH * place, part["sizes"][2 * place], part["sizes"][2 * place + 1]
    middle = start + _ASKED
    return Sketch(part["hashes"][start : start + asked], part["hashes"][middle : middle + answer])


def like_rows(part: Part) -> dict[int, int]:
    """Number of a row -> that of an earlier one with a like sketch, for every row that has one; also of equal rows."""
    found: dict[int, int] = {}
    for group in _groups(part["marks"]):
        leaders: list[tuple[int, Sketch]] = []
        for number in group:
            if number in found:
                continue
            row = kept(part, bisect_left(part["numbers"], number))
            like = next((other for other, known in leaders if known.like(row)), None)
            if like is not None:
                found[number] = like
            elif len(leaders) < _LEADERS:
                leaders.append((number, row))
    return found


def _groups(marks: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of rows that share a mark, in order."""
    group: list[int] = []
    before = -1
    for each in sorted(marks):
        mark, number = each >> 32, each & 0xFFFFFFFF
        if mark != before:
            if len(group) > 1:
                yield group
            group, before = [], mark
        group.append(number)
    if len(group) > 1:
        yield group


class Lookup:
    """The sketches of one split, to ask whether it has a row like another."""

    def __init__(self) -> None:
        self._rows: dict[int, list[tuple[int, Sketch]]] = {}

    def add(self, number: int, row: Sketch) -> None:
        for key in row.marks():
            known = self._rows.setdefault(key, [])
            if len(known) < _LEADERS:
                known.append((number, row))

    def find(self, row: Sketch) -> int | None:
        """The number of a row with a like sketch."""
        for key in row.marks():
            for number, known in self._rows.get(key, ()):
                if known.like(row):
                    return number
        return None
