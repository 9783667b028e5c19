"""What config.json says of a model under its many names: sizes, layer kinds, experts, towers, stored quantisation.

Knows: the names that architectures give to the same thing, and the quantisers that transformers loads.
Does not know: modules (layouts.py, stored.py), or what any of it costs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from peftsmith import files
from peftsmith.model import catalogue
from peftsmith.model.modules import Skeleton
from peftsmith.model.roles import role

NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model", "dim", "model_dim", "embed_dim"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "attention_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", "num_query_groups"),
    "head_dim": ("head_dim", "d_kv", "kv_channels", "attention_head_dim"),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size", "encoder_ffn_dim", "dim_ff"),
    "vocab": ("vocab_size", "padded_vocab_size"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"),
}
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN = ("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_k", "num_selected_experts")
_METHODS = ("gptq", "awq", "bitsandbytes", "fp8", "fbgemm_fp8", "mxfp4", "torchao", "compressed-tensors", "hqq", "aqlm",
            "eetq", "quanto", "higgs", "spqr", "vptq", "bitnet", "auto-round", "finegrained_fp8")  # fmt: skip
_DETAIL = ("bits", "group_size", "desc_act", "w_bit", "q_group_size", "load_in_4bit", "load_in_8bit",
           "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "modules_to_not_convert", "format", "quant_type",
           "weight_block_size", "sym", "nbits")  # fmt: skip
_MOST_LISTED = 12


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model."""
    for name in ("text_config", "llm_config", "language_config", "decoder"):
        part = config.get(name)
        if isinstance(part, Mapping):
            return part
    return config


_LAYER = re.compile(r"(.+?)\.(\d+)(?:\.|$)")


def sizes(config: Mapping[str, Any], body: Skeleton | None) -> dict[str, int]:
    """Layers, hidden, intermediate, heads, kv_heads, head_dim, vocab of the language model; 0 where there is none.

    Sizes that a skeleton shows come from it, since a config may leave them to its class's defaults.
    """
    text = text_part(config)
    found = {name: _first(text, keys) or _first(config, keys) or _default(config, keys) for name, keys in NAMES.items()}
    if body is not None:
        found |= _seen(body)
    found["head_dim"] = found["head_dim"] or (found["hidden"] // found["heads"] if found["heads"] else 0)
    if text.get("multi_query") is True and not text.get("new_decoder_architecture"):
        found["kv_heads"] = 1
    found["kv_heads"] = found["kv_heads"] or found["heads"]
    found["intermediate"] = found["intermediate"] or 4 * found["hidden"]
    return {name: found[name] if body is not None else 0 for name in NAMES}


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    return next((config[key] for key in keys if type(config.get(key)) is int and 0 < config[key] < 10**9), 0)


def _default(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return 0
    for task in catalogue.tasks(kind):
        fields = (catalogue.entry(kind, task) or {}).get("fields", {})
        named = [f"text_config.{key}" for key in keys]
        return next((fields[key] for key in (*named, *keys) if type(fields.get(key)) is int), 0)
    return 0


def _seen(body: Skeleton) -> dict[str, int]:
    """What the modules themselves show: the embedding's rows and width, and the layers of the longest text stack."""
    found: dict[str, int] = {}
    embedding = max(
        (m for m in body.modules if m.kind == "embedding" and role(m.name) != "tower"),
        key=lambda m: m.inputs,
        default=None,
    )
    if embedding is not None:
        found["vocab"] = embedding.inputs
    layers = {hit.groups() for m in body.modules if (hit := _LAYER.match(m.name)) and role(m.name) != "tower"}
    if layers:
        found["layers"] = max(Counter(stack for stack, _ in layers).values())
    return found


def layer_kinds(body: Skeleton | None, config: Mapping[str, Any]) -> dict[str, int] | None:
    """How many layers of each type a hybrid has; None for models whose layers are all alike."""
    kinds = text_part(config).get("layer_types") or text_part(config).get("layers_block_type")
    if not isinstance(kinds, list) or len(set(map(str, kinds))) < 2:
        return None
    return dict(Counter(files.clean(str(kind), 40) for kind in kinds).most_common(_MOST_LISTED))


def experts(body: Skeleton | None, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Experts in all, those that a token is sent to, whether they are one 3-D parameter, shared ones and routers."""
    text = text_part(config)
    count = _first(text, _EXPERT_COUNTS)
    fused = [m for m in body.modules if m.kind == "experts"] if body else []
    single = any(".experts." in m.name for m in body.modules) if body else False
    if not count and not fused and not single:
        return None
    return {
        "count": count or (next(iter(fused[0].parameters.values()))[0] if fused else None),
        "per_token": _first(text, _PER_TOKEN) or None,
        "fused": bool(fused),
        "layers": len(fused) or None,
        "shared": any("shared_expert" in m.name for m in body.modules) if body else None,
        "routers": sum(role(m.name) == "router" for m in body.modules) if body else None,
    }


def towers(body: Skeleton | None) -> dict[str, int] | None:
    """Parameters of vision and audio towers and their projectors, by the first part of the path that names them."""
    found: Counter[str] = Counter()
    for module in body.modules if body else ():
        if role(module.name) == "tower":
            parts = module.name.split(".")
            path = next(
                ".".join(parts[: n + 1]) for n in range(len(parts)) if role(".".join(parts[: n + 1])) == "tower"
            )
            found[path] += module.elements
    return dict(found.most_common(_MOST_LISTED)) or None


def quantization(config: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """(scheme, details) of weights that are stored quantised: "gptq", "awq", "bitsandbytes-4bit" ..., or (None, {})."""
    body = config.get("quantization_config", config.get("quantization"))
    if not body:
        return None, {}
    if not isinstance(body, Mapping) or not isinstance(body.get("quant_method"), str):
        return "unknown", {}
    method = body["quant_method"]
    detail = {
        name: body[name] if isinstance(body[name], bool | int | type(None)) else files.clean(str(body[name]), 200)
        for name in _DETAIL
        if name in body
    }
    bits = "-4bit" if body.get("load_in_4bit") is True else "-8bit" if body.get("load_in_8bit") is True else ""
    if method in ("gptq", "awq") and type(body.get("bits")) is int:
        bits = f"-{body['bits']}bit"
    known = method if method in _METHODS else files.clean(method, 40)
    return known + bits, detail


def group_size(detail: Mapping[str, Any]) -> int | None:
    """Inputs that share a scale, from a quantisation's details; -1: all of them, None: not stated."""
    for name in ("group_size", "q_group_size"):
        value = detail.get(name)
        if type(value) is int and (value == -1 or 0 < value <= 1 << 20):
            return value
    return None
