"""Examples written down as rows again, in the column names that TRL and transformers take.

Knows: the columns of each kind of example, and the mapping under which such a row is read back as the same example.
Does not know: files and splits (prepare.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftsmith.data.examples import AnyExample, Chat, Classified, Judged, Message, Pair, Plain, Preference, Tagged
from peftsmith.data.mapping import Mapping as RowMapping
from peftsmith.plan import DataFormat

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
    (dataset_formats) and transformers' run_glue, run_ner, run_summarization."""
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
        case Pair(source, target):
            return {"source": source, "target": target}


def unprepared(row: Mapping[str, Any], example: AnyExample, format: DataFormat) -> str:
    """Why a generated script, which takes messages as they stand, would not see a row as `example`; "" if it does."""
    if not isinstance(example, Chat) or format not in ("messages", "prompt_completion"):
        return ""
    if example.tools:
        return "it declares tools, which the scripts do not pass on"
    written = to_row(example, format)
    if all(isinstance(row.get(name), str) or _without_nulls(row.get(name)) == side for name, side in written.items()):
        return ""
    return "it is not in the form that prepare_dataset writes"


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
