"""What is wrong with a data set before it costs anything.

Knows: one streaming pass over the rows, in one process or several; the checks that need all rows; and the report.
Does not know: how one row is looked at (examine.py), how repetition (repetition.py, similar.py), splits (overlap.py),
labels (label_report.py) and tokens (token_report.py) are judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftsmith import files
from peftsmith.data import answers, crew, label_report, licence, lots, repetition, similar, token_report
from peftsmith.data.examine import Checks, Examiner
from peftsmith.data.examples import AnyExample
from peftsmith.data.formats import Detected, Mapping, detect, to_example
from peftsmith.data.overlap import Split
from peftsmith.data.part import Part
from peftsmith.data.rendering import Renderer
from peftsmith.data.token_report import TokenReport
from peftsmith.finding import Finding, finding, worst_first
from peftsmith.progress import Listener

LEAST_CONFIDENCE = 0.9


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

    Large files are looked at in as many processes as there are cores (at most 8). `model` is a folder or a hub id, for
    its tokenizer and template only. `near_duplicates` turns the search for rows with like words on, `scans` looking
    through each row's text. Raises PeftsmithError when the file cannot be read at all, has no covered format, or the
    model has no tokenizer.
    """
    detected = detect(path, mapping or Mapping.of(text_column=text_column, label_column=label_column))

    def convert(value: dict[str, Any]) -> AnyExample:
        return to_example(value, detected.mapping)

    splits: list[Split] = []
    for name, file in (("test", test), ("eval", eval)):
        if file is not None:
            splits.append(Split(name, file, convert, words=near_duplicates, others=list(splits)))
    folder = _tokenizer(model, revision) if model else None
    checks = Checks(
        mapping=detected.mapping,
        tokenizer=folder,
        max_length=max_length,
        labels=tuple(detected.labels),
        system_prompt=system_prompt,
        near_duplicates=near_duplicates,
        scans=scans,
        splits=bool(splits),
    )
    renderer = Renderer.load(folder) if folder else None
    whole = Part()
    total = _lines(path) if progress else None
    for part in _parts(path, checks, renderer):
        for split in splits:
            split.check(part.tallies, part, words=near_duplicates)
        whole.add(part)
        if progress:
            progress(whole.rows, total)
    if progress and whole.rows != total:
        progress(whole.rows, whole.rows)
    repetition.note(whole.tallies, whole, similar.like_rows(whole) if near_duplicates else None)
    label_report.note_contradictions(whole)
    tokens = TokenReport.of(whole, renderer, max_length, batch_size) if renderer else None
    findings = [
        *_about_format(detected),
        *_about_rows(whole, splits),
        *licence.judge(path),
        *(token_report.findings(whole, tokens, renderer) if tokens and renderer else [finding("data.tokens.unknown")]),
    ]
    return _report(path, detected, whole, splits, tokens, near_duplicates, findings)


def _parts(path: Path, checks: Checks, renderer: Renderer | None) -> Iterator[Part]:
    count = crew.processes_for(lots.size(path))
    if count > 1:
        return crew.parts(checks, lots.lots(path), count)
    return map(Examiner(checks, renderer).examine, lots.lots(path))


def _about_rows(whole: Part, splits: list[Split]) -> Iterator[Finding]:
    if not whole.usable:
        yield finding("data.file.unusable", rows_read=whole.rows)
    yield from whole.tallies.findings(whole.rows)
    if whole.labels:
        yield from label_report.findings(whole.labels, whole.usable)
    elif not whole.tagged and (same := repetition.same_answer(whole["numbers"], whole["answers"])):
        count, number = same
        yield finding(
            "data.rows.same_answer",
            f"{count} of {whole.rows} rows have the same answer, first in row {number}",
            count=count,
            share=round(count / whole.rows, 4),
            rows=[number],
        )
    yield from answers.findings(whole)
    for split in splits:
        yield from split.tallies.findings(split.rows)
        yield from label_report.unseen(split, whole.labels)


def _report(
    path: Path,
    detected: Detected,
    whole: Part,
    splits: list[Split],
    tokens: TokenReport | None,
    near_duplicates: bool,
    findings: list[Finding],
) -> Report:
    counted = tokens if tokens is not None and len(tokens.lengths) else None
    near = whole.tallies.count("data.rows.near_duplicate") + whole.tallies.count("data.rows.similar")
    found = {split.name: split.found for split in splits}
    return Report(
        path=str(path),
        sha256=files.sha256_file(path),
        rows=whole.rows,
        usable_rows=whole.usable,
        format=detected.format,
        confidence=detected.confidence,
        labels=dict(whole.labels.most_common()),
        tokens=counted.lengths.summary() if counted else None,
        loss_tokens=whole.loss_tokens if counted else None,
        truncated_rows=whole.truncated_rows if counted else None,
        duplicates=whole.tallies.count("data.rows.duplicate"),
        test_overlap=found.get("test"),
        suggested_max_length=counted.suggested_max_length() if counted else None,
        loss_tokens_lost=whole.lost_loss_tokens if counted else None,
        near_duplicates=near if near_duplicates else None,
        eval_overlap=found.get("eval"),
        padding=round(counted.padding, 4) if counted and counted.padding is not None else None,
        packed_unused=round(counted.packed_unused, 4) if counted and counted.packed_unused is not None else None,
        suggested_packing=counted.suggested_packing() if counted else None,
        suggested_batch_size=counted.suggested_batch_size() if counted else None,
        findings=worst_first(findings),
    )


def _tokenizer(model: str, revision: str | None) -> Path:
    from peftsmith.model import source

    return source.tokenizer_folder(source.open_model(model, revision))


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
