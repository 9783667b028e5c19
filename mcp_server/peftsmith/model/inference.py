"""Memory and disk after training: generation with an adapter, merging, and many adapters side by side.

Knows: weights, key/value cache, what a merge holds, the size of an adapter. Does not know: training (memory.py), or
what a server adds for itself.
"""

from __future__ import annotations

from typing import Any

from peftsmith.model.anatomy import Anatomy
from peftsmith.model.request import PRECISION_BYTES, Request

GIB = 1 << 30
# merge.py holds the base in float32, and of the layer that it works on the delta (peft tuners/lora/layer.py, merge).
_MERGE_BYTES = 4


def afterwards(anatomy: Anatomy, request: Request, trainable: int) -> dict[str, Any]:
    """GiB for generation at the request's batch and length, for merging, and for N adapters on disk and in memory."""
    number = PRECISION_BYTES[request.precision]
    base = anatomy.parameters * number
    cache = key_value_cache(anatomy, rows=request.batch_size, tokens=request.sequence_length, number=number)
    widest = max((i * o for i, o in anatomy.linear.values()), default=0)
    adapter_on_disk = 4 * trainable if request.peft_type is not None else base
    return {
        "inference_gib": _gib(base + cache + (4 * trainable if request.peft_type else 0)),
        "key_value_cache_gib": _gib(cache),
        "merge_gib": _gib(_MERGE_BYTES * (anatomy.parameters + trainable + widest)),
        "adapter_on_disk_gib": _gib(adapter_on_disk),
        "adapters": [
            {
                "count": count,
                "disk_gib": _gib(count * adapter_on_disk),
                "in_memory_gib": _gib(count * number * trainable),
            }
            for count in (1, 10, 100)
        ]
        if request.peft_type is not None
        else [],
    }


def key_value_cache(anatomy: Anatomy, *, rows: int, tokens: int, number: int) -> int:
    """Bytes: a key and a value for each token, key/value head and layer."""
    return 2 * number * anatomy.layers * anatomy.kv_heads * anatomy.head_dim * rows * tokens


def _gib(size: float) -> float:
    return round(size / GIB, 4)
