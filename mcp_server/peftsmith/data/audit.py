"""What is wrong with a data set before it costs anything.

Knows: one streaming pass over the rows: format faults, labels, which check sees which row; and the report.
Does not know: how text (content.py), repetition (repetition.py, similar.py), splits (overlap.py) and tokens (tokens.py)
are judged.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftsmith import files
from peftsmith.data import content, licence
from peftsmith.data.answers import Answers
from peftsmith.data.examples import Answered, AnyExample, Classified, Tagged
from peftsmith.data.formats import Detected, Mapping, RowFault, as_chat, detect, read_rows, rivals, to_example
from peftsmith.data.overlap import Split
from peftsmith.data.rendering import Renderer
from peftsmith.data.repetition import Repetition, groups
from peftsmith.data.similar import Similar, sketch
from peftsmith.data.tally import Tallies
from peftsmith.data.tokens import TokenAudit
from peftsmith.data.views import loose, view
from peftsmith.finding import Finding, finding, worst_first
from peftsmith.progress import Listener

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
LEAST_CONFIDENCE = 0.9
_IMBALANCE = 10
_CHUNK_ROWS = 512
_CHUNK_CHARACTERS = 1 << 20
_TEXT_LABELS = 60


@dataclass(frozen=True)
class Report:
    """What a data set holds. Lengths are in tokens after template and tokenizer; None where no model was given.

    `loss_tokens` are those that carry loss after truncation to max_length, `loss_tokens_lost` those that it cut off,
    `duplicates` rows equal to an earlier one, `near_duplicates` rows like an earlier one (case and white space aside,
    or by words, see similar.py; None when not looked for), `test_overlap` and `eval_overlap` training rows that also
    stand in that file. `padding` is the share of padding in batches of batch_size rows, `packed_unused` of unused
    places when packed to max_length.
    """

    path: str
    sha256: str
    rows: int
    usable_rows: int
    format: str
    confidence: float
    labels: dict[str, int]
    tokens: dict[str, int] | None
    loss_tokens: int | None
    truncated_rows: int | None
    duplicates: int
    test_overlap: int | None
    suggested_max_length: int | None
    loss_tokens_lost: int | None = None
    near_duplicates: int | None = None
    eval_overlap: int | None = None
    padding: float | None = None
    packed_unused: float | None = None
    suggested_packing: bool | None = None
    suggested_batch_size: int | None = None
    findings: list[Finding] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Every field but the findings, as plain data; labels as shown to people."""
        shown = {name: value for name, value in vars(self).items() if name != "findings"}
        return {**shown, "labels": {files.clean(label, 100): count for label, count in self.labels.items()}}


def audit(
    path: Path,
    *,
    model: str | None = None,
    test: Path | None = None,
    eval: Path | None = None,
    max_length: int = 1024,
    batch_size: int = 8,
    text_column: str = "text",
    label_column: str = "label",
    system_prompt: str | None = None,
    revision: str | None = None,
    mapping: Mapping | None = None,
    near_duplicates: bool = True,
    scans: bool = True,
    progress: Listener | None = None,
) -> Report:
    """Read `path` once and say what is wrong with it. Rows are streamed; what is kept is about 250 bytes a row.

    `model` is a folder or a hub id, for its tokenizer and template only. `near_duplicates` turns the search for rows
    with like words on, `scans` looking through each row's text. Raises PeftsmithError when the file cannot be
    read at all, has no covered format, or the model has no tokenizer.
    """
    detected = detect(path, mapping or Mapping.of(text_column=text_column, label_column=label_column))

    def convert(value: dict[str, Any]) -> AnyExample:
        return to_example(value, detected.mapping)

    splits: list[Split] = []
    for name, file in (("test", test), ("eval", eval)):
        if file is not None:
            splits.append(Split(name, file, convert, words=near_duplicates, others=list(splits)))
    renderer = _renderer(model, revision) if model else None
    tokens = None
    if renderer is not None:
        tokens = TokenAudit(renderer, max_length, batch_size=batch_size, labels=detected.labels, scans=scans)
    seen = _Pass(splits, Similar() if near_duplicates else None, scans)
    chunk = _Chunk(tokens)
    total = _lines(path) if progress else None
    try:
        for row in read_rows(path):
            seen.rows += 1
            if progress and seen.rows % _CHUNK_ROWS == 0:
                progress(seen.rows, total)
            if row.value is None:
                seen.tallies.add("data.rows.malformed", row.number, row.fault or "")
                continue
            try:
                example = convert(row.value)
            except RowFault as fault:
                others = rivals(row.value, detected.format)
                if fault.kind in ("shape", "empty", "label") and others:
                    seen.tallies.add("data.format.mixed", row.number, f"{others[0]} beside {detected.format}")
                else:
                    seen.tallies.add(FAULT_FINDING[fault.kind], row.number, str(fault))
                continue
            size = seen.add(row.number, example)
            chunk.add(row.number, as_chat(example, system_prompt) or example, size)
        chunk.send()
        if tokens is not None:
            tokens.finish()
    finally:
        if tokens is not None:
            tokens.close()
    if progress:
        progress(seen.rows, seen.rows)
    return _report(path, detected, seen, tokens)


