"""Normalised train, eval and test files out of one source, with nothing lost in silence.

Knows: which rows are used, which are rejected and why, the split (seeded, by label, like questions together), hashes.
Does not know: tokens, or whether the rows are any good (audit.py).
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from peftsmith import files
from peftsmith.data import content
from peftsmith.data.audit import LEAST_CONFIDENCE
from peftsmith.data.formats import Detected, RowFault, detect, read_rows, to_example
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding

SPLITS = ("train", "eval", "test")
REJECTS = "rejects.jsonl"


@dataclass(frozen=True)
class Prepared:
    """`splits` maps each written split to path, sha256 and rows; read == written + rejected."""

    folder: str
    format: str
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


@dataclass(frozen=True)
class _Used:
    """A usable row: its number, its label ("" without labels), and the key that it shares with like questions."""

    number: int
    label: str
    question: bytes


def prepare(
    path: Path,
    output: Path,
    *,
    eval_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    text_column: str = "text",
    label_column: str = "label",
) -> Prepared:
    """Write train.jsonl, eval.jsonl, test.jsonl and rejects.jsonl into the new folder `output`.

    Rows keep their format; classification rows come out as {"text", "label"}. Exact duplicates are rejected after the
    first; rows whose questions differ only in case or white space go into the same split. Shares are of the usable
    rows, kept for each label as nearly as whole rows allow. The folder appears complete or not at all. Raises
    PeftsmithError for shares that leave no training rows, an output that is in use, and a source without usable rows.
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
    before = files.sha256_file(path) if path.is_file() else ""
    detected = detect(path, text_column, label_column)
    used, rejected, dropped, read = _sort_out(path, detected, text_column, label_column)
    if not used:
        first = next(iter(rejected.values()), "no rows")
        raise PeftsmithError(
            f"None of the {read} rows can be used", value=first, next_step="Repair the source; audit_dataset says more."
        )
    split_of = _split(used, {"test": test_share, "eval": eval_share}, seed)
    if "train" not in split_of.values():
        raise PeftsmithError(
            "No row would be left to train on", value=len(used), next_step="Give more rows, or smaller shares."
        )
    building = output.parent / f".{output.name}.{uuid4().hex[:8]}"
    building.mkdir(parents=True)
    try:
        _write(building, path, detected.format, split_of, rejected, text_column, label_column)
        if files.sha256_file(path) != before:
            raise PeftsmithError(
                "The source changed while it was read", value=str(path), next_step="Try again when it is complete."
            )
        splits = {
            name: {
                "path": str(output / f"{name}.jsonl"),
                "sha256": files.sha256_file(building / f"{name}.jsonl"),
                "rows": sum(split == name for split in split_of.values()),
            }
            for name in SPLITS
            if (building / f"{name}.jsonl").exists()
        }
        building.replace(output)
    except OSError as error:
        raise PeftsmithError(
            f"The splits could not be written: {error.strerror}; nothing was left behind",
            value=str(output),
            next_step="Free some space or choose another folder.",
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    labels: dict[str, Counter[str]] = {name: Counter() for name in splits}
    if detected.format == "classification":
        for row in used:
            labels[split_of[row.number]][row.label] += 1
    reasons = Counter(reason.partition(":")[0] for reason in rejected.values())
    return Prepared(
        folder=str(output),
        format=detected.format,
        source_sha256=before,
        splits=splits,
        read=read,
        written=len(used),
        rejected=len(rejected),
        reasons={files.clean(reason, 120): count for reason, count in reasons.most_common(20)},
        labels={name: dict(counts.most_common()) for name, counts in labels.items() if counts},
        dropped_columns=[files.clean(name, 60) for name in sorted(dropped)[:50]],
        findings=list(_findings(detected, splits, labels, len(rejected), {"test": test_share, "eval": eval_share})),
    )


def _sort_out(
    path: Path, detected: Detected, text_column: str, label_column: str
) -> tuple[list[_Used], dict[int, str], set[str], int]:
    """(usable rows, row number -> reason, columns that are not kept, rows read)."""
    kept = {
        "messages": {"messages"},
        "prompt_completion": {"prompt", "completion"},
        "classification": {text_column, label_column},
    }[detected.format]
    used: list[_Used] = []
    rejected: dict[int, str] = {}
    dropped: set[str] = set()
    first_of: dict[bytes, int] = {}
    read = 0
    for row in read_rows(path):
        read += 1
        if row.value is None:
            rejected[row.number] = f"unreadable: {row.fault}"
            continue
        try:
            example = to_example(row.value, detected.format, text_column, label_column)
        except RowFault as fault:
            rejected[row.number] = f"{fault.kind}: {fault}"
            continue
        first = first_of.setdefault(content.exact_key([*example.prompt, *example.completion]), row.number)
        if first != row.number:
            rejected[row.number] = f"duplicate: the same as row {first}"
            continue
        if len(dropped) < 1000:
            dropped |= row.value.keys() - kept
        label = example.completion[0]["content"] if detected.format == "classification" else ""
        used.append(_Used(row.number, label, content.loose_key(content.question(example))))
    return used, rejected, dropped, read


def _split(used: list[_Used], shares: Mapping[str, float], seed: int) -> dict[int, str]:
    """Row number -> split. Rows with like questions stay together; what rounding leaves over is carried on by label."""
    groups: dict[bytes, list[_Used]] = {}
    for row in used:
        groups.setdefault(row.question, []).append(row)
    by_label: dict[str, list[list[_Used]]] = {}
    for group in groups.values():
        by_label.setdefault(group[0].label, []).append(group)
    split_of = dict.fromkeys((row.number for row in used), "train")
    owed = dict.fromkeys(shares, 0.0)
    draw = random.Random(seed)
    for _, members in sorted(by_label.items()):
        draw.shuffle(members)
        rows = sum(len(group) for group in members)
        waiting = iter(members)
        for name, share in shares.items():
            owed[name] += rows * share
            for group in _take(waiting, round(owed[name])):
                owed[name] -= len(group)
                split_of.update((row.number, name) for row in group)
    return split_of


def _take(groups: Iterator[list[_Used]], wanted: int) -> Iterator[list[_Used]]:
    taken = 0
    while taken < wanted and (group := next(groups, None)) is not None:
        taken += len(group)
        yield group


def _write(
    folder: Path,
    path: Path,
    format: str,
    split_of: Mapping[int, str],
    rejected: Mapping[int, str],
    text_column: str,
    label_column: str,
) -> None:
    """Second pass over the source: every row goes to its split's file, or with its reason to the rejects."""
    with ExitStack() as stack:
        names = [*(name for name in SPLITS if name in set(split_of.values())), "rejects"]
        out = {
            name: stack.enter_context((folder / f"{name}.jsonl").open("w", encoding="utf-8", newline="\n"))
            for name in names
        }
        for row in read_rows(path):
            if row.number in rejected:
                line: dict[str, Any] = {"row": row.number, "reason": rejected[row.number]}
                out["rejects"].write(json.dumps(line, ensure_ascii=True) + "\n")
            elif row.value is not None and row.number in split_of:
                line = _normalised(row.value, format, text_column, label_column)
                out[split_of[row.number]].write(json.dumps(line, ensure_ascii=False) + "\n")
        for stream in out.values():
            stream.flush()
            os.fsync(stream.fileno())


def _normalised(value: Mapping[str, Any], format: str, text_column: str, label_column: str) -> dict[str, Any]:
    if format == "classification":
        label = value[label_column]
        return {"text": value[text_column], "label": label if isinstance(label, str) else json.dumps(label)}
    keys = ("messages",) if format == "messages" else ("prompt", "completion")
    return {key: value[key] for key in keys}


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
