"""Looking at the rows of a data set lot by lot: every check that needs one row only.

Knows: what becomes of a row from its bytes to the numbers and tallies of a Part.
Does not know: other rows, other processes (crew.py), or the report (audit.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peftsmith.data import content, similar
from peftsmith.data.examples import Answered, AnyExample, Classified, Tagged
from peftsmith.data.formats import Mapping, RowFault, as_chat, rivals, to_example
from peftsmith.data.lots import Lot
from peftsmith.data.part import Part
from peftsmith.data.rendering import Renderer
from peftsmith.data.tokens import TokenChecks
from peftsmith.data.views import key_of, view

FAULT_FINDING = {
    "shape": "data.rows.shape",
    "unsupported": "data.rows.unsupported",
    "role": "data.rows.role",
    "order": "data.rows.ending",
    "ending": "data.rows.ending",
    "empty": "data.rows.empty",
    "encoding": "data.rows.surrogate",
    "label": "data.labels.unknown",
    "answer": "data.answers.misplaced",
    "units": "data.answers.units",
}


@dataclass(frozen=True)
class Checks:
    """What is looked for, and how rows are read. `tokenizer` is a folder, None where tokens are not counted.

    `mapping` has a format. `splits`: keys of questions are kept, to look for the rows in other splits.
    """

    mapping: Mapping
    tokenizer: Path | None
    max_length: int
    labels: tuple[str, ...]
    system_prompt: str | None
    near_duplicates: bool
    scans: bool
    splits: bool

    def plain(self) -> dict[str, Any]:
        """As values that marshal takes."""
        return {**asdict(self), "tokenizer": None if self.tokenizer is None else str(self.tokenizer)}

    @classmethod
    def of_plain(cls, plain: dict[str, Any]) -> Checks:
        folder = plain["tokenizer"]
        mapping = Mapping(**plain["mapping"])
        return cls(**{**plain, "mapping": mapping, "tokenizer": None if folder is None else Path(folder)})


class Examiner:
    """The checks, ready to look at rows; the tokenizer is loaded once, unless it is handed over."""

    def __init__(self, checks: Checks, renderer: Renderer | None = None) -> None:
        self._checks = checks
        self._tokens = None
        if checks.tokenizer is not None:
            renderer = renderer or Renderer.load(checks.tokenizer)
            self._tokens = TokenChecks(renderer, checks.max_length, checks.labels, scans=checks.scans)

    def examine(self, lot: Lot) -> Part:
        part = Part()
        examples = []
        for row in lot.rows():
            part.rows += 1
            if row.value is None:
                part.tallies.add("data.rows.malformed", row.number, row.fault or "")
                continue
            try:
                example = to_example(row.value, self._checks.mapping)
            except RowFault as fault:
                part.tallies.add(*self._fault(row.number, row.value, fault))
                continue
            self._row(part, row.number, example)
            examples.append((row.number, as_chat(example, self._checks.system_prompt) or example))
        if self._tokens is not None:
            self._tokens.add(examples, part)
        return part

    def _fault(self, number: int, value: dict[str, Any], fault: RowFault) -> tuple[str, int, str]:
        format = self._checks.mapping.format
        assert format is not None
        others = rivals(value, format)
        if fault.kind in ("shape", "empty", "label") and others:
            return "data.format.mixed", number, f"{others[0]} beside {format}"
        return FAULT_FINDING[fault.kind], number, str(fault)

    def _row(self, part: Part, number: int, example: AnyExample) -> None:
        seen = view(example)
        for id_, detail in content.order(example, seen):
            part.tallies.add(id_, number, detail)
        if self._checks.scans:
            for id_, detail in content.notes(example, seen):
                part.tallies.add(id_, number, detail)
        part["numbers"].append(number)
        part["exact"].append(seen.key())
        part["answers"].append(seen.answer_key())
        if self._checks.near_duplicates:
            sketch = similar.sketch(seen)
            part["words"].append(sketch.words)
            similar.keep(part, number, sketch)
        classified = isinstance(example, Classified)
        if self._checks.splits:
            part["questions"].append(seen.question_key())
        if self._checks.splits or classified:
            part["loose_questions"].append(seen.loose_question_key())
        if isinstance(example, Classified):
            part.labels[example.label] += 1
            part["classes"].append(key_of(example.label))
        if isinstance(example, Answered):
            part["starts"].append(1 + example.starts[0] if example.starts else 0)
            if self._checks.splits:
                part["contexts"].append(key_of(example.context))
        part.tagged = part.tagged or isinstance(example, Tagged)
