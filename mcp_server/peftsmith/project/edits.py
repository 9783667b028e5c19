"""A file that a person has edited and that is generated anew: both changes in one text, or the places where they clash.

Knows: lines, and what was generated last time.
Does not know: files (generate.py), or what the lines mean.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Clash:
    """One place that both sides changed in different ways; `line` counts from 1 in the text generated last."""

    line: int
    base: str
    mine: str
    new: str


@dataclass(frozen=True)
class Merged:
    """`text` is None when there are clashes."""

    text: str | None
    clashes: tuple[Clash, ...] = ()


@dataclass(frozen=True)
class _Hunk:
    """Lines `start` to `end` of the base become `lines`."""

    start: int
    end: int
    lines: tuple[str, ...]
    side: Literal["mine", "new"]


def merge(base: str, mine: str, new: str) -> Merged:
    """Apply to `base` what either side changed. Changes overlap when they share a line of `base`, or when one of them
    only inserts and touches the other; overlapping changes that are not the same are clashes. The result depends on
    the three texts alone. A last line without a line end gets one.
    """
    lines = _lines(base)
    mine_hunks, new_hunks = _hunks(lines, _lines(mine), "mine"), _hunks(lines, _lines(new), "new")
    made: list[str] = []
    clashes: list[Clash] = []
    at = 0
    for group in _groups([*mine_hunks, *new_hunks]):
        start, end = min(each.start for each in group), max(each.end for each in group)
        sides = {side: [each for each in group if each.side == side] for side in ("mine", "new")}
        texts = {side: _applied(lines, start, end, hunks) for side, hunks in sides.items()}
        made += lines[at:start]
        at = end
        if not sides["mine"] or not sides["new"]:
            made += texts["mine" if sides["mine"] else "new"]
        elif texts["mine"] == texts["new"]:
            made += texts["mine"]
        else:
            whole = ("".join(lines[start:end]), "".join(texts["mine"]), "".join(texts["new"]))
            clashes.append(Clash(start + 1, *whole))
    made += lines[at:]
    return Merged(None, tuple(clashes)) if clashes else Merged("".join(made))


def _lines(text: str) -> list[str]:
    lines = text.split("\n")  # not splitlines: a form feed in a line ends no line
    return [f"{line}\n" for line in (lines[:-1] if lines[-1] == "" else lines)]


def _hunks(base: list[str], other: list[str], side: Literal["mine", "new"]) -> list[_Hunk]:
    matcher = difflib.SequenceMatcher(None, base, other, autojunk=False)
    return [
        _Hunk(start, end, tuple(other[first:last]), side)
        for tag, start, end, first, last in matcher.get_opcodes()
        if tag != "equal"
    ]


def _groups(hunks: list[_Hunk]) -> Iterator[list[_Hunk]]:
    """Hunks that overlap, directly or through others, in the order of the base."""
    group: list[_Hunk] = []
    for hunk in sorted(hunks, key=lambda each: (each.start, each.end, each.side)):
        if group and not any(_overlap(hunk, each) for each in group):
            yield group
            group = []
        group.append(hunk)
    if group:
        yield group


def _overlap(one: _Hunk, other: _Hunk) -> bool:
    if one.side == other.side:
        return False  # a side's own hunks never overlap
    if one.start == one.end or other.start == other.end:
        return one.start <= other.end and other.start <= one.end
    return one.start < other.end and other.start < one.end


def _applied(lines: list[str], start: int, end: int, hunks: list[_Hunk]) -> list[str]:
    made: list[str] = []
    at = start
    for hunk in hunks:
        made += [*lines[at : hunk.start], *hunk.lines]
        at = hunk.end
    return [*made, *lines[at:end]]
