"""Rows that stand in two splits: the eval and test rows by their keys, and what is found again.

Knows: the questions of one split, exactly, by case and white space, and by like words; the contexts that they are
about; its labels and broken rows.
Does not know: formats (convert.py), keys and sketches (views.py, similar.py).

A question is the same under whatever label or system message. A near match by words must have a like answer too: two
questions about one long text are different questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from peftsmith.data.examples import Answered, AnyExample, Classified
from peftsmith.data.faults import RowFault
from peftsmith.data.formats import read_rows
from peftsmith.data.part import Part
from peftsmith.data.similar import Lookup, Sketch, kept, sketch
from peftsmith.data.tally import Tallies
from peftsmith.data.views import key_of, view


class Split:
    """The eval or test rows. `name` is the middle of the finding ids; `others` must not share rows with it."""

    def __init__(
        self,
        name: str,
        path: Path,
        convert: Callable[[dict[str, Any]], AnyExample],
        *,
        words: bool = True,
        others: Iterable[Split] = (),
    ) -> None:
        self.name = name
        self.rows = 0
        self.found = 0
        self.labels: Counter[str] = Counter()
        self.tallies = Tallies()
        self._exact: dict[int, int] = {}
        self._loose: dict[int, int] = {}
        self._contexts: dict[int, int] = {}
        self._words = Lookup() if words else None
        for row in read_rows(path):
            self.rows += 1
            try:
                if row.value is None:
                    raise RowFault("shape", row.fault or "")
                example = convert(row.value)
            except RowFault as fault:
                self.tallies.add(f"data.{name}.unusable", row.number, str(fault))
                continue
            seen = view(example)
            self._exact.setdefault(seen.question_key(), row.number)
            self._loose.setdefault(seen.loose_question_key(), row.number)
            if self._words is not None:
                self._words.add(row.number, sketch(seen))
            if isinstance(example, Answered):
                self._contexts.setdefault(key_of(example.context), row.number)
            if isinstance(example, Classified):
                self.labels[example.label] += 1
            for other in others:
                match = other.match(seen.question_key(), seen.loose_question_key(), None)
                if match:
                    self.tallies.add(f"data.{name}.in_{other.name}", row.number, f"row {match[1]} of the {other.name}")

    def match(self, exact: int, loose: int, words: Sketch | None) -> tuple[str, int] | None:
        """How (overlap, near_overlap, similar) and in which row of this split another row stands.

        `exact` and `loose` are the other row's question_key and loose_question_key.
        """
        number = self._loose.get(loose)
        if number is not None:
            equal = self._exact.get(exact)
            return ("overlap", equal) if equal else ("near_overlap", number)
        like = self._words.find(words) if self._words is not None and words is not None else None
        return ("similar", like) if like is not None else None

    def check(self, tallies: Tallies, part: Part, *, words: bool) -> None:
        """Note the training rows that stand here as well."""
        contexts = part["contexts"]  # of every row, or of none
        columns = part["numbers"], part["questions"], part["loose_questions"]
        for place, (number, exact, loose) in enumerate(zip(*columns, strict=True)):
            match = self.match(exact, loose, kept(part, place) if words else None)
            if match:
                self.found += 1
                tallies.add(f"data.{self.name}.{match[0]}", number, f"row {match[1]} of the {self.name}")
            elif contexts and (row := self._contexts.get(contexts[place])):
                tallies.add(f"data.{self.name}.context", number, f"row {row} of the {self.name}")
