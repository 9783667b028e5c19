"""The twin of a base model: the same architecture class, cut down until a processor trains it in seconds.

Knows: which numbers of a transformers configuration can shrink, and what must stay (vocabulary, tied embeddings,
grouped-query ratio, layer types, rope); seeded random weights.
Does not know: what is done with it (jobs/twin.py), or what the real model weighs (model/ in the control plane).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

HEAD = 16  # head dimension of a twin: small, even (rope), and divisible by every partial rotary factor in use
LAYERS = 2
# Small enough to be fast, different from each other so that a transposed weight cannot pass unnoticed.
EXPERTS, EXPERTS_PER_TOKEN, EXPERT_INTERMEDIATE = 4, 2, 48
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def build(config: dict[str, Any], tokenizer: Path, folder: Path, *, seed: int) -> dict[str, Any]:
    """Write a loadable twin of the model that `config` (config.json as a dict) describes into `folder`.

    Tokenizer, chat template and generation settings are the real ones, byte for byte. Returns what was built:
    architecture, parameters, layers, hidden, intermediate, heads, kv_heads, vocab, dtype, and `changed` (what could
    not stay as it is). Raises what transformers raises for a configuration that it does not know.
    """
    import torch
    import transformers

    folder.mkdir(parents=True)
    changed = []
    config = dict(config)
    for key, reason in (("quantization_config", "the base's own quantisation"), ("auto_map", "the base's own code")):
        if config.pop(key, None) is not None:
            changed.append(reason)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = transformers.AutoConfig.from_pretrained(folder)
    cut_down(loaded)
    transformers.set_seed(seed)
    dtype = loaded.dtype if isinstance(loaded.dtype, torch.dtype) else torch.float32
    model = transformers.AutoModelForCausalLM.from_config(loaded, dtype=dtype)
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    text = loaded.get_text_config()
    return {
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": text.num_hidden_layers,
        "hidden": text.hidden_size,
        "intermediate": getattr(text, "intermediate_size", None),
        "heads": text.num_attention_heads,
        "kv_heads": getattr(text, "num_key_value_heads", None),
        "vocab": text.vocab_size,
        "tied_embeddings": bool(loaded.tie_word_embeddings),
        "dtype": str(dtype).removeprefix("torch."),
        "changed": changed,
    }


def cut_down(config: Any) -> None:
    """Shrink a transformers configuration in place; the vocabulary and everything that is not a size stays."""
    text = config.get_text_config()
    old_layers = text.num_hidden_layers
    old_rotary = _head_dim(text)
    heads, kv_heads = small_heads(text.num_attention_heads, getattr(text, "num_key_value_heads", None))
    width = text.hidden_size / (text.num_attention_heads * _head_dim(text))  # 1.0 unless the head size is explicit
    text.hidden_size = max(2 * HEAD, round(heads * HEAD * width / HEAD) * HEAD)
    text.num_attention_heads = heads
    if getattr(text, "num_key_value_heads", None) is not None:
        text.num_key_value_heads = kv_heads
    if getattr(text, "head_dim", None) is not None:
        text.head_dim = HEAD
    if getattr(text, "intermediate_size", None) is not None:
        text.intermediate_size = 2 * text.hidden_size + HEAD
    for name, size in (
        ("num_local_experts", EXPERTS),
        ("num_experts", EXPERTS),
        ("num_experts_per_tok", EXPERTS_PER_TOKEN),
        ("moe_intermediate_size", EXPERT_INTERMEDIATE),
        ("shared_expert_intermediate_size", EXPERT_INTERMEDIATE),
    ):
        if getattr(text, name, None):
            setattr(text, name, size)
    kept = one_of_each(getattr(text, "layer_types", None), old_layers)
    text.num_hidden_layers = len(kept)
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == old_layers > len(kept):
            setattr(text, name, [value[index] for index in kept])
    rope = getattr(text, "rope_parameters", None) or {}
    for key, value in rope.items():
        if isinstance(value, list) and len(value) * 2 == old_rotary:  # longrope: one factor per frequency
            rope[key] = value[: HEAD // 2]


def small_heads(heads: int, kv_heads: int | None) -> tuple[int, int]:
    """(query heads, key/value heads) of the same kind: equal, a single shared one, or grouped in the same ratio."""
    if kv_heads is None or kv_heads >= heads:
        return 4, 4
    if kv_heads == 1:
        return 4, 1
    return 2 * min(heads // kv_heads, 8), 2


def one_of_each(types: list[str] | None, layers: int) -> list[int]:
    """Indices of the layers to keep: the first of every type, at least two where there are two."""
    kept = sorted({types.index(kind) for kind in set(types)}) if types else []
    for index in range(layers):
        if len(kept) >= min(LAYERS, layers):
            break
        if index not in kept:
            kept.append(index)
    return sorted(kept)


def _head_dim(text: Any) -> int:
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
