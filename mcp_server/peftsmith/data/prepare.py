"""Normalised train, eval and test files out of one source, with nothing lost in silence.

Knows: which rows are used, which are rejected and why, which keys join rows, hashes; the folder is all or nothing.
Does not know: how rows are drawn (split.py) or written down (normal.py), tokens, or whether rows are good (audit.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

from peftsmith import files
from peftsmith.data import content, formats, normal, reading
from peftsmith.data.audit import LEAST_CONFIDENCE
from peftsmith.data.examples import (
    AnyExample,
    Chat,
    Classified,
    Judged,
    Pair,
    Plain,
    Preference,
    Side,
    Tagged,
)
from peftsmith.data.faults import RowFault
from peftsmith.data.formats import Detected
from peftsmith.data.split import Groups
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding

SPLITS = ("train", "eval", "test")
REJECTS = "rejects.jsonl"
RECORD = "prepared.json"


@dataclass(frozen=True)
class Prepared:
    """`splits` maps each written split to path, sha256 and rows; read == written + rejected.

    `format` and `columns` are those of the written rows, `source_format` that of the source.
    """

    folder: str
    source_format: str
    format: str
    columns: dict[str, str]
    source_sha256: str
    splits: dict[str, dict[str, Any]]
    read: int
    written: int
    rejected: int
    reasons: dict[str, int]
    labels: dict[str, dict[str, int]]
    dropped_columns: list[str]
    findings: list[Finding]

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "findings"}


@dataclass
class _Sorted:
    """The first pass: for every row read its place among the usable rows or -1; reasons by place in the file."""

    groups: Groups = field(default_factory=Groups)
    place: array[int] = field(default_factory=lambda: array("q"))
    reasons: dict[int, str] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)


def prepare(
    path: Path,
    output: Path,
    *,
    eval_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    text_column: str = "text",
    label_column: str = "label",
    mapping: formats.Mapping | None = None,
    group_by: str | None = None,
) -> Prepared:
    """Write train.jsonl, eval.jsonl, test.jsonl, rejects.jsonl and prepared.json into the new folder `output`.

    Rows are written as normal.to_row says. Exact duplicates are rejected after the first. Rows whose questions differ
    only in case or white space go into the same split, and so do rows with the same value in the column `group_by`.
    Shares are of the usable rows, kept for each label as nearly as whole groups allow. The folder appears complete or
    not at all. Raises PeftsmithError for shares that leave no training rows, an output that is in use, and a source
    without usable rows.
    """
    if eval_share < 0 or test_share < 0 or eval_share + test_share >= 1:
        raise PeftsmithError(
            "The shares of eval and test must leave rows to train on",
            value=[eval_share, test_share],
            next_step="Choose shares that add up to less than 1.",
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise PeftsmithError(
            "The output folder is in use", value=str(output), next_step="Name a folder that does not exist yet."
        )
    before = reading.fingerprint(path)
    stated = mapping or formats.Mapping.of(text_column=text_column, label_column=label_column)
    detected = formats.detect(path, stated)
    rows = _sort_out(path, detected, group_by)
    if not len(rows.groups):
        first = next(iter(rows.reasons.values()), "no rows")
        raise PeftsmithError(
            f"None of the {len(rows.place)} rows can be used",
            value=first,
            next_step="Repair the source; audit_dataset says more.",
        )
    shares = {"test": test_share, "eval": eval_share}
    split_of = rows.groups.split(shares, seed)
    counts = Counter(split_of)
    building = output.parent / f".{output.name}.{uuid4().hex[:8]}"
    building.mkdir(parents=True)
    try:
        _write(building, path, detected, rows, split_of)
        if reading.fingerprint(path) != before:
            raise PeftsmithError(
                "The source changed while it was read", value=str(path), next_step="Try again when it is complete."
            )
        splits = {
            name: {
                "path": str(output / f"{name}.jsonl"),
                "sha256": files.sha256_file(building / f"{name}.jsonl"),
                "rows": counts[name],
            }
            for name in SPLITS
            if counts[name]
        }
        done = _done(path, output, before, detected, rows, split_of, splits, shares)
        options = {"eval_share": eval_share, "test_share": test_share, "seed": seed, "group_by": group_by}
        files.write_json(building / RECORD, _record(done, building, options))
        building.replace(output)
    except OSError as error:
        raise PeftsmithError(
            f"The splits could not be written: {error.strerror}; nothing was left behind",
            value=str(output),
            next_step="Free some space or choose another folder.",
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return done


def _sort_out(path: Path, detected: Detected, group_by: str | None) -> _Sorted:
    """The first pass: keys of the usable rows, reasons of the others."""
    rows = _Sorted()
    kept = {column.partition(".")[0] for column in detected.mapping.columns.values()}
    first_of: dict[bytes, int] = {}
    for row in formats.read_rows(path):
        if row.value is None:
            rows.reasons[len(rows.place)] = f"unreadable: {row.fault}"
            rows.place.append(-1)
            continue
        try:
            example = formats.to_example(row.value, detected.mapping)
            keys = [_question_key(example)]
            if group_by is not None:
                keys.append(_group_key(row.value, group_by))
            exact = _hash(json.dumps(normal.to_row(example, detected.format), sort_keys=True))
        except RowFault as fault:
            rows.reasons[len(rows.place)] = f"{fault.kind}: {fault}"
            rows.place.append(-1)
            continue
        first = first_of.setdefault(exact, row.number)
        if first != row.number:
            rows.reasons[len(rows.place)] = f"duplicate: the same as row {first}"
            rows.place.append(-1)
            continue
        if len(rows.dropped) < 1000:
            rows.dropped |= row.value.keys() - kept
        rows.place.append(len(rows.groups))
        rows.groups.add(keys, _label(example))
    return rows


def _label(example: AnyExample) -> str:
    """What the splits keep the proportions of; "" where there is nothing."""
    match example:
        case Classified():
            return example.label
        case Judged():
            return json.dumps(example.desirable)
    return ""


def _question_key(example: AnyExample) -> bytes:
    """Equal for examples that ask the same, case and white space aside; the text itself where nothing is asked."""
    match example:
        case Chat():
            return content.loose_key(content.question(example))
        case Classified():
            asked: list[Side] = [example.text, example.second or ""]
        case Preference() | Judged():
            asked = [example.prompt]
        case Plain():
            asked = [example.prompt or example.completion]
        case Tagged():
            asked = [" ".join(example.words)]
        case Pair():
            asked = [example.source]
    parts = [side if isinstance(side, str) else json.dumps(side, sort_keys=True, ensure_ascii=False) for side in asked]
    return _hash("\0".join(content.loose_text(part) for part in parts))


def _group_key(value: Mapping[str, Any], column: str) -> bytes:
    group = value.get(column)
    if group is None:
        raise RowFault("shape", f"the row has nothing in the column {files.clean(column, 60)!r} that groups rows")
    return b"group" + _hash(json.dumps(group, sort_keys=True, default=str))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", errors="surrogatepass"), digest_size=16).digest()


def _write(folder: Path, path: Path, detected: Detected, rows: _Sorted, split_of: list[str]) -> None:
    """Second pass over the source: every row goes to its split's file, or with its reason to the rejects."""
    with ExitStack() as stack:

        def opened(name: str) -> TextIO:
            return stack.enter_context((folder / name).open("w", encoding="utf-8", newline="\n"))

        out = {name: opened(f"{name}.jsonl") for name in SPLITS if name in set(split_of)}
        rejects = opened(REJECTS)
        for order, (row, place) in enumerate(zip(formats.read_rows(path), rows.place, strict=False)):
            if place < 0:
                line: dict[str, Any] = {"row": row.number, "reason": rows.reasons[order]}
                rejects.write(json.dumps(line, ensure_ascii=True) + "\n")
            elif row.value is not None:
                line = normal.to_row(formats.to_example(row.value, detected.mapping), detected.format)
                out[split_of[place]].write(json.dumps(line, ensure_ascii=False) + "\n")
        for stream in (*out.values(), rejects):
            stream.flush()
            os.fsync(stream.fileno())


