"""Rows and settings in the words of a real trainer, and its batches in ours: how fast path and trainer are compared.

Knows: the columns of each trainer's data set, the keywords of its config, what the job collate asks and answers.
Does not know: how either side makes its labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peftsmith.data.batches import Batch
from peftsmith.data.examples import AnyExample, Chat, Judged, Plain, Preference
from peftsmith.data.labels import Settings

_SFT = (
    "completion_only_loss", "assistant_only_loss", "max_length", "truncation_mode", "packing", "packing_strategy",
    "padding_free", "pad_to_multiple_of", "eos_token", "pad_token",
)  # fmt: skip
_OPTIONS: dict[str, tuple[str, ...]] = {
    "sft": _SFT,
    "dpo": ("max_length", "truncation_mode", "pad_to_multiple_of"),
    "kto": ("max_length",),
    "classification": ("max_length", "pad_to_multiple_of"),
    "tagging": ("max_length", "pad_to_multiple_of"),
    "answers": ("max_length", "stride", "pad_to_multiple_of"),
    "seq2seq": ("max_length", "max_target_length", "pad_to_multiple_of"),
}


def case(folder: Path, examples: Sequence[AnyExample], settings: Settings, batch: int) -> dict[str, Any]:
    """What the job collate needs to let the real trainer make batches of `batch` rows; `folder` is the tokenizer's."""
    return {
        "tokenizer": str(folder),
        "template": settings.template,
        "trainer": settings.trainer,
        "options": {name: getattr(settings, name) for name in _OPTIONS[settings.trainer]},
        "rows": columns(examples, settings),
        "batch": batch,
        "labels": list(settings.labels),
    }


def columns(examples: Sequence[AnyExample], settings: Settings) -> list[dict[str, Any]]:
    """Rows as the trainer's data set takes them. Every row has every column: a table takes them from its first row.

    Tools travel as JSON text, which TRL reads: a table would fill up their different schemas with nulls.
    """
    rows = [_columns(each, settings) for each in examples]
    if all(row.get("tools") is None for row in rows):
        for row in rows:
            row.pop("tools", None)
    return rows


def _columns(example: AnyExample, settings: Settings) -> dict[str, Any]:
    if isinstance(example, Chat):
        tools = _tools(example.tools)
        if settings.columns == "messages":
            return {"messages": example.prompt + example.completion, "tools": tools}
        return {"prompt": example.prompt, "completion": example.completion, "tools": tools}
    if isinstance(example, Plain):
        if example.prompt:
            return {"prompt": example.prompt, "completion": example.completion}
        return {"text": example.completion}
    if isinstance(example, Judged):
        return {"prompt": example.prompt, "completion": example.completion, "label": example.desirable}
    made = {name: value for name, value in asdict(example).items() if name != "tools"}
    return {**made, "tools": _tools(example.tools)} if isinstance(example, Preference) else made


def _tools(tools: list[dict[str, Any]] | None) -> str | None:
    return None if tools is None else json.dumps(tools, ensure_ascii=False)


def read(batch: Mapping[str, Any], settings: Settings) -> Batch:
    """A batch of the job collate's answer."""
    if settings.trainer == "answers":
        places = zip(batch["start_positions"], batch["end_positions"], strict=True)
        return Batch(batch["input_ids"], [list(each) for each in places], batch.get("attention_mask"))
    labels = batch["completion_mask"] if settings.trainer in ("dpo", "kto") else batch["labels"]
    if settings.trainer == "classification":
        labels = [[label] for label in labels]
    return Batch(batch["input_ids"], labels, batch.get("attention_mask"), batch.get("position_ids"))
