"""What is wrong with a data set before it costs anything.

Knows: one streaming pass over the rows: format faults, repetition, test overlap, labels; and the report.
Does not know: how text (content.py) and tokens (tokens.py) are judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftsmith import files
from peftsmith.data import content
from peftsmith.data.examples import Chat
from peftsmith.data.formats import Detected, Mapping, RowFault, as_chat, detect, read_rows, rivals, to_example
from peftsmith.data.rendering import Renderer
from peftsmith.data.tally import Tallies
from peftsmith.data.tokens import TokenAudit
from peftsmith.finding import Finding, finding, worst_first

FAULT_FINDING = {
    "shape": "data.rows.shape",
    "unsupported": "data.rows.unsupported",
    "role": "data.rows.role",
    "order": "data.rows.ending",
    "ending": "data.rows.ending",
    "empty": "data.rows.empty",
    "encoding": "data.rows.surrogate",
    "label": "data.labels.unknown",
}
LEAST_CONFIDENCE = 0.9
_IMBALANCE = 10
_CHUNK_ROWS = 256
_CHUNK_CHARACTERS = 2 << 20


@dataclass(frozen=True)
class Report:
    """What a data set holds. Lengths are in tokens after template and tokenizer; None where no model was given.

    `loss_tokens` are those that carry loss after truncation to max_length, `duplicates` rows equal to an earlier one,
    `test_overlap` training rows whose question is also in the test file (case and white space aside).
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
    max_length: int = 1024,
    text_column: str = "text",
    label_column: str = "label",
    system_prompt: str | None = None,
    revision: str | None = None,
    mapping: Mapping | None = None,
) -> Report:
    """Read `path` once and say what is wrong with it. Rows are streamed; what is kept is a few bytes a row.

    `model` is a folder or a hub id, for its tokenizer and template only. Raises PeftsmithError when the file cannot be
    read at all, has no covered format, or the model has no tokenizer.
    """
    detected = detect(path, mapping or Mapping.of(text_column=text_column, label_column=label_column))
    token_audit = TokenAudit(_renderer(model, revision), max_length) if model else None
    test_keys = _TestKeys(test, detected) if test else None
    seen = _Pass(detected, test_keys)
    chunk: list[tuple[int, Chat]] = []
    size = 0
    for row in read_rows(path):
        seen.rows += 1
        if row.value is None:
            seen.tallies.add("data.rows.malformed", row.number, row.fault or "")
            continue
        try:
            example = _chat(row.value, detected, system_prompt)
        except RowFault as fault:
            others = rivals(row.value, detected.format)
            if fault.kind in ("shape", "empty", "label") and others:
                seen.tallies.add("data.format.mixed", row.number, f"{others[0]} beside {detected.format}")
            else:
                seen.tallies.add(FAULT_FINDING[fault.kind], row.number, str(fault))
            continue
        seen.add(row.number, example)
        if token_audit is not None:
            chunk.append((row.number, example))
            size += sum(len(message["content"]) for message in example.prompt + example.completion)
            if len(chunk) >= _CHUNK_ROWS or size >= _CHUNK_CHARACTERS:
                token_audit.add(chunk)
                chunk, size = [], 0
    findings = [*_about_format(detected), *seen.findings()]
    if token_audit is None:
        findings.append(finding("data.tokens.unknown"))
    else:
        token_audit.add(chunk)
        findings += token_audit.findings(seen.rows)
    counted = token_audit is not None and len(token_audit.lengths) > 0
    return Report(
        path=str(path),
        sha256=files.sha256_file(path),
        rows=seen.rows,
        usable_rows=seen.usable,
        format=detected.format,
        confidence=detected.confidence,
        labels=dict(seen.labels.most_common()) if detected.format == "classification" else {},
        tokens=token_audit.lengths.summary() if token_audit else None,
        loss_tokens=token_audit.loss_tokens if token_audit and counted else None,
        truncated_rows=token_audit.truncated_rows if token_audit and counted else None,
        duplicates=seen.tallies.count("data.rows.duplicate"),
        test_overlap=seen.overlap if test else None,
        suggested_max_length=token_audit.suggested_max_length() if token_audit else None,
        findings=worst_first(findings),
    )


def _chat(value: dict[str, Any], detected: Detected, system_prompt: str | None = None) -> Chat:
    example = as_chat(to_example(value, detected.mapping), system_prompt)
    if example is None:
        raise RowFault("unsupported", f"rows of the format {detected.format} are not audited yet")
    return example


