"""Which column of a row holds what: the user's own names, or the usual ones.

Knows: the fields of each format and the column names under which public data sets keep them.
Does not know: what a field's value becomes (convert.py), or how a format is told from rows (formats.py).
"""

from __future__ import annotations

from collections.abc import Mapping as Lookup
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.plan_parts import Data, DataFormat

FORMATS: tuple[DataFormat, ...] = get_args(DataFormat)


@dataclass(frozen=True)
class Fields:
    """A format's fields, each with the column names that it usually has, the most usual first."""

    required: dict[str, tuple[str, ...]]
    optional: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def names(self) -> dict[str, tuple[str, ...]]:
        return {**self.required, **self.optional}


_TOOLS: dict[str, tuple[str, ...]] = {"tools": ("tools",)}
_SYSTEM: dict[str, tuple[str, ...]] = {"system": ("system", "system_prompt")}
# The most specific format first: a row with a preference may hold messages as well, one with labels a plain text.
FIELDS: dict[DataFormat, Fields] = {
    "preference": Fields(
        {"chosen": ("chosen",), "rejected": ("rejected",)},
        {"prompt": ("prompt", "question", "instruction", "conversations"), **_SYSTEM, **_TOOLS},
    ),
    "kto": Fields({"prompt": ("prompt",), "completion": ("completion",), "label": ("label",)}),
    "messages": Fields({"messages": ("messages",)}, _TOOLS),
    "sharegpt": Fields({"conversations": ("conversations", "conversation")}, {**_SYSTEM, **_TOOLS}),
    "prompt_completion": Fields({"prompt": ("prompt",), "completion": ("completion", "response")}, _TOOLS),
    "alpaca": Fields(
        {"instruction": ("instruction",), "output": ("output", "response")},
        {"input": ("input", "context"), "history": ("history",), **_SYSTEM},
    ),
    "token_classification": Fields({"tokens": ("tokens", "words"), "tags": ("tags", "ner_tags", "pos_tags", "labels")}),
    # Answers as SQuAD has them ({"text": [...], "answer_start": [...]}), or one text with its start beside it.
    "question_answering": Fields(
        {"question": ("question",), "context": ("context",), "answers": ("answers", "answer")},
        {"answer_start": ("answer_start",)},
    ),
    "classification": Fields(
        {"text": ("text", "sentence", "premise", "sentence1", "question1"), "label": ("label",)},
        {"second": ("text2", "text_pair", "hypothesis", "sentence2", "question2")},
    ),
    "seq2seq": Fields(
        {
            "source": ("source", "article", "document", "dialogue", "input_text", "question", "text", "input"),
            "target": ("target", "summary", "highlights", "target_text", "answer", "answers", "output"),
        },
        {"context": ("context",)},
    ),
    "text": Fields({"text": ("text",)}, {"prompt": ()}),
}


@dataclass(frozen=True)
class Mapping:
    """How rows are to be read; what is left out is worked out from the rows.

    `columns`: field (as FIELDS names them) -> column, with dots into nested objects ("translation.de").
    `roles`: role as the rows write it -> system, user, assistant or tool. `label_names`: the names of labels or tags
    that the rows hold as whole numbers from 0 on.
    """

    format: DataFormat | None = None
    columns: dict[str, str] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        format: DataFormat | None = None,
        columns: Lookup[str, str] | None = None,
        text_column: str = "text",
        label_column: str = "label",
        roles: Lookup[str, str] | None = None,
        label_names: tuple[str, ...] = (),
    ) -> Mapping:
        """A checked mapping; `text_column` and `label_column` are the older names of columns.text and columns.label.

        Raises PeftsmithError for a field that the format (or, without one, every format) lacks.
        """
        older = {name: column for name, column in (("text", text_column), ("label", label_column)) if column != name}
        named = {**older, **(columns or {})}
        known = FIELDS[format].names() if format else {name for each in FIELDS.values() for name in each.names()}
        unknown = sorted(set(columns or {}) - set(known))
        if unknown:
            who = f"The format {format}" if format else "Every format"
            raise PeftsmithError(
                f"{who} lacks the field {files.clean(unknown[0], 60)!r}",
                next_step=f"Name columns for: {', '.join(sorted(known))}.",
            )
        wrong = sorted(set((roles or {}).values()) - {"system", "user", "assistant", "tool"})
        if wrong:
            raise PeftsmithError(
                f"Rows cannot be mapped to the role {wrong[0]!r}", next_step="Map to system, user, assistant or tool."
            )
        kept = {name: column for name, column in named.items() if name in known}
        return cls(format, kept, dict(roles or {}), tuple(label_names))

    @classmethod
    def of_plan(cls, data: Data) -> Mapping:
        """The mapping that a plan's data section states."""
        return cls.of(
            data.format, data.columns, data.text_column, data.label_column, data.roles, tuple(data.label_names)
        )

    def with_format(self, format: DataFormat) -> Mapping:
        return replace(self, format=format)

    def column(self, row: Lookup[str, Any], name: str) -> str | None:
        """The column that holds the field `name`: the stated one, else the first usual one that this row has."""
        if name in self.columns:
            return self.columns[name]
        assert self.format is not None
        return next((usual for usual in FIELDS[self.format].names()[name] if usual in row), None)

    def has(self, row: Lookup[str, Any], name: str) -> bool:
        column = self.column(row, name)
        return column is not None and get(row, column) is not None

    def get(self, row: Lookup[str, Any], name: str) -> Any:
        """The field's value, None where the row lacks it."""
        column = self.column(row, name)
        return None if column is None else get(row, column)


def get(row: Lookup[str, Any], column: str) -> Any:
    """The value under a column name, or under a path with dots where no column has the whole name."""
    if column in row or "." not in column:
        return row.get(column)
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value
