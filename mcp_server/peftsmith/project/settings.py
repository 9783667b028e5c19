"""The settings block of a generated script: which name carries which plan value, and reading it back.

Knows: that a setting is a top-level `NAME = literal`, and how to write another value into it.
Does not know: what the values are for, or what the plan says (drift.py).
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from peftsmith.errors import PeftsmithError
from peftsmith.knowledge import methods
from peftsmith.project import literal

# setting -> the plan's dotted field; fields of PEFT's config follow below
_FIXED: dict[str, str] = {
    "BASE_MODEL": "base.model",
    "BASE_REVISION": "base.revision",
    "TRUST_REMOTE_CODE": "base.trust_remote_code",
    "TRAIN_FILE": "data.train",
    "EVAL_FILE": "data.eval",
    "TEST_FILE": "data.test",
    "TRAIN_FILES": "adapters.*.train",
    "EVAL_FILES": "adapters.*.eval",
    "TEST_FILES": "adapters.*.test",
    "SYSTEM_PROMPTS": "adapters.*.system_prompt",
    "LABELS_OF": "adapters.*.labels",
    "WEIGHTS": "mixture.*.weight",
    "TEXT_COLUMN": "data.text_column",
    "LABEL_COLUMN": "data.label_column",
    "LABELS": "data.labels",
    "SYSTEM_PROMPT": "data.system_prompt",
    "TOKENS_COLUMN": "data.columns.tokens",
    "TAGS_COLUMN": "data.columns.tags",
    "QUESTION_COLUMN": "data.columns.question",
    "CONTEXT_COLUMN": "data.columns.context",
    "ANSWERS_COLUMN": "data.columns.answers",
    "SOURCE_COLUMN": "data.columns.source",
    "TARGET_COLUMN": "data.columns.target",
    "RANK": "method.rank",
    "ALPHA": "method.alpha",
    "DROPOUT": "method.dropout",
    "TARGET_MODULES": "method.target_modules",
    "QUANTIZATION_TYPE": "method.quantization.type",
    "DOUBLE_QUANTIZATION": "method.quantization.double",
    "MAX_LENGTH": "training.max_length",
    "CHAT_TEMPLATE": "training.chat_template",
    "PADDING": "training.pad_token",
    "STRIDE": "training.stride",
    "MAX_ANSWER_TOKENS": "training.max_answer_tokens",
    "EPOCHS": "training.epochs",
    "BATCH_SIZE": "training.batch_size",
    "GRADIENT_ACCUMULATION": "training.gradient_accumulation",
    "LEARNING_RATE": "training.learning_rate",
    "SCHEDULE": "training.schedule",
    "WARMUP": "training.warmup",
    "OPTIMIZER": "training.optimizer",
    "WEIGHT_DECAY": "training.weight_decay",
    "MAX_GRAD_NORM": "training.max_grad_norm",
    "PRECISION": "training.precision",
    "GRADIENT_CHECKPOINTING": "training.gradient_checkpointing",
    "ATTENTION": "training.attention",
    "COMPILE": "training.compile",
    "DATALOADER_WORKERS": "training.dataloader_workers",
    "LOGGING_STEPS": "training.logging_steps",
    "SAVE_STEPS": "training.save_steps",
    "EVAL_STEPS": "training.eval_steps",
    "PATIENCE": "training.patience",
    "THRESHOLD": "training.threshold",
    "SEED": "training.seed",
}
# Names that a field of PEFT's config would take from one of these, or from the scripts' own constants.
_TAKEN = frozenset({"FOLDER", "DTYPE", "DEVICE"})


@cache
def fields() -> dict[str, str]:
    """Every setting that a script can have, with the plan's dotted field."""
    options = {field for name in (*methods.names(), *methods.bottlenecks()) for field in methods.method(name).fields}
    return {setting_of(field): f"method.config.{field}" for field in sorted(options)} | _FIXED


def setting_of(field: str) -> str:
    """The setting that carries a field of PEFT's config."""
    name = field.upper()
    return f"PEFT_{name}" if name in _FIXED or name in _TAKEN else name


def read(script_text: str) -> dict[str, Any]:
    """The settings that stand in a script as plain JSON-like literals, by name. PeftsmithError if it does not parse."""
    values = {}
    for name, node in _assignments(script_text).items():
        try:
            value = ast.literal_eval(node.value or ast.Constant(None))
            json.dumps(value, allow_nan=False)
        except (ValueError, TypeError, MemoryError, RecursionError):
            continue
        values[name] = value
    return values


def unreadable(script_text: str) -> list[str]:
    """Names of settings that are there but are not plain literals (`RANK = 8 * 2`, `RANK: int = ...` with a call)."""
    return sorted(set(_assignments(script_text)) - set(read(script_text)))


def patch(script_text: str, values: Mapping[str, Any]) -> str:
    """The script with these settings replaced and the rest as it is; PeftsmithError when one is not there."""
    places = _assignments(script_text)
    raw = script_text.encode("utf-8")
    starts = [0]
    for line in raw.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for name in sorted(values, key=lambda each: -places[each].lineno if each in places else 0):
        node = places.get(name)
        if node is None or node.end_lineno is None or node.end_col_offset is None:
            raise PeftsmithError("The script has no such setting", value=name, next_step="Generate the script again.")
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        raw = raw[:begin] + literal.setting(values[name], name).encode("utf-8") + raw[end:]
    return raw.decode("utf-8")


def _assignments(script_text: str) -> dict[str, ast.Assign | ast.AnnAssign]:
    """Each known setting's last top-level assignment."""
    try:
        tree = ast.parse(script_text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise PeftsmithError(
            f"The script does not parse: {error}", next_step="Mend it or generate it again."
        ) from error
    found: dict[str, ast.Assign | ast.AnnAssign] = {}
    for node in tree.body:
        target: ast.expr | None = None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target = node.target
        if isinstance(target, ast.Name) and target.id in fields() and isinstance(node, (ast.Assign, ast.AnnAssign)):
            found[target.id] = node
    return found
