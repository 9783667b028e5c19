"""Which split each row goes to: seeded, by label, and what belongs together stays together.

Knows: groups that share a key, shares kept for each label as nearly as whole groups allow.
Does not know: rows and files (prepare.py); it is told keys and labels.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator, Mapping

TRAIN = "train"


class Groups:
    """Rows joined by keys: two rows with any key in common, directly or through others, are of one group.

    About 200 bytes a row: a hash table of keys, and a few numbers.
    """

    def __init__(self) -> None:
        self._place_of: dict[bytes, int] = {}
        self._parent = array("q")
        self._rows = array("q")  # a key of each row
        self._labels = array("q")
        self._label_names: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, keys: Iterable[bytes], label: str = "") -> None:
        """One more row, with at least one key."""
        places = [self._place(key) for key in keys]
        for other in places[1:]:
            self._parent[self._root(other)] = self._root(places[0])
        self._rows.append(places[0])
        self._labels.append(self._label_names.setdefault(label, len(self._label_names)))

    def _place(self, key: bytes) -> int:
        place = self._place_of.setdefault(key, len(self._parent))
        if place == len(self._parent):
            self._parent.append(place)
        return place

    def _root(self, place: int) -> int:
        parent = self._parent
        while parent[place] != place:
            parent[place] = place = parent[parent[place]]
        return place

    def labels(self) -> Iterator[str]:
        """The label of each row, in the order of adding."""
        names = list(self._label_names)
        return (names[number] for number in self._labels)

    def split(self, shares: Mapping[str, float], seed: int) -> list[str]:
        """For each row, in the order of adding, the name of a share or "train".

        A group counts for the label of its first row. Of each label at least one group stays in train, so that a
        class with one row is trained on, not only asked for. What rounding leaves over is carried on by label.
        """
        roots = array("q", (self._root(place) for place in self._rows))
        sizes: dict[int, int] = {}
        by_label: dict[int, list[int]] = {}
        for row, root in enumerate(roots):
            if root not in sizes:
                by_label.setdefault(self._labels[row], []).append(root)
            sizes[root] = sizes.get(root, 0) + 1
        split_of: dict[int, str] = {}
        owed = dict.fromkeys(shares, 0.0)
        draw = random.Random(seed)
        for _, number in sorted(self._label_names.items()):
            groups = by_label.get(number, [])
            draw.shuffle(groups)
            rows = sum(sizes[group] for group in groups)
            left = groups[1:]
            for name, share in shares.items():
                owed[name] += rows * share
                taken, passed = _take(left, sizes, round(owed[name]))
                owed[name] -= sum(sizes[group] for group in taken)
                split_of.update(dict.fromkeys(taken, name))
                left = passed
        return [split_of.get(root, TRAIN) for root in roots]


def _take(groups: list[int], sizes: Mapping[int, int], wanted: int) -> tuple[list[int], list[int]]:
    """(groups with about `wanted` rows, the others): one that would overshoot by more than it fills is passed over."""
    taken, passed, rows = [], [], 0
    for group in groups:
        if rows + sizes[group] / 2 <= wanted:
            taken.append(group)
            rows += sizes[group]
        else:
            passed.append(group)
    return taken, passed
