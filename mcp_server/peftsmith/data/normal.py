"""Examples written down as rows again, in the column names that TRL and transformers take.

Knows: the columns of each kind of example, and the mapping under which such a row is read back as the same example.
Does not know: files and splits (prepare.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from peftsmith.data.examples import (
    Answered,
    AnyExample,
    Chat,
    Classified,
    Judged,
    Message,
    Pair,
    Plain,
    Preference,
    Tagged,
)
from peftsmith.data.mapping import Mapping as RowMapping
from peftsmith.plan_parts import Data, DataFormat

_PREPARE = "it is not in the form that prepare_dataset writes"
# What rows of a format are written as: one way to write each kind down.
WRITTEN_AS: dict[DataFormat, DataFormat] = {"sharegpt": "messages", "alpaca": "messages"}


def mapping_of(format: DataFormat) -> RowMapping:
    """The mapping under which rows that to_row wrote for `format` are read back."""
    written = WRITTEN_AS.get(format, format)
    if written == "text":
        return RowMapping(written, {"prompt": "prompt"})
    return RowMapping(written)


def to_row(example: AnyExample, format: DataFormat) -> dict[str, Any]:
    """One normalised row. Chats keep prompt and completion apart where the source had them so, as text where a plain
    question has a plain answer; else they are `messages`. Tool schemas stand in `tools`. Columns: docs of TRL 1.16
    (dataset_formats) and transformers' run_glue, run_ner, run_qa, run_summarization."""
    match example:
        case Chat(prompt, completion, tools):
            if format == "prompt_completion":
                plain = _plain(prompt, "user"), _plain(completion, "assistant")
                sides = plain if None not in plain else (prompt, completion)
                return {"prompt": sides[0], "completion": sides[1], **_tools(tools)}
            return {"messages": [*prompt, *completion], **_tools(tools)}
        case Plain(prompt, completion):
            return {"prompt": prompt, "text": completion} if prompt else {"text": completion}
        case Preference(prompt, chosen, rejected, tools):
            return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **_tools(tools)}
        case Judged(prompt, completion, desirable):
            return {"prompt": prompt, "completion": completion, "label": desirable}
        case Classified(text, label, second):
            return {"text": text, **({} if second is None else {"text_pair": second}), "label": label}
        case Tagged(words, tags):
            return {"tokens": words, "ner_tags": tags}
        case Answered(question, context, answers, starts):
            return {"question": question, "context": context, "answers": {"text": answers, "answer_start": starts}}
        case Pair(source, target):
            return {"source": source, "target": target}


def unprepared(row: Mapping[str, Any], example: AnyExample, data: Data) -> str:
    """Why a generated script, which takes the columns as they stand, would not see a row as `example`; "" if it does.

    Covers chats, classes and answers; other kinds have trainers of their own.
    """
    if isinstance(example, Classified):
        seen = row.get(data.text_column), _label(row.get(data.label_column))
        return "" if seen == (example.text, example.label) and example.second is None else _PREPARE
    if isinstance(example, Answered):
        held = row.get(data.columns.get("answers", "answers"))
        return "" if held == {"text": example.answers, "answer_start": example.starts} else _PREPARE
    if not isinstance(example, Chat):
        return ""
    if example.tools:
        return "it declares tools, which the scripts do not pass on"
    if data.format not in ("messages", "prompt_completion"):
        return _PREPARE
    turns = [*example.prompt, *example.completion]
    sides = {"messages": turns} if data.format == "messages" else vars(example)
    names = ("messages",) if data.format == "messages" else ("prompt", "completion")
    same = all(isinstance(row.get(name), str) or _without_nulls(row.get(name)) == sides[name] for name in names)
    return "" if same else _PREPARE


def _label(value: Any) -> Any:
    return value if isinstance(value, str) else json.dumps(value)


def _without_nulls(side: Any) -> Any:
    if not isinstance(side, list):
        return side
    return [{name: item for name, item in message.items() if item is not None} for message in side]


def _tools(tools: list[dict[str, Any]] | None) -> dict[str, Any]:
    return {"tools": tools} if tools else {}


def _plain(side: list[Message], role: str) -> str | None:
    """The text of a side that is one message of `role` with nothing but its content."""
    only = side[0] if len(side) == 1 else {}
    content: str | None = only.get("content") if only.get("role") == role and len(only) == 2 else None
    return content
