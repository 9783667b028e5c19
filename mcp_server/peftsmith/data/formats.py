"""Which format a file has, with how sure that is, and which columns hold what.

Knows: which columns make a format, the formats of sampled rows, every label of a file.
Does not know: what a row becomes (convert.py), how rows are stored (reading.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from collections.abc import Mapping as Lookup
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peftsmith import files
from peftsmith.data import faults
from peftsmith.data.convert import as_chat, is_answers, to_example
from peftsmith.data.examples import Message
from peftsmith.data.faults import RowFault
from peftsmith.data.mapping import FIELDS, FORMATS, Mapping
from peftsmith.data.reading import Row, class_names, read_rows
from peftsmith.errors import PeftsmithError
from peftsmith.plan_parts import DataFormat

__all__ = [
    "FORMATS", "Detected", "Mapping", "Message", "Row", "RowFault", "as_chat", "detect", "fits", "read_rows",
    "to_example",
]  # fmt: skip

MOST_LABELS = 1000
_SAMPLE = 1000
_WITH_LABELS: dict[DataFormat, str] = {"classification": "label", "token_classification": "tags"}
# The columns of the first are also those of the second, which says nothing against the first.
_IMPLIED: dict[DataFormat, tuple[DataFormat, ...]] = {
    "preference": ("messages", "sharegpt"),
    "kto": ("prompt_completion",),
    "classification": ("text", "seq2seq"),
    "token_classification": ("text",),
    "question_answering": ("seq2seq", "text"),
    "seq2seq": ("text",),
    "messages": ("text",),
    "sharegpt": ("text",),
    "alpaca": ("text", "seq2seq"),
    "prompt_completion": ("text",),
}
# Columns that a chat or another direction would have as well: taken, but not for certain.
_AMBIGUOUS = {("question", "answer"), ("question", "answers"), ("input", "output")}


@dataclass(frozen=True)
class Detected:
    """`confidence` is the share of the sampled readable rows that have this format, halved when another fits as well
    or the columns could mean something else.

    `mapping` reads these rows (to_example). `labels` (classification and token classification) holds every label of
    the whole file, sorted.
    """

    mapping: Mapping
    confidence: float
    reason: str
    labels: list[str] = field(default_factory=list)

    @property
    def format(self) -> DataFormat:
        assert self.mapping.format is not None
        return self.mapping.format


def fits(value: Lookup[str, Any], mapping: Mapping | None = None) -> list[DataFormat]:
    """The formats whose columns this row has, the most specific first; with a stated format or columns only these."""
    stated = mapping or Mapping()
    wanted = [stated.format] if stated.format else [name for name in FIELDS if stated.columns.keys() <= _names(name)]
    return [name for name in wanted if _fits(value, stated.with_format(name))]


def rivals(value: Lookup[str, Any], format: DataFormat) -> list[DataFormat]:
    """The other formats whose columns this row has, and that rows of `format` do not have anyway."""
    return [name for name in fits(value) if name != format and name not in _IMPLIED.get(format, ())]


def _names(name: DataFormat) -> set[str]:
    return set(FIELDS[name].names())


def _fits(value: Lookup[str, Any], mapping: Mapping) -> bool:
    name = mapping.format
    assert name is not None
    if name == "seq2seq" and "source" not in mapping.columns and _languages(value):
        return True
    for each in FIELDS[name].required:
        column = mapping.column(value, each)
        if column is None or (column not in value and column.partition(".")[0] not in value):
            return False
    if name == "messages":
        return isinstance(mapping.get(value, "messages"), list)
    if name == "sharegpt":
        return isinstance(mapping.get(value, "conversations"), list)
    if name == "kto":
        return faults.is_yes_or_no(mapping.get(value, "label"))
    if name == "token_classification":
        return all(isinstance(mapping.get(value, each), list) for each in ("tokens", "tags"))
    if name == "question_answering":
        return is_answers(mapping.get(value, "answers")) or mapping.column(value, "answer_start") in value
    return name != "text" or isinstance(mapping.get(value, "text"), str)


def _languages(value: Lookup[str, Any]) -> tuple[str, str] | None:
    """The two languages of {"translation": {"de": ..., "en": ...}}, as they stand."""
    pair = value.get("translation")
    if isinstance(pair, dict) and len(pair) == 2 and all(isinstance(text, str) for text in pair.values()):
        first, second = pair
        return first, second
    return None


def detect(path: Path, mapping: Mapping | None = None) -> Detected:
    """The format of a file, from its first 1000 readable rows; for labels every row is read.

    Raises PeftsmithError when no row has a covered format, or the one that `mapping` states; the message names the
    columns that there are.
    """
    stated = mapping or Mapping()
    rows = read_rows(path)
    sample = _sample(rows, path)
    counts: Counter[DataFormat] = Counter()
    doubtful = 0
    for value in sample:
        found = fits(value, stated)
        counts.update(found[:1])
        doubtful += any(name not in _IMPLIED.get(found[0], ()) for name in found[1:])
    if not counts:
        raise _no_format(sample[0], stated)
    best = max(FIELDS, key=lambda name: counts[name])
    first = next(value for value in sample if fits(value, stated)[:1] == [best])
    resolved = _resolved(first, sample, stated.with_format(best))
    columns = " and ".join(repr(files.clean(resolved.columns[name], 60)) for name in FIELDS[best].required)
    reason = f"{counts[best]} of the first {len(sample)} readable rows have {columns}"
    confidence = counts[best] / len(sample)
    if doubtful:
        reason += f"; {doubtful} also have the columns of another format"
    unsure = _unsure(resolved, stated)
    if unsure:
        reason += f"; {unsure}"
    if unsure or doubtful * 2 > len(sample):
        confidence /= 2
    if best in _WITH_LABELS and not resolved.label_names:
        names = class_names(path).get(resolved.columns[_WITH_LABELS[best]], ())
        resolved = replace(resolved, label_names=names)
    labels = _labels(sample, rows, resolved) if best in _WITH_LABELS else []
    return Detected(resolved, round(confidence, 4), reason, labels)


def _sample(rows: Iterator[Row], path: Path) -> list[Lookup[str, Any]]:
    sample: list[Lookup[str, Any]] = []
    broken = 0
    first_fault = ""
    for row in rows:
        if row.value is None:
            broken += 1
            first_fault = first_fault or f"row {row.number}: {row.fault}"
        else:
            sample.append(row.value)
        if len(sample) == _SAMPLE or broken == 10 * _SAMPLE:
            break
    if not sample:
        raise PeftsmithError(
            f"None of the {broken} rows can be read ({first_fault})",
            value=str(path),
            next_step="Give JSON lines (one object a line), a JSON array of objects, or CSV with a header.",
        )
    return sample


def _resolved(first: Lookup[str, Any], sample: list[Lookup[str, Any]], mapping: Mapping) -> Mapping:
    """`mapping` with a column for every field that the rows have, as the first row of this format names it."""
    assert mapping.format is not None
    columns = dict(mapping.columns)
    languages = _languages(first) if mapping.format == "seq2seq" and "source" not in columns else None
    if languages and not all(mapping.column(first, name) for name in FIELDS["seq2seq"].required):
        columns |= {"source": f"translation.{languages[0]}", "target": f"translation.{languages[1]}"}
    for name in _names(mapping.format):
        column = mapping.column(first, name)
        if column is None:
            column = next((found for row in sample if (found := mapping.column(row, name))), None)
        if column is not None:
            columns.setdefault(name, column)
    return replace(mapping, columns=columns)


def _unsure(resolved: Mapping, stated: Mapping) -> str:
    if resolved.format != "seq2seq" or stated.columns.keys() & {"source", "target"}:
        return ""
    pair = resolved.columns["source"], resolved.columns["target"]
    if pair[0].startswith("translation."):
        return "the direction is a guess: the first language is taken as the source"
    if pair in _AMBIGUOUS and stated.format is None:
        return "questions and answers can also be a chat: columns prompt and completion"
    return ""


def _no_format(value: Lookup[str, Any], stated: Mapping) -> PeftsmithError:
    columns = files.clean(", ".join(list(value)[:20]), 300)
    wanted = stated.format or ("the stated columns" if stated.columns else "any format that is covered")
    stated_columns = files.clean(", ".join(stated.columns.values()), 300)
    return PeftsmithError(
        f"The rows do not have {wanted}{f' ({stated_columns})' if stated_columns else ''}; "
        f"their columns are: {columns or 'none'}",
        next_step="Say which column holds what, with format and columns, such as format=prompt_completion and "
        "columns prompt=question, completion=answer.",
    )


def _labels(sample: list[Lookup[str, Any]], rest: Iterator[Row], mapping: Mapping) -> list[str]:
    found: set[str] = set()
    for value in sample:
        _add_labels(found, value, mapping)
    for row in rest:
        if row.value is not None:
            _add_labels(found, row.value, mapping)
    return sorted(found)


def _add_labels(found: set[str], value: Lookup[str, Any], mapping: Mapping) -> None:
    assert mapping.format is not None
    name = _WITH_LABELS[mapping.format]
    held = mapping.get(value, name)
    try:
        found.update(faults.label(each, mapping.label_names) for each in (held if isinstance(held, list) else [held]))
    except RowFault:
        return
    if len(found) > MOST_LABELS:
        raise PeftsmithError(
            f"Column {mapping.columns.get(name, name)!r} has more than {MOST_LABELS} different values, which is no "
            "classification",
            next_step="Name another column for the label, or write the rows as prompt and completion.",
        )
