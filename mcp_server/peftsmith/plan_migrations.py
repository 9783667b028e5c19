"""Plans of older schemas brought to the next one.

Knows: what changed from each schema version of plan.yaml to the one after it.
Does not know: the present fields (plan.py); a document that is wrong stays wrong and is refused there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _from_1(old: dict[str, Any]) -> dict[str, Any]:
    """1 knew LoRA only: `kind` said whether its base was quantised, and `rslora` was a field of its own."""
    method = old.get("method")
    if not isinstance(method, dict):
        return old
    method = dict(method)
    kind = method.pop("kind", "lora")
    if kind not in ("lora", "qlora"):
        method["kind"] = kind  # refused by name
    elif (kind == "qlora") != (method.get("quantization") is not None):
        method["kind"] = f"{kind} {'without' if kind == 'qlora' else 'with'} quantization"
    if "rslora" in method:
        rslora = method.pop("rslora")
        if rslora:
            method["config"] = {**method.get("config", {}), "use_rslora": rslora}
    return {**old, "method": {"peft_type": "LORA", **method}}


# version -> function that turns a document of that version into one of the next
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