def _report(path: Path, detected: Detected, seen: _Pass, tokens: TokenAudit | None) -> Report:
    seen.finish()
    findings = [*_about_format(detected), *seen.findings(), *licence.judge(path)]
    if tokens is None:
        findings.append(finding("data.tokens.unknown"))
    else:
        findings += tokens.findings(seen.rows)
    counted = tokens if tokens is not None and len(tokens.lengths) else None
    shares = counted.padding() if counted else None
    near = seen.tallies.count("data.rows.near_duplicate") + seen.tallies.count("data.rows.similar")
    found = {split.name: split.found for split in seen.splits}
    return Report(
        path=str(path),
        sha256=files.sha256_file(path),
        rows=seen.rows,
        usable_rows=seen.usable,
        format=detected.format,
        confidence=detected.confidence,
        labels=dict(seen.labels.most_common()),
        tokens=counted.lengths.summary() if counted else None,
        loss_tokens=counted.loss_tokens if counted else None,
        truncated_rows=counted.truncated_rows if counted else None,
        duplicates=seen.tallies.count("data.rows.duplicate"),
        test_overlap=found.get("test"),
        suggested_max_length=counted.suggested_max_length() if counted else None,
        loss_tokens_lost=counted.lost_loss_tokens if counted else None,
        near_duplicates=near if seen.similar is not None else None,
        eval_overlap=found.get("eval"),
        padding=round(shares[0], 4) if shares else None,
        packed_unused=round(shares[1], 4) if shares else None,
        suggested_packing=counted.suggested_packing() if counted else None,
        suggested_batch_size=counted.suggested_batch_size() if counted else None,
        findings=worst_first(findings),
    )


def _renderer(model: str, revision: str | None) -> Renderer:
    from peftsmith.model import source

    return Renderer.load(source.tokenizer_folder(source.open_model(model, revision)))


def _lines(path: Path) -> int | None:
    """About how many rows a file of lines has."""
    if not path.is_file() or path.suffix.lower() not in (".jsonl", ".csv", ".tsv"):
        return None
    with path.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))


def _about_format(detected: Detected) -> Iterator[Finding]:
    if detected.confidence < LEAST_CONFIDENCE:
        yield finding(
            "data.format.uncertain",
            f"The format is taken to be {detected.format} with confidence {detected.confidence}: {detected.reason}",
            confidence=detected.confidence,
        )


class _Chunk:
    """Rows gathered for the token audit, which takes them in lots."""

    def __init__(self, tokens: TokenAudit | None) -> None:
        self._tokens = tokens
        self._rows: list[tuple[int, AnyExample]] = []
        self._size = 0

    def add(self, number: int, example: AnyExample, size: int) -> None:
        if self._tokens is None:
            return
        self._rows.append((number, example))
        self._size += size
        if len(self._rows) >= _CHUNK_ROWS or self._size >= _CHUNK_CHARACTERS:
            self.send()

    def send(self) -> None:
        if self._tokens is not None:
            self._tokens.add(self._rows)
            self._rows, self._size = [], 0


