"""What every PEFT method costs on a module and on a model, without torch.

Knows: which function and table row belong to a PeftType, and which figures are bounds only.
Does not know: how memory adds up over a training step (memory.py) or what to target (targets.py).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from peftsmith.errors import PeftsmithError
from peftsmith.model import methods_delta, methods_lora, methods_model, methods_rotation
from peftsmith.model.methods_base import Adapter, Cost, CostUnknown, Numbers, Options
from peftsmith.model.methods_model import ModelCost, Sizes
from peftsmith.model.methods_table import price
from peftsmith.model.modules import Module

__all__ = [
    "APPROXIMATE", "METHODS", "WHOLE_MODEL", "Cost", "CostUnknown", "ModelCost", "Numbers", "Sizes", "cost", "costs",
    "trainable", "whole_model",
]  # fmt: skip

_MODULE: Mapping[str, Callable[[Module, Options], Adapter]] = {
    "ADALORA": methods_lora.adalora, "ADAMSS": methods_delta.adamss, "BEFT": methods_rotation.beft,
    "BOFT": methods_rotation.boft, "C3A": methods_delta.c3a, "DEFT": methods_delta.deft, "DELORA": methods_lora.delora,
    "FOURIERFT": methods_delta.fourierft, "FROD": methods_delta.frod, "GLORA": methods_delta.glora,
    "GRALORA": methods_lora.gralora, "HIRA": methods_delta.hira, "HRA": methods_rotation.hra,
    "IA3": methods_rotation.ia3, "LILY": methods_lora.lily, "LN_TUNING": methods_rotation.ln_tuning,
    "LOHA": methods_delta.loha, "LOKR": methods_delta.lokr, "LORA": methods_lora.lora, "MISS": methods_delta.miss,
    "OFT": methods_rotation.oft, "OSF": methods_lora.osf, "PEANUT": methods_delta.peanut, "POLY": methods_lora.poly,
    "PSOFT": methods_rotation.psoft, "PVERA": methods_lora.pvera, "RANDLORA": methods_lora.randlora,
    "ROAD": methods_rotation.road, "SHIRA": methods_delta.shira, "SUPERTUNING": methods_delta.supertuning,
    "TINYLORA": methods_lora.tinylora, "TRAINABLE_TOKENS": methods_rotation.trainable_tokens,
    "UNILORA": methods_lora.unilora, "VBLORA": methods_lora.vblora, "VERA": methods_lora.vera,
    "WAVEFT": methods_delta.waveft,
}  # fmt: skip
# Methods that adapt the model and not single linear modules; `cost` refuses them, `whole_model` has all they add.
WHOLE_MODEL: frozenset[str] = frozenset(methods_model.ALONE)
METHODS: tuple[str, ...] = tuple(sorted({*_MODULE, *WHOLE_MODEL}))
# Bytes kept or used are bounds or leave something out; why is said where each is worked out. Parameters are exact
# but for ADAMSS (clustering), SHADOW (Llama's layout) and XLORA (the adapters it mixes).
APPROXIMATE: frozenset[str] = frozenset(
    {"ADAMSS", "ADAPTION_PROMPT", "BOFT", "CARTRIDGE", "CPT", "HRA", "LN_TUNING", "MULTITASK_PROMPT_TUNING", "OSF",
     "PEANUT", "POLY", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "SHADOW", "WAVEFT", "XLORA"}
)  # fmt: skip


def cost(method: str, module: Module, options: Mapping[str, Any], numbers: Numbers) -> Cost:
    """What `method` (PEFT's PeftType) adds to one module; `options` are its config's fields, PEFT's defaults behind.

    `trainable` counts parameters that belong to this module alone and `frozen` elements it holds besides; what all
    modules share is in `whole_model`. `saved_per_token` is what autograd keeps for each token beyond the frozen
    layer, `saved` what it keeps regardless of tokens; of the former `shared_input_per_token` is the module's own
    input, which modules with the same input keep once. Temporaries live only during the module's forward or backward
    pass; a frozen layer's own input, output and their gradients are not among them, nor are parameters' gradients.
    Convolutions are priced with their kernel unfolded, an upper bound.
    Raises PeftsmithError for an unknown method or a module or option that PEFT would refuse.
    """
    return costs(method, {module.name: module}, options, numbers)[module.name]


def costs(method: str, modules: Mapping[str, Module], options: Mapping[str, Any], numbers: Numbers) -> dict[str, Cost]:
    """`cost` of several modules, under the same keys. Modules that only their layer's number tells apart cost the
    same, unless an option may be a pattern that a number matches."""
    if method in WHOLE_MODEL:
        raise PeftsmithError(
            f"{method} does not adapt single modules", next_step="Ask whole_model what it adds to a model."
        )
    adapter, given = _known(method), Options(method, options, numbers)
    by_number = any(map(_may_be_pattern, options.values()))
    found: dict[Hashable, Cost] = {}
    every = {}
    for name, module in modules.items():
        alike = module.name if by_number else module.alike
        if alike not in found:
            found[alike] = price(adapter(module, given), module, numbers)
        every[name] = found[alike]
    return every


def _may_be_pattern(value: Any) -> bool:
    return value not in (None, {}, []) and not isinstance(value, (int, float)) and not str(value).isidentifier()


def whole_model(
    method: str, sizes: Sizes, options: Mapping[str, Any], numbers: Numbers, adapted: Sequence[Module]
) -> ModelCost:
    """What `method` adds once to a model whose `adapted` modules it wraps, beyond the sum of their `cost`.

    Raises PeftsmithError for an unknown method or options that PEFT would refuse.
    """
    if method not in WHOLE_MODEL:
        _known(method)
    return methods_model.shared(method, sizes, options, numbers, adapted)


def trainable(method: str, sizes: Sizes, options: Mapping[str, Any], adapted: Sequence[Module]) -> int:
    """All trainable parameters of the method on a model; number formats do not change them."""
    numbers = Numbers(2, 4, False, False)
    parts = 0 if method in WHOLE_MODEL else sum(cost(method, m, options, numbers).trainable for m in adapted)
    return parts + whole_model(method, sizes, options, numbers, adapted).trainable


def _known(method: str) -> Callable[[Module, Options], Adapter]:
    if method not in _MODULE:
        raise CostUnknown(
            "no cost is known for this PEFT method", value=method, next_step=f"Known are: {', '.join(METHODS)}."
        )
    return _MODULE[method]
