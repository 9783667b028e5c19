"""What PEFT makes of a LoRA config for a mixture of experts whose classes transformers 5 has changed.

Knows: the model types that PEFT 0.21 rewrites and how (utils/transformers_weight_conversion.py): names of expert
projections and of the router become target_parameters; shared experts and dense layers of the same names are lost.
Does not know: how the rewritten config is matched (reach.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from peftsmith.model.modules import Skeleton

_LIKE_MIXTRAL = {"gate": "gate.weight", "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"}
_LIKE_QWEN = {
    "gate": "gate.weight", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj",
}  # fmt: skip
# transformers' _MODEL_TO_CONVERSION_PATTERN, reversed; qwen2_moe itself is not in it, so PEFT leaves it alone.
_NAMES: dict[str, dict[str, str]] = {
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2"), _LIKE_MIXTRAL),
    **dict.fromkeys(
        ("afmoe", "beam", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe",
         "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "hunyuan_v1_moe",
         "longcat_flash", "mellum", "olmoe", "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_omni_moe_text",
         "qwen3_omni_moe_thinker", "solar_open"),
        _LIKE_QWEN,
    ),
}  # fmt: skip
FUSED = "gate_up_proj"


@dataclass(frozen=True)
class Conversion:
    """The fields as PEFT goes on with them, the names of modules that became parameters, and why PEFT would stop."""

    fields: Mapping[str, Any]
    names: tuple[str, ...] = ()
    refused: str | None = None


def names_of(model_type: str) -> Mapping[str, str]:
    """Module names that PEFT rewrites for this type, each to the parameter it takes instead; empty for most types."""
    return MappingProxyType(_NAMES.get(model_type, {}))


def converted(
    skeleton: Skeleton,
    fields: Mapping[str, Any],
    rank: int,
    all_linear: Callable[[Skeleton], Sequence[str]],
    matched: Callable[[Sequence[str], Mapping[str, Any]], Sequence[str]],
) -> Conversion:
    """PEFT's _convert_peft_config_moe: `all_linear` and `matched` are PEFT's own expansion and matching.

    The fused gate_up_proj takes twice the rank, as it holds two matrices.
    """
    known = _NAMES.get(skeleton.model_type)
    if not known:
        return Conversion(fields)
    value = fields.get("target_modules") or []
    if isinstance(value, str):
        value = _leaves(skeleton, {**fields, "target_modules": value}, known, all_linear, matched)
        if not value:
            return Conversion(fields)
    taken = {name: _old(name, known) for name in value}
    kept = [name for name, old in taken.items() if old is None]
    parameters = [*(fields.get("target_parameters") or ()), *(known[old] for old in taken.values() if old is not None)]
    names = tuple(name for name, old in taken.items() if old is not None)
    halves = {old for old, new in known.items() if new == FUSED}
    present = halves & set(taken.values())
    pattern = dict(fields.get("rank_pattern") or {})
    refused = None
    if present == halves:
        pattern[rf".*\.{FUSED}"] = rank * len(halves)
    elif present:
        refused = f"{' and '.join(sorted(halves))} are fused into {FUSED}: PEFT takes both or neither"
    changed = {"target_modules": kept, "target_parameters": list(dict.fromkeys(parameters)), "rank_pattern": pattern}
    return Conversion({**fields, **changed}, names, refused)


def _old(name: str, known: Mapping[str, str]) -> str | None:
    return next((old for old in known if name == old or name.endswith(f".{old}")), None)


def _leaves(
    skeleton: Skeleton,
    fields: Mapping[str, Any],
    known: Mapping[str, str],
    all_linear: Callable[[Skeleton], Sequence[str]],
    matched: Callable[[Sequence[str], Mapping[str, Any]], Sequence[str]],
) -> list[str]:
    """PEFT's _resolve_string_target_modules: the last parts of all paths that "all-linear" or the pattern reaches."""
    if str(fields["target_modules"]).lower() == "all-linear":
        return list(dict.fromkeys([*map(_leaf, all_linear(skeleton)), *known]))
    parameters = [f"{module.name}.{leaf}" for module in skeleton.modules for leaf in module.parameters]
    modules = [*(module.name for module in skeleton.modules), *skeleton.containers]
    found = dict.fromkeys(map(_leaf, matched([*modules, *parameters], fields)))
    holders: dict[str, dict[str, None]] = {}
    for parameter in parameters:
        holder, _, leaf = parameter.rpartition(".")
        holders.setdefault(leaf, {})[holder] = None
    for old, new in known.items():
        if old not in found and matched([f"{holder}.{old}" for holder in holders.get(new, ())], fields):
            found[old] = None
    return list(found)


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]
