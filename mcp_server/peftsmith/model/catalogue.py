"""The committed catalogue of architectures: one line a model type and task, read one line at a time.

Knows: how to find an entry, and how the widths in it are worked out (sums of products of config fields).
Does not know: how the entries were made (worker/catalogue.py; remote-code types by hand), or what config.json says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache, lru_cache
from importlib import resources
from typing import Any

FILES = ("architectures.jsonl", "architectures_remote.jsonl")
TASKS = ("causal-lm", "seq2seq", "image-text", "masked-lm", "sequence-classification")
_NUMBER = re.compile(r"-?\d+")


@cache
def _lines() -> Mapping[str, str]:
    """Key ("llama:causal-lm") to its line, unparsed."""
    found = {}
    for name in FILES:
        text = resources.files("peftsmith").joinpath("knowledge", name).read_text(encoding="utf-8")
        found.update({line[8 : line.index('"', 8)]: line for line in text.splitlines() if line})
    return found


@lru_cache(maxsize=64)
def entry(model_type: str, task: str) -> Mapping[str, Any] | None:
    """What is known of a model type as a class of this task; None when it is not in the catalogue."""
    line = _lines().get(f"{model_type}:{task}")
    return None if line is None else json.loads(line)


def tasks(model_type: str) -> tuple[str, ...]:
    """The tasks for which this type is in the catalogue, the most usual first."""
    return tuple(task for task in TASKS if f"{model_type}:{task}" in _lines())


def has_experts(model_type: str) -> bool:
    """Has a language model of this type experts of which some are chosen for each token? False for unknown types."""
    known = entry(model_type, "causal-lm")
    return known is not None and any(module[0] == "experts" for module in known["modules"].values())


def types() -> tuple[str, ...]:
    """Every model type of the catalogue."""
    return tuple(sorted({key.partition(":")[0] for key in _lines()}))


@lru_cache(maxsize=16384)
def _parsed(text: str) -> tuple[tuple[tuple[str, str], ...], ...]:
    return tuple(tuple(re.findall(r"(^|[*/])([^*/]+)", term)) for term in text.split("+"))


def width(text: str, value: Callable[[str], int]) -> Fraction:
    """The number that `text` ("2*hidden_size/num_attention_heads+head_dim") stands for; `value` gives a field's."""
    total = Fraction(0)
    for term in _parsed(text):
        product = Fraction(1)
        for operator, part in term:
            number = int(part) if _NUMBER.fullmatch(part) else value(part)
            product = product / number if operator == "/" else product * number
        total += product
    return total


def fields_in(text: str) -> set[str]:
    """The config fields that a formula reads."""
    return {part for term in _parsed(text) for _, part in term if not _NUMBER.fullmatch(part)}