class _Pass:
    """What one pass over the training rows gathers."""

    def __init__(self, splits: list[Split], similar: Similar | None, scans: bool) -> None:
        self.rows = 0
        self.usable = 0
        self.labels: Counter[str] = Counter()
        self.tallies = Tallies()
        self.splits = splits
        self.similar = similar
        self._scans = scans
        self._tags = False  # the same tags in most rows are nothing odd
        self._answers = Answers()
        self._repetition = Repetition()
        self._questions, self._classes, self._numbers = array("Q"), array("I"), array("I")
        self._places: dict[str, int] = {}

    def add(self, number: int, example: AnyExample) -> int:
        """Look at one row; returns its size in characters."""
        self.usable += 1
        seen = view(example)
        for id_, detail in content.order(example, seen):
            self.tallies.add(id_, number, detail)
        if self._scans:
            for id_, detail in content.notes(example, seen):
                self.tallies.add(id_, number, detail)
        words = sketch(seen) if self.similar is not None else None
        self._repetition.add(number, seen.key(), words.words if words else 0, seen.answer_key())
        if self.similar is not None and words is not None:
            self.similar.add(words)
        for split in self.splits:
            split.check(self.tallies, number, seen, words)
        if isinstance(example, Classified):
            self.labels[example.label] += 1
            self._questions.append(seen.loose_question_key())
            self._classes.append(self._places.setdefault(example.label, len(self._places)))
            self._numbers.append(number)
        elif isinstance(example, Answered):
            self._answers.add(number, example)
        self._tags = isinstance(example, Tagged)
        return len(seen.text)

    def finish(self) -> None:
        """Everything that needs all rows."""
        self._repetition.note(self.tallies, self.similar.repeated() if self.similar is not None else None)
        labels = list(self._places)
        for group in groups(self._questions):
            first = labels[self._classes[group[0]]]
            for place in group[1:]:
                label = labels[self._classes[place]]
                if loose(label) != loose(first):
                    detail = f"{label!r} here, {first!r} in row {self._numbers[group[0]]}"
                    self.tallies.add("data.labels.contradictory", self._numbers[place], detail)

    def findings(self) -> Iterator[Finding]:
        if not self.usable:
            yield finding("data.file.unusable", rows_read=self.rows)
        yield from self.tallies.findings(self.rows)
        if self.labels:
            yield from self._about_labels()
        elif not self._tags and (same := self._repetition.same_answer()):
            count, number = same
            yield finding(
                "data.rows.same_answer",
                f"{count} of {self.rows} rows have the same answer, first in row {number}",
                count=count,
                share=round(count / self.rows, 4),
                rows=[number],
            )
        yield from self._answers.findings()
        for split in self.splits:
            yield from split.tallies.findings(split.rows)
            unseen = sorted(set(split.labels) - set(self.labels))
            if unseen:
                shown = [files.clean(label, _TEXT_LABELS) for label in unseen[:5]]
                yield finding(
                    "data.labels.unseen",
                    f"The {split.name} rows have {len(unseen)} label(s) that the training rows never show: "
                    f"{', '.join(shown)}",
                    labels=shown,
                    count=len(unseen),
                )

    def _about_labels(self) -> Iterator[Finding]:
        counts = {files.clean(label, 60): count for label, count in self.labels.most_common()}
        if len(self.labels) == 1:
            yield finding(
                "data.labels.single", f"All {self.usable} rows have the label {next(iter(counts))!r}", labels=counts
            )
            return
        (most, largest), (least, smallest) = self.labels.most_common()[0], self.labels.most_common()[-1]
        if largest >= _IMBALANCE * smallest:
            yield finding(
                "data.labels.imbalance",
                f"Label {most!r} has {largest} rows, {least!r} has {smallest}: {largest / smallest:.0f} times as many",
                labels=dict(list(counts.items())[:20]),
            )
        by_text: dict[str, list[str]] = {}
        for label in self.labels:
            by_text.setdefault(loose(label), []).append(files.clean(label, 60))
        variants = [sorted(written) for written in by_text.values() if len(written) > 1]
        if variants:
            yield finding(
                "data.labels.variants",
                f"{len(variants)} label(s) are written in several ways, such as {' and '.join(map(repr, variants[0]))}",
                variants=variants[:5],
            )