def _done(
    path: Path,
    output: Path,
    source_sha256: str,
    detected: Detected,
    rows: _Sorted,
    split_of: list[str],
    splits: dict[str, dict[str, Any]],
    shares: Mapping[str, float],
) -> Prepared:
    labels: dict[str, Counter[str]] = {name: Counter() for name in splits}
    for label, split in zip(rows.groups.labels(), split_of, strict=True):
        if label:
            labels[split][label] += 1
    reasons = Counter(reason.partition(":")[0] for reason in rows.reasons.values())
    written = normal.mapping_of(detected.format)
    return Prepared(
        folder=str(output),
        source_format=detected.format,
        format=str(written.format),
        columns=written.columns,
        source_sha256=source_sha256,
        splits=splits,
        read=len(rows.place),
        written=len(split_of),
        rejected=len(rows.reasons),
        reasons={files.clean(reason, 120): count for reason, count in reasons.most_common(20)},
        labels={name: dict(counts.most_common()) for name, counts in labels.items() if counts},
        dropped_columns=[files.clean(name, 60) for name in sorted(rows.dropped)[:50]],
        findings=list(_findings(detected, splits, labels, len(rows.reasons), shares)),
    )


def _record(done: Prepared, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """prepared.json: what was made of what and how, with file names beside it and the hash of each."""
    names = [f"{split}.jsonl" for split in done.splits] + [REJECTS]
    facts = {name: value for name, value in done.to_json().items() if name not in ("folder", "splits")}
    rows = {f"{split}.jsonl": facts["rows"] for split, facts in done.splits.items()} | {REJECTS: done.rejected}
    hashes = {name: {"sha256": files.sha256_file(folder / name), "rows": rows[name]} for name in names}
    return {"schema_version": 1, **options, "files": hashes, **facts}


def _findings(
    detected: Detected,
    splits: Mapping[str, Any],
    labels: Mapping[str, Counter[str]],
    rejected: int,
    shares: Mapping[str, float],
) -> Iterator[Finding]:
    if detected.confidence < LEAST_CONFIDENCE:
        yield finding("data.format.uncertain", detected.reason, confidence=detected.confidence)
    if rejected:
        yield finding("data.split.rejected", f"{rejected} row(s) were put into {REJECTS}", count=rejected)
    for name, share in shares.items():
        if share and name not in splits:
            yield finding("data.split.empty", f"The split {name} got no row at a share of {share}", split=name)
    every = {label for counts in labels.values() for label in counts}
    missing = {name: sorted(every - counts.keys()) for name, counts in labels.items() if every - counts.keys()}
    if missing:
        shown = {name: [files.clean(label, 60) for label in absent[:5]] for name, absent in missing.items()}
        text = "; ".join(f"{name} lacks {', '.join(absent)}" for name, absent in shown.items())
        yield finding("data.split.label_missing", f"Labels are too rare to stand in every split: {text}", missing=shown)
