"""A training job as the memory estimate takes it, and what of it cannot be estimated.

Knows: the fields, their limits, and which models and values have formulas.
Does not know: the formulas (memory.py, activations.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peftsmith.errors import PeftsmithError
from peftsmith.model import targets
from peftsmith.model.anatomy import Anatomy

PRECISION_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit")
_LARGEST = {"batch_size": 65536, "sequence_length": 1 << 24}


@dataclass(frozen=True)
class Request:
    """A training job. Lengths in tokens (the longest row of a batch), batch in rows on the device.

    `targets` is a preset, a list of names, or any other value that PEFT takes. The last fields default to what the
    generated scripts do: autocast with bf16 and fp16, QLoRA adapters in bf16 (TRL), no k-bit preparation, SDPA.
    """

    method: Literal["lora", "qlora"] = "lora"
    rank: int = 16
    targets: str | list[str] = "all-linear"
    batch_size: int = 1
    sequence_length: int = 1024
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    gradient_checkpointing: bool = True
    optimizer: str = "adamw_torch_fused"
    loss: Literal["trl_chunked", "stock"] = "trl_chunked"
    device: Literal["cuda", "cpu"] = "cuda"
    autocast: bool | None = None
    adapter_bytes: int | None = None
    kbit_prepared: bool = False
    double_quantization: bool = True
    dropout: bool = False
    attention: Literal["sdpa", "flash"] = "sdpa"


def check(anatomy: Anatomy, request: Request) -> dict[str, tuple[int, int]]:
    """The adapted modules, after everything that cannot be estimated was refused."""
    targets.check_rank(request.rank)
    for name, largest in _LARGEST.items():
        value = getattr(request, name)
        if type(value) is not int or not 1 <= value <= largest:
            raise PeftsmithError(
                f"{name} must be a whole number from 1 to {largest}", value=value, next_step="Correct it."
            )
    known = {
        "method": ("lora", "qlora"),
        "precision": tuple(PRECISION_BYTES),
        "optimizer": OPTIMIZERS,
        "loss": ("trl_chunked", "stock"),
        "device": ("cuda", "cpu"),
        "attention": ("sdpa", "flash"),
    }
    for name, values in known.items():
        if getattr(request, name) not in values:
            raise PeftsmithError(
                f"There is no estimate for this {name}",
                value=getattr(request, name),
                next_step=f"Use {', '.join(values)}.",
            )
    if anatomy.quantization or not anatomy.supported:
        what = f"{anatomy.quantization} weights" if anatomy.quantization else f"{anatomy.model_type} models"
        raise PeftsmithError(
            f"peftsmith has no memory formulas for {what} yet",
            value=anatomy.id,
            next_step="Take the 16-bit original of a dense Llama-like model, or measure with a smoke run.",
        )
    wanted = request.targets
    matched = targets.match(anatomy, targets.PRESETS.get(wanted, wanted) if isinstance(wanted, str) else wanted)
    if not matched:
        raise PeftsmithError(
            "The target modules match nothing in this model",
            value=request.targets,
            next_step=f"Use a preset ({', '.join(targets.PRESETS)}) or names that find_target_modules gives.",
        )
    return matched
