"""Bytes that a training step holds for as long as it runs: base weights, adapter, gradients, optimiser states.

Knows: bytes a parameter of every storage format, which modules a quantiser takes, states of the optimisers, and how
data-parallel engines divide all that.
Does not know: activations, losses, or the allocator (memory.py).
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from math import prod

from peftsmith.errors import PeftsmithError
from peftsmith.model.modules import Module, Skeleton
from peftsmith.model.roles import role

MIB = 1 << 20
# NF4: two weights a byte; a block of 64 has one scale, float32 or (double) 8 bits plus a float32 for 256 scales
# (bitsandbytes functional.quantize_4bit). GPTQ and AWQ: see GROUP_SCALES.
# MXFP4: blocks of 32 with an 8-bit scale. Int8 and FP8 keep a float32 for each output row, EETQ a float16.
# HQQ: groups of 64 with a 16-bit scale and zero point (hqq BaseQuantizeConfig as transformers' HqqConfig sets it). AQLM
# 1x16: 16 bits for 8 weights, a 16-bit scale for each output row, and a codebook of 65536 x 8 16-bit numbers.
PER_PARAMETER = {
    "nf4": 0.5 + 4 / 64,
    "fp4": 0.5 + 4 / 64,
    "nf4_double": 0.5 + 1 / 64 + 4 / (64 * 256),
    "gptq4": 0.5,
    "awq4": 0.5,
    "gptq8": 1.0,
    "gptq3": 0.375,
    "gptq2": 0.25,
    "hqq8": 1.0 + 4 / 64,
    "hqq4": 0.5 + 4 / 64,
    "hqq3": 0.375 + 4 / 64,
    "hqq2": 0.25 + 4 / 64,
    "eetq8": 1.0,
    "aqlm2": 0.25,
    "int8": 1.0,
    "fp8": 1.0,
    "mxfp4": 0.5 + 1 / 32,
}
# beside the packed weights: a 16-bit scale and a zero point as wide as a weight, for each group of inputs
GROUP_SCALES = {"gptq4": 2.5, "awq4": 2.5, "gptq8": 3.0, "gptq3": 2.375, "gptq2": 2.25}
GROUP_SIZE = 128
# Formats whose kernels unpack a whole layer to work with it. GPTQ's and AWQ's do so for a base that is stored that way.
UNPACKED = ("nf4", "fp4", "nf4_double", "int8", "hqq8", "hqq4", "hqq3", "hqq2", "aqlm2")
BITSANDBYTES = ("nf4", "nf4_double", "fp4", "int8")
_ROW_SCALES = {"int8": 4, "fp8": 4, "eetq8": 2, "aqlm2": 2}
_CODEBOOKS = {"aqlm2": 65536 * 8 * 2}
_INPUT_INDEX = ("gptq4", "gptq8", "gptq3", "gptq2")  # g_idx, an int32 for each input
_EXPERTS_TOO = ("mxfp4", "fp8")  # the others take linear modules only, not fused 3-D parameters
# State bytes for each byte of a trained weight, or for each trained weight, on the device.
STATE_PER_BYTE = {"adamw_torch_fused": 2.0, "adamw_torch": 2.0, "lora_fa": 2.0, "lion_32bit": 1.0, "sgd": 0.0}
# bitsandbytes: a byte a state, and a float32 for a block of 256 (functional.quantize_blockwise)
STATE_PER_WEIGHT = {"adamw_8bit": 2 * (1 + 4 / 256), "lion_8bit": 1 + 4 / 256}
# Parameter-sized temporaries at the step (torch/optim/adam.py, _multi_tensor_adam: the square root of the second
# moment)
STEP_COPIES = {"adamw_torch": 1.0, "adafactor": 1.0}


@dataclass(frozen=True)
class Held:
    """Bytes on one device: `states` of the optimiser, `step` what its step adds for a moment."""

    weights: int
    adapter: int
    gradients: int
    states: int
    step: int


def base(skeleton: Skeleton, stored: str | None, number: int, *, widened: bool, group: int | None = None) -> int:
    """Bytes of the base: `stored` is a key of PER_PARAMETER (None: not quantised), `number` bytes of any other weight
    (4 when `widened`). `group`: inputs that share a scale in GPTQ and AWQ (None: 128; -1: all)."""
    rest = 4 if widened else number
    if not stored:
        return rest * skeleton.parameters
    total = 0.0
    packed: dict[Hashable, float | None] = {}
    for module in skeleton.modules:
        if module.alike not in packed:
            packed[module.alike] = _packed(module, stored, rest, group) if quantised(module, stored) else None
        size = packed[module.alike]
        if size is None:
            shapes = module.parameters.items()
            size = rest * sum(prod(shape) for leaf, shape in shapes if f"{module.name}.{leaf}" not in skeleton.tied)
        total += size
    return int(total)


def _packed(module: Module, stored: str, rest: int, group: int | None) -> float:
    """Bytes of a quantised module; `rest` bytes a parameter that stays as it is (a bias)."""
    weights = sum(prod(shape) for shape in module.parameters.values() if len(shape) >= 2)
    size = weights * PER_PARAMETER[stored] + (module.elements - weights) * rest
    size += _ROW_SCALES.get(stored, 0) * module.outputs + _CODEBOOKS.get(stored, 0)
    groups = 1 if group == -1 else -(-module.inputs // (group or GROUP_SIZE))
    size += GROUP_SCALES.get(stored, 0) * groups * module.outputs
    size += 4 * module.inputs if stored in _INPUT_INDEX else 0
    return size


def quantised(module: Module, stored: str) -> bool:
    """Whether a quantiser replaces this module: every linear one but the output head, and experts where it can."""
    if module.kind == "experts":
        return stored in _EXPERTS_TOO
    return module.kind in ("linear", "conv1d") and role(module.name) not in ("head", "router")


def dequantised(skeleton: Skeleton, number: int) -> int:
    """Bytes of the largest quantised linear layer when it is worked with: 4-bit kernels unpack it into `number`
    bytes."""
    return max((number * m.inputs * m.outputs for m in skeleton.modules if quantised(m, "nf4")), default=0)


def states(optimizer: str, trainable: int, size: int, modules: list[Module], *, on_device: bool) -> int:
    """Bytes of optimiser state for `trainable` weights of `size` bytes; 0 for states that live off the device."""
    if not on_device or (optimizer.startswith("paged_")):
        return 0
    if optimizer in STATE_PER_WEIGHT:
        return int(STATE_PER_WEIGHT[optimizer] * trainable)
    if optimizer == "adafactor":
        return sum(4 * (m.inputs + m.outputs) for m in modules)
    return int(STATE_PER_BYTE[optimizer] * size * trainable)


def divided(held: Held, sharding: str, gpus: int, offload: str, largest_block: int) -> Held:
    """What one of `gpus` devices holds. `largest_block`: bytes of the largest block, gathered while it runs.

    DDP copies gradients into buckets; ZeRO-2 divides gradients and states, ZeRO-3 and FSDP2 weights as well
    (arXiv:1910.02054 section 5; torch.distributed.fsdp keeps two blocks gathered). Offloading moves states, or all.
    """
    weights, adapter, gradients, own = held.weights, held.adapter, held.gradients, held.states
    step = held.step
    if sharding == "ddp" and gpus > 1:
        gradients *= 2
    if sharding in ("zero2", "zero3", "fsdp2"):
        gradients, own, step = -(-gradients // gpus), -(-own // gpus), -(-step // gpus)
    if sharding in ("zero3", "fsdp2"):
        weights, adapter = -(-weights // gpus) + 2 * largest_block, -(-adapter // gpus)
    if offload != "none":
        own, step = 0, 0
    if offload == "all":
        weights = 2 * largest_block
    return Held(weights, adapter, gradients, own, step)


def stored_format(quantization: str | None) -> str | None:
    """The key of PER_PARAMETER for what an anatomy says of a base's own quantisation; None when it says nothing.

    Raises PeftsmithError for a format without a known size.
    """
    if quantization is None:
        return None
    text = quantization.lower()
    known = (
        (r"gptq.*8", "gptq8"), (r"gptq.*3", "gptq3"), (r"gptq.*2", "gptq2"), (r"gptq|auto-round", "gptq4"),
        (r"awq", "awq4"), (r"hqq", "hqq4"), (r"eetq", "eetq8"), (r"aqlm", "aqlm2"),
        (r"(bitsandbytes|bnb).*4", "nf4_double"), (r"(bitsandbytes|bnb|int8).*", "int8"), (r"mxfp4", "mxfp4"),
        (r"fp8", "fp8"),
    )  # fmt: skip
    for pattern, name in known:
        if re.search(pattern, text):
            return name
    raise PeftsmithError(
        "The size of weights in this format is not known",
        value=quantization,
        next_step="Name the format in quantization, or take the unquantised base.",
    )