def _renderer(model: str, revision: str | None) -> Renderer:
    from peftsmith.model import source

    return Renderer.load(source.tokenizer_folder(source.open_model(model, revision)))


def _about_format(detected: Detected) -> Iterator[Finding]:
    if detected.confidence < LEAST_CONFIDENCE:
        yield finding(
            "data.format.uncertain",
            f"The format is taken to be {detected.format} with confidence {detected.confidence}: {detected.reason}",
            confidence=detected.confidence,
        )


class _TestKeys:
    """The questions and labels of the test file, by hash; its own faults are counted."""

    def __init__(self, path: Path, detected: Detected) -> None:
        self.exact: dict[bytes, int] = {}
        self.loose: dict[bytes, int] = {}
        self.labels: Counter[str] = Counter()
        self.rows = 0
        self.tallies = Tallies()
        for row in read_rows(path):
            self.rows += 1
            if row.value is None:
                self.tallies.add("data.test.unusable", row.number, row.fault or "")
                continue
            try:
                example = _chat(row.value, detected)
            except RowFault as fault:
                self.tallies.add("data.test.unusable", row.number, str(fault))
                continue
            question = content.question(example)
            self.exact.setdefault(content.exact_key(question), row.number)
            self.loose.setdefault(content.loose_key(question), row.number)
            if detected.format == "classification":
                self.labels[example.completion[0]["content"]] += 1


class _Pass:
    """What one pass over the training rows gathers; per row three hashes of 16 bytes with a number each."""

    def __init__(self, detected: Detected, test: _TestKeys | None) -> None:
        self.rows = 0
        self.usable = 0
        self.overlap = 0
        self.labels: Counter[str] = Counter()
        self.tallies = Tallies()
        self._classes = detected.format == "classification"
        self._test = test
        self._exact: set[bytes] = set()
        self._loose: set[bytes] = set()
        self._label_of: dict[bytes, tuple[str, int]] = {}

    def add(self, number: int, example: Chat) -> None:
        self.usable += 1
        for id_, detail in content.notes(example):
            self.tallies.add(id_, number, detail)
        question = content.question(example)
        loose = content.loose_key(question)
        self._repetition(number, question + example.completion)
        if self._classes:
            self._label(number, example.completion[0]["content"], loose)
        if self._test is not None and loose in self._test.loose:
            self.overlap += 1
            exact = self._test.exact.get(content.exact_key(question))
            id_ = "data.test.overlap" if exact else "data.test.near_overlap"
            self.tallies.add(id_, number, f"row {exact or self._test.loose[loose]} of the test")

    def _repetition(self, number: int, conversation: list[dict[str, Any]]) -> None:
        exact, loose = content.exact_key(conversation), content.loose_key(conversation)
        if exact in self._exact:
            self.tallies.add("data.rows.duplicate", number)
        elif loose in self._loose:
            self.tallies.add("data.rows.near_duplicate", number)
        self._exact.add(exact)
        self._loose.add(loose)

    def _label(self, number: int, label: str, question: bytes) -> None:
        self.labels[label] += 1
        first, row = self._label_of.setdefault(question, (label, number))
        if first != label and content.loose_text(first) != content.loose_text(label):
            self.tallies.add("data.labels.contradictory", number, f"{label!r} here, {first!r} in row {row}")

    def findings(self) -> Iterator[Finding]:
        if not self.usable:
            yield finding("data.file.unusable", rows_read=self.rows)
        yield from self.tallies.findings(self.rows)
        if self._classes and self.usable:
            yield from self._about_labels()
        if self._test is not None:
            yield from self._test.tallies.findings(self._test.rows)
            unseen = sorted(set(self._test.labels) - set(self.labels))
            if unseen:
                shown = [files.clean(label, 60) for label in unseen[:5]]
                yield finding(
                    "data.labels.unseen",
                    f"The test rows have {len(unseen)} label(s) that the training rows never show: {', '.join(shown)}",
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
            by_text.setdefault(content.loose_text(label), []).append(files.clean(label, 60))
        variants = [sorted(written) for written in by_text.values() if len(written) > 1]
        if variants:
            yield finding(
                "data.labels.variants",
                f"{len(variants)} label(s) are written in several ways, such as {' and '.join(map(repr, variants[0]))}",
                variants=variants[:5],
            )
