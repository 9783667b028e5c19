"""What rows mean: which format a file has, and the prompt and completion that a row becomes.

Knows: messages, prompt/completion and classification rows, their faults, and the names of formats not covered yet.
Does not know: how rows are stored (reading.py) or how messages become text (rendering.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from peftsmith import files
from peftsmith.data.reading import Row, read_rows
from peftsmith.errors import PeftsmithError
from peftsmith.plan import DataFormat

__all__ = ["FORMATS", "Detected", "Example", "Message", "Row", "RowFault", "detect", "fits", "read_rows", "to_example"]

Message = dict[str, Any]
FORMATS: tuple[DataFormat, ...] = get_args(DataFormat)
FaultKind = Literal["shape", "unsupported", "role", "order", "ending", "empty", "encoding", "label"]
MOST_LABELS = 1000
_SAMPLE = 1000
_SYSTEM_ROLES = ("system", "developer")
_ROLES = (*_SYSTEM_ROLES, "user", "assistant")
_TOOL_ROLES = ("tool", "function", "ipython")


@dataclass(frozen=True)
class Example:
    """What one row trains: the loss lies on `completion` only. Messages are dicts with role, content and maybe more."""

    prompt: list[Message]
    completion: list[Message]


@dataclass(frozen=True)
class Detected:
    """`confidence` is the share of the sampled readable rows that have this format, halved when another fits as well.

    `labels` (classification only) holds every label of the whole file, sorted.
    """

    format: DataFormat
    confidence: float
    reason: str
    labels: list[str] = field(default_factory=list)


class RowFault(ValueError):
    """Why a row cannot be used: `kind` for grouping, the message for people."""

    def __init__(self, kind: FaultKind, message: str) -> None:
        self.kind = kind
        super().__init__(message)


def fits(value: Mapping[str, Any], text_column: str = "text", label_column: str = "label") -> list[DataFormat]:
    """The formats whose columns this row has, the most specific first."""
    found: list[DataFormat] = []
    if isinstance(value.get("messages"), list):
        found.append("messages")
    if "prompt" in value and "completion" in value and not isinstance(value.get("label"), bool):
        found.append("prompt_completion")
    if text_column in value and label_column in value:
        found.append("classification")
    return found


_NOT_COVERED: tuple[tuple[str, Callable[[Mapping[str, Any]], bool]], ...] = (
    ("ShareGPT (conversations with from and value)", lambda row: isinstance(row.get("conversations"), list)),
    ("Alpaca (instruction, input, output)", lambda row: "instruction" in row and "output" in row),
    ("preference pairs (chosen, rejected)", lambda row: "chosen" in row and "rejected" in row),
    ("KTO (prompt, completion, true or false)", lambda row: "completion" in row and isinstance(row.get("label"), bool)),
    ("token classification (tokens, tags)", lambda row: isinstance(row.get("tokens"), list)),
    ("plain text (text alone)", lambda row: set(row) == {"text"}),
)


def detect(path: Path, text_column: str = "text", label_column: str = "label") -> Detected:
    """The format of a file, from its first 1000 readable rows; for classification every row is read for its label.

    Raises PeftsmithError when no row has a covered format; the message names the columns, and the format if it is
    a known one.
    """
    rows = read_rows(path)
    sample: list[Mapping[str, Any]] = []
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
    counts: Counter[DataFormat] = Counter()
    doubtful = 0
    for value in sample:
        found = fits(value, text_column, label_column)
        counts.update(found[:1])
        doubtful += len(found) > 1
    if not counts:
        raise _no_format(sample[0], text_column, label_column)
    best = max(FORMATS, key=lambda name: counts[name])
    reason = f"{counts[best]} of the first {len(sample)} readable rows have {_columns(best, text_column, label_column)}"
    if doubtful:
        reason += f"; {doubtful} also have the columns of another format"
    confidence = counts[best] / len(sample) * (0.5 if doubtful * 2 > len(sample) else 1.0)
    labels: list[str] = []
    if best == "classification":
        labels = _labels(sample, rows, text_column, label_column)
    return Detected(best, round(confidence, 4), reason, labels)


def _columns(name: DataFormat, text_column: str, label_column: str) -> str:
    return {
        "messages": "a list under 'messages'",
        "prompt_completion": "'prompt' and 'completion'",
        "classification": f"{text_column!r} and {label_column!r}",
    }[name]


def _no_format(value: Mapping[str, Any], text_column: str, label_column: str) -> PeftsmithError:
    columns = files.clean(", ".join(list(value)[:20]), 300)
    known = next((name for name, looks in _NOT_COVERED if looks(value)), None)
    cause = f"The rows look like {known}, which is not covered" if known else "The rows have no format that is covered"
    return PeftsmithError(
        f"{cause}; their columns are: {columns or 'none'}",
        next_step=f"Give rows with 'messages', or 'prompt' and 'completion', or {text_column!r} and {label_column!r} "
        "(name other columns with text_column and label_column).",
    )


def _labels(sample: list[Mapping[str, Any]], rest: Iterator[Row], text_column: str, label_column: str) -> list[str]:
    found: set[str] = set()
    for value in sample:
        _add_label(found, value, label_column)
    for row in rest:
        if row.value is not None:
            _add_label(found, row.value, label_column)
    return sorted(found)


def _add_label(found: set[str], value: Mapping[str, Any], label_column: str) -> None:
    try:
        found.add(_label(value.get(label_column)))
    except RowFault:
        return
    if len(found) > MOST_LABELS:
        raise PeftsmithError(
            f"Column {label_column!r} has more than {MOST_LABELS} different values, which is no classification",
            next_step="Name another label_column, or write the rows as prompt and completion.",
        )


def to_example(
    value: Mapping[str, Any],
    format: DataFormat,
    text_column: str = "text",
    label_column: str = "label",
    system_prompt: str | None = None,
    labels: Collection[str] = (),
) -> Example:
    """The prompt and completion that a row becomes. Text is taken as it is, nothing is stripped or repaired.

    messages: the last message must be the assistant's and is the completion, all before it is the prompt.
    prompt_completion: strings become a user and an assistant message, lists are messages already.
    classification: the user says the text, the assistant answers with the label (whole numbers as text).
    `system_prompt` goes first where the row has no system message. Raises RowFault (a ValueError) with the reason.
    """
    if value.get("tools"):
        raise RowFault("unsupported", "the row declares tools, which are not covered")
    if format == "messages":
        conversation = _messages(value.get("messages"), "messages")
        prompt, completion = conversation[:-1], conversation[-1:]
    elif format == "prompt_completion":
        prompt = _side(value, "prompt", "user")
        completion = _side(value, "completion", "assistant")
    else:
        label = _label(value.get(label_column))
        if labels and label not in labels:
            raise RowFault("label", f"label {files.clean(label, 60)!r} is not one of the plan's labels")
        prompt = [{"role": "user", "content": _text(value.get(text_column), text_column)}]
        completion = [{"role": "assistant", "content": label}]
    _check(prompt, completion)
    if system_prompt and not any(message["role"] in _SYSTEM_ROLES for message in prompt):
        prompt = [{"role": "system", "content": system_prompt}, *prompt]
    return Example(prompt, completion)


def _side(value: Mapping[str, Any], key: str, role: str) -> list[Message]:
    content = value.get(key)
    if key in value and content is None:
        raise RowFault("empty", f"{key} is null")
    return [{"role": role, "content": content}] if isinstance(content, str) else _messages(content, key)


def _messages(value: object, key: str) -> list[Message]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise RowFault("shape", f"{key!r} is not a list of messages")
    if not value:
        raise RowFault("empty", f"{key!r} is an empty list")
    messages = []
    for place, message in enumerate(value, start=1):
        role, content = message.get("role"), message.get("content")
        if message.get("tool_calls") or message.get("function_call") or role in _TOOL_ROLES:
            raise RowFault("unsupported", f"message {place} uses tools, which are not covered")
        if isinstance(content, list):
            raise RowFault("unsupported", f"message {place} has content in parts; only text is covered")
        if not isinstance(role, str) or "content" not in message:
            raise RowFault("shape", f"message {place} lacks a role or a content")
        if role not in _ROLES:
            raise RowFault("role", f"message {place} has the unknown role {files.clean(role, 60)!r}")
        # transformers drops keys whose value is None before it renders; so does a row here
        messages.append({name: item for name, item in message.items() if item is not None})
    return messages


def _check(prompt: list[Message], completion: list[Message]) -> None:
    if completion[-1]["role"] != "assistant":
        raise RowFault("ending", f"the last message is the {completion[-1]['role']}'s, not the assistant's")
    if not any(message["role"] == "user" for message in prompt):
        raise RowFault("order", "there is nothing from the user before the last assistant message")
    for message in (*prompt, *completion):
        role = message["role"]
        _text(message.get("content"), f"the {role}'s content", blank=role in _SYSTEM_ROLES)
        for name, item in message.items():
            if name != "content" and isinstance(item, str):
                _text(item, name, blank=True)


def _text(value: object, name: str, *, blank: bool = False) -> str:
    if not isinstance(value, str):
        kind = "missing" if value is None else "not text"
        raise RowFault("empty" if value is None else "shape", f"{name} is {kind}")
    if not blank and not value.strip():
        raise RowFault("empty", f"{name} is empty")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowFault("encoding", f"{name} holds half of a surrogate pair, which no tokenizer accepts") from error
    return value


def _label(value: object) -> str:
    if isinstance(value, (bool, int)):
        return json.dumps(value)
    if isinstance(value, float):
        raise RowFault("label", "the label is a number with a fraction; classes are text or whole numbers")
    return _text(value, "the label")
