"""How PEFT names an adapter's tensors.

Knows: lora_A and lora_B, DoRA's magnitudes, saved modules and embeddings, what can only come from a base model.
Does not know: shapes and values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any

_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out")
_OF_LORA = ("lora_", "trainable_tokens", "modules_to_save")


class Kind(Enum):
    """What a stored tensor is."""

    A = "lora_A"
    B = "lora_B"
    OTHER = "another part of an adapter"
    EMBEDDING = "a whole embedding or output matrix"
    FOREIGN = "a weight of the base model"


def kind_of(name: str, saved: Collection[str] = ()) -> Kind:
    """The kind of the tensor `name`; `saved` are modules that the config says are saved whole (or "*.bias")."""
    parts = name.split(".")
    if "lora_A" in parts or "lora_embedding_A" in parts:
        return Kind.A
    if "lora_B" in parts or "lora_embedding_B" in parts:
        return Kind.B
    if any(part.startswith(_OF_LORA) for part in parts):
        return Kind.OTHER
    if any(part in saved for part in parts) or ("*.bias" in saved and parts[-1] == "bias"):
        return Kind.EMBEDDING if any(part in _EMBEDDINGS for part in parts) else Kind.OTHER
    if any(part in _EMBEDDINGS for part in parts):
        return Kind.EMBEDDING
    return Kind.FOREIGN


def module_of(name: str) -> str:
    """The module that a LoRA tensor belongs to: its name up to lora_A or lora_B."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.startswith("lora_")), len(parts))
    return ".".join(parts[:at])


def saved_modules(config: Mapping[str, Any]) -> set[str]:
    """Names of modules that the config says are saved whole, and "*.bias" when biases are trained."""
    named = config.get("modules_to_save")
    saved = {str(name).rpartition(".")[2] for name in named} if isinstance(named, list) else set()
    return saved | ({"*.bias"} if config.get("bias") not in (None, "none") else set())
