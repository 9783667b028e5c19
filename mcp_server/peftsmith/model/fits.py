"""What fits into a given memory: the largest batch and length, the cheapest changes, and a table of alternatives.

Knows: how an estimate answers "does it fit" (by its upper bound), which changes there are, in order of their price.
Does not know: how an estimate is made (memory.py), or which GPU has how much memory (speed.py's catalogue).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from peftsmith.errors import PeftsmithError
from peftsmith.model import memory
from peftsmith.model.anatomy import Anatomy
from peftsmith.model.request import Request

GIB = memory.GIB
_MOST_DOUBLINGS = 16
_LENGTH_STEP = 8
_DEVICES = (2, 4, 8)


def what_fits(anatomy: Anatomy, request: Request, gib: float) -> dict[str, Any]:
    """What fits into `gib` GiB of device memory, by the upper bound: this request, the largest batch (a power of two)
    at its length, the longest rows at its batch, and the cheapest changes that would make it fit, in order."""
    if not 0 < gib < 1e6:
        raise PeftsmithError("The memory must be a positive number of GiB", value=gib, next_step="Try 24.")

    request = replace(request, device_bytes=int(gib * GIB))

    def fits(**changes: Any) -> bool:
        return needs(anatomy, replace(request, **changes)) <= gib * GIB

    batches = [1 << n for n in range(_MOST_DOUBLINGS)]
    steps = (anatomy.max_positions or 1 << 20) // _LENGTH_STEP
    longest = _largest(steps, lambda number: fits(sequence_length=number * _LENGTH_STEP))
    fitting = fits()
    return {
        "gib": gib,
        "fits": fitting,
        "needs_gib": round(needs(anatomy, request) / GIB, 3),
        "largest_batch": next((size for size in reversed(batches) if fits(batch_size=size)), None),
        "longest_sequence": longest * _LENGTH_STEP if longest else None,
        "changes": [] if fitting else changes(anatomy, request, gib),
    }


def needs(anatomy: Anatomy, request: Request) -> int:
    """Bytes of the device to plan with."""
    return memory.estimate(anatomy, request).device.high


def changes(anatomy: Anatomy, request: Request, gib: float) -> list[dict[str, Any]]:
    """Changes tried one after the other, each kept until the job fits: first those that cost nothing but time."""
    tried = []
    request = replace(request, device_bytes=int(gib * GIB))
    for what, change in _cheapest_first(request, quantised=bool(anatomy.quantization)):
        request = replace(request, **change)
        high = needs(anatomy, request)
        tried.append({"change": what, "set": change, "needs_gib": round(high / GIB, 3), "fits": high <= gib * GIB})
        if tried[-1]["fits"]:
            break
    return tried


def _cheapest_first(request: Request, *, quantised: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    if request.loss == "stock" and request.task == "sft":
        yield "TRL's chunked loss (no price)", {"loss": "trl_chunked"}
    if not request.gradient_checkpointing:
        yield "gradient checkpointing (about a third slower)", {"gradient_checkpointing": True}
    if request.peft_type is None:
        yield "LoRA on all linear layers instead of all weights", {"method": "lora"}
        request = replace(request, method="lora")
    if request.peft_type == "LORA" and request.base_format in (None, "none") and not quantised:
        yield "qlora: the base in 4 bits (slower; merge into the 16-bit base)", {"method": "qlora"}
    if request.optimizer in ("adamw_torch", "adamw_torch_fused"):
        yield "an optimiser with 8-bit states", {"optimizer": "adamw_8bit"}
    batch = request.batch_size // 2
    while batch:
        yield f"batch_size {batch}, gradient_accumulation doubled", {"batch_size": batch}
        batch //= 2
    if request.offload == "none":
        yield "optimiser states in main memory (slower steps)", {"offload": "optimizer"}
    if request.gpus == 1 and request.sharding == "none":
        for count in _DEVICES:
            yield f"the model shared out over {count} GPUs (FSDP2)", {"gpus": count, "sharding": "fsdp2"}
    length = request.sequence_length // 2
    while length >= 256:
        yield f"rows cut at {length} tokens (loses what is longer)", {"sequence_length": length}
        length //= 2


def alternatives(anatomy: Anatomy, request: Request) -> list[dict[str, Any]]:
    """The same job done otherwise, cheapest first: what each needs of the device, likely and at most, in GiB."""
    variants: list[tuple[str, dict[str, Any]]] = [("as asked", {})]
    if not anatomy.quantization:
        variants += [
            ("full fine-tuning", {"method": "full", "quantization": None}),
            ("LoRA", {"method": "lora", "quantization": None}),
            ("QLoRA (NF4)", {"method": "qlora", "quantization": None}),
            ("LoRA on an 8-bit base", {"method": "lora", "quantization": "int8"}),
        ]
    variants += [
        ("checkpointing " + ("off" if request.gradient_checkpointing else "on"),
         {"gradient_checkpointing": not request.gradient_checkpointing}),
        ("FlashAttention", {"attention": "flash"}),
        ("the stock loss on all logits", {"loss": "stock"}),
        ("fused loss (Liger, cut cross-entropy)", {"loss": "liger"}),
        ("8-bit AdamW", {"optimizer": "adamw_8bit"}),
        ("batch 1", {"batch_size": 1}),
    ]  # fmt: skip
    rows: dict[str, dict[str, Any]] = {}
    for name, change in variants:
        variant = replace(request, **change)
        estimate = memory.estimate(anatomy, variant)
        rows.setdefault(
            repr(variant),
            {
                "what": name,
                "set": change,
                "likely_gib": round(estimate.device.likely / GIB, 2),
                "plan_with_gib": round(estimate.device.high / GIB, 2),
                "trainable": estimate.trainable,
            },
        )
    return sorted(rows.values(), key=lambda row: row["plan_with_gib"])


def _largest(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest n in 1..limit that fits (0: none), by bisection: more tokens never take less."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
