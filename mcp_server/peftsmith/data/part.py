"""What some rows of a data set say: parts of a file, looked at one by one or in other processes, add up in order.

Knows: counts, labels, tallies, and columns of numbers with one entry a row; adding and packing them.
Does not know: how a row is looked at (examine.py, tokens.py), or what the numbers mean in the end (audit.py).
"""

from __future__ import annotations

import marshal
from array import array
from collections import Counter
from dataclasses import dataclass, field

from peftsmith.data.tally import Tallies, Tally

# 28 bytes a row, 32 more for marks and 146 for sketches where near duplicates are looked for, 16 for labels or splits.
_TYPES = {
    "numbers": "I",  # of the usable rows
    "exact": "Q",  # equal for equal rows
    "words": "Q",  # equal for rows that differ in case and white space only
    "answers": "Q",
    "questions": "Q",  # where there are splits
    "loose_questions": "Q",  # where there are splits or labels
    "classes": "Q",  # keys of labels
    "starts": "I",  # where answers begin in their contexts, counted from 1; 0 for a question without an answer
    "contexts": "Q",  # of questions, where there are splits
    "hashes": "I",  # sketches, see similar.py
    "sizes": "B",
    "marks": "Q",
    "lengths": "I",  # in tokens, one for each sequence that is trained on
}


@dataclass
class Part:
    """`tallies` are of the rows themselves, `token_tallies` of what template and tokenizer make of them.

    `refused` says why tokens were no longer counted, `unsafe` that it was the template. `tagged` rows repeat the same
    answers by nature.
    """

    rows: int = 0
    loss_tokens: int = 0
    truncated_rows: int = 0
    lost_loss_tokens: int = 0
    tagged: bool = False
    no_template: bool = False
    unsafe: bool = False
    refused: str = ""
    labels: Counter[str] = field(default_factory=Counter)
    tallies: Tallies = field(default_factory=Tallies)
    token_tallies: Tallies = field(default_factory=Tallies)
    columns: dict[str, array[int]] = field(default_factory=lambda: {name: array(code) for name, code in _TYPES.items()})

    def __getitem__(self, name: str) -> array[int]:
        return self.columns[name]

    @property
    def usable(self) -> int:
        return len(self["numbers"])

    def add(self, later: Part) -> None:
        """Take in the part that follows this one."""
        for name in ("rows", "loss_tokens", "truncated_rows", "lost_loss_tokens"):
            setattr(self, name, getattr(self, name) + getattr(later, name))
        self.tagged, self.no_template = self.tagged or later.tagged, self.no_template or later.no_template
        self.unsafe, self.refused = self.unsafe or later.unsafe, self.refused or later.refused
        self.labels.update(later.labels)
        self.tallies.update(later.tallies)
        self.token_tallies.update(later.token_tallies)
        for name, column in later.columns.items():
            self.columns[name].extend(column)

    def packed(self) -> bytes:
        """For `unpacked` in another process of the same interpreter."""
        tallies = [
            {id_: (each.count, each.rows, each.detail) for id_, each in some.by_id.items()}
            for some in (self.tallies, self.token_tallies)
        ]
        columns = {name: column.tobytes() for name, column in self.columns.items()}
        plain = {name: value for name, value in vars(self).items() if isinstance(value, (int, str))}
        return marshal.dumps((plain, dict(self.labels), tallies, columns))

    @classmethod
    def unpacked(cls, packed: bytes) -> Part:
        plain, labels, tallies, columns = marshal.loads(packed)
        rows, tokens = (Tallies({id_: Tally(*each) for id_, each in some.items()}) for some in tallies)
        held = {name: array(code, columns[name]) for name, code in _TYPES.items()}
        return cls(**plain, labels=Counter(labels), tallies=rows, token_tallies=tokens, columns=held)
