"""8-bit weights on a processor, where PEFT 0.21.2 loses their scales.

Knows: which of PEFT's functions to replace so that DoRA on a base in 8 bits computes as it does on a GPU.
Does not know: whether a plan may want that (project/fitness.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SWAPPED = "unpacking 8-bit weights (on the processor PEFT's DoRA would lose their scales)"


def concerns(plan: Mapping[str, Any]) -> bool:
    """Does the plan train DoRA on a base in 8 bits?"""
    method = plan["method"]
    bits = (method.get("quantization") or {}).get("bits")
    return bits == 8 and bool((method.get("config") or {}).get("use_dora"))


def keep_scales() -> None:
    """Leave 8-bit weights where they are when PEFT unpacks them, as it does with weights on a GPU.

    peft/utils/integrations.py, dequantize_module_weight, moves a weight on the processor "back" to it; bitsandbytes
    makes a new weight of that, without the scales that a first forward pass has taken out of the old one.
    """
    from peft.tuners.lora import dora, layer, variants
    from peft.utils import integrations

    unpack = integrations.dequantize_module_weight

    def unpack_in_place(module: Any) -> Any:
        if type(module.weight).__name__ == "Int8Params":
            return integrations.dequantize_bnb_weight(module.weight, state=module.state)
        return unpack(module)

    for place in (integrations, dora, layer, variants):
        place.dequantize_module_weight = unpack_in_place
