"""How much memory LoRA or QLoRA on a dense Llama-like model takes: terms, three numbers with ranges, assumptions.

Knows: weights, adapter, gradients, optimiser, activations with and without checkpointing, loss, and what the allocator,
the CUDA context or the CPU's heap add.
Does not know: the machine (machine/hardware.py), other architectures or other methods: those are refused, not guessed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding
from peftsmith.model import activations, targets
from peftsmith.model.anatomy import HEAD, Anatomy
from peftsmith.model.request import PRECISION_BYTES, Request, check

__all__ = ["Estimate", "Range", "Request", "estimate", "numbers_of", "what_fits"]

GIB = 1 << 30
MIB = 1 << 20
# NF4: two weights a byte; a block of 64 has one scale, float32 or (double) 8 bits plus a float32 for 256 scales.
NF4 = 0.5 + 4 / 64
NF4_DOUBLE = 0.5 + 1 / 64 + 4 / (64 * 256)
# bytes of state a trainable parameter has on the device, per byte of the parameter (adamw) or per parameter (8 bit)
EIGHT_BIT_STATE = 2.03
CUBLAS_WORKSPACE = 33 * MIB
# Published reserved/allocated ratios run from 1.02 to 1.28 at fixed shapes. The likely one (means over published pairs
# of dense Llama-like models) is higher with checkpointing, whose recomputed layers break up the freed blocks.
RESERVED = {False: (1.02, 1.03, 1.28), True: (1.02, 1.10, 1.28)}
ALLOCATED = (0.95, 1.0, 1.06)
CUDA_CONTEXT = (int(0.4 * GIB), int(0.55 * GIB), int(0.8 * GIB))
# Resident set of Python 3.11 after importing torch 2.13 (CPU), transformers 5.23, peft 0.21, trl 1.16 and datasets 5.2:
# 515 MiB in VmRSS of /proc/self/status.
PYTHON_ON_CPU = 515 * MIB
# On the CPU the heap keeps what was freed: the backward pass runs in a thread of its own, with an arena of its own.
# Peak RSS of two TRL steps on SmolLM2-135M, rank 16, fp32, two threads. All-linear: 2 x 64 tokens 1584 MiB, 8 x 64
# 2849, with checkpointing 2151 (1.35 is within 7 % of all three); q and v only: 2 x 256 2292 (14 % below it).
CPU_HEAP = (0.95, 1.35, 1.8)
# Types whose formulas were compared with published or own measurements.
_VERIFIED = ("llama", "mistral", "qwen2")
_MOST_DOUBLINGS = 16


@dataclass(frozen=True)
class Range:
    """Bytes: certainly more than `low`, most likely `likely`, plan with `high`."""

    low: int
    likely: int
    high: int

    def to_json(self) -> dict[str, Any]:
        gib = {f"{name}_gib": round(value / GIB, 3) for name, value in vars(self).items()}
        return {**vars(self), **gib}


@dataclass(frozen=True)
class Estimate:
    """`terms` (bytes) add up to the likely `allocated`. On the CPU `reserved` and `device` are the resident set."""

    terms: dict[str, int]
    allocated: Range
    reserved: Range
    device: Range
    assumptions: list[str]
    findings: list[Finding]
    trainable: int

    def to_json(self) -> dict[str, Any]:
        return {
            "terms": self.terms,
            "terms_gib": {name: round(value / GIB, 4) for name, value in self.terms.items()},
            "allocated": self.allocated.to_json(),
            "reserved": self.reserved.to_json(),
            "device": self.device.to_json(),
            "trainable": self.trainable,
            "assumptions": self.assumptions,
        }


def estimate(anatomy: Anatomy, request: Request) -> Estimate:
    """The peak memory of training. Raises PeftsmithError for an impossible request and for models without formulas."""
    matched = check(anatomy, request)
    numbers = numbers_of(anatomy, request)
    trainable = sum(request.rank * (i + o) for i, o in matched.values())
    adapter = trainable * numbers.adapter
    terms = {
        "weights": _weights(anatomy, request),
        "adapter": adapter,
        "gradients": adapter,
        "optimizer": _optimizer(request, trainable, adapter),
        **_peak(anatomy, request, matched, numbers),
    }
    if numbers.autocast and numbers.adapter == 4:
        terms["autocast_copies"] = 2 * trainable
    if request.device == "cuda":
        terms["workspace"] = CUBLAS_WORKSPACE
    terms = {name: size for name, size in terms.items() if size}
    total = sum(terms.values())
    allocated = Range(*(int(total * factor) for factor in ALLOCATED))
    if request.device == "cuda":
        reserved = Range(*(int(total * factor) for factor in RESERVED[request.gradient_checkpointing]))
        low, likely, high = CUDA_CONTEXT
        device = Range(reserved.low + low, reserved.likely + likely, reserved.high + high)
    else:
        held = sum(terms[name] for name in ("weights", "adapter", "gradients", "optimizer"))
        reserved = Range(*(int(PYTHON_ON_CPU + held + (total - held) * factor) for factor in CPU_HEAP))
        device = reserved
    return Estimate(
        terms, allocated, reserved, device, _assumptions(request, numbers), _findings(anatomy, request), trainable
    )


def what_fits(anatomy: Anatomy, request: Request, gib: float) -> dict[str, Any]:
    """What fits into `gib` GiB of device memory, by the upper bound: this request, the largest batch (a power of two)
    at its length, the longest rows at its batch, and the cheapest changes that would make it fit, in order."""
    if not 0 < gib < 1e6:
        raise PeftsmithError("The memory must be a positive number of GiB", value=gib, next_step="Try 24.")

    def fits(**changes: Any) -> bool:
        return estimate(anatomy, _replace(request, **changes)).device.high <= gib * GIB

    batch = _largest([1 << n for n in range(_MOST_DOUBLINGS)], lambda size: fits(batch_size=size))
    longest = anatomy.max_positions or 1 << 20
    step = 8
    count = _largest_number(longest // step, lambda number: fits(sequence_length=number * step))
    return {
        "gib": gib,
        "fits": fits(),
        "needs_gib": round(estimate(anatomy, request).device.high / GIB, 3),
        "largest_batch": batch,
        "longest_sequence": count * step if count else None,
        "changes": [] if fits() else _changes(anatomy, request, gib),
    }


def _changes(anatomy: Anatomy, request: Request, gib: float) -> list[dict[str, Any]]:
    """Changes tried one after the other, each kept: checkpointing costs time, QLoRA precision, a small batch both."""
    steps: list[tuple[str, dict[str, Any]]] = []
    if not request.gradient_checkpointing:
        steps.append(("gradient checkpointing (about a third slower)", {"gradient_checkpointing": True}))
    if request.method == "lora":
        steps.append(("qlora: the base in 4 bits (slower; merge into the 16-bit base)", {"method": "qlora"}))
    batch = request.batch_size // 2
    while batch:
        steps.append((f"batch_size {batch}, gradient_accumulation doubled", {"batch_size": batch}))
        batch //= 2
    tried = []
    for what, change in steps:
        request = _replace(request, **change)
        high = estimate(anatomy, request).device.high
        tried.append({"change": what, "set": change, "needs_gib": round(high / GIB, 3), "fits": high <= gib * GIB})
        if tried[-1]["fits"]:
            break
    return tried


def _weights(anatomy: Anatomy, request: Request) -> int:
    number = PRECISION_BYTES[request.precision]
    if request.method == "lora":
        return anatomy.parameters * number
    quantised = sum(i * o for name, (i, o) in anatomy.linear.items() if name != HEAD)
    rest = (anatomy.parameters - quantised) * (4 if request.kbit_prepared else number)
    return int(quantised * (NF4_DOUBLE if request.double_quantization else NF4)) + rest


def _optimizer(request: Request, trainable: int, adapter: int) -> int:
    if request.optimizer == "paged_adamw_8bit" and request.device == "cuda":
        return 0
    if request.optimizer in ("adamw_8bit", "paged_adamw_8bit"):
        return int(EIGHT_BIT_STATE * trainable)
    return 2 * adapter


def _peak(
    anatomy: Anatomy, request: Request, matched: dict[str, tuple[int, int]], numbers: activations.Numbers
) -> dict[str, int]:
    """Activations and loss at the higher of two moments: while the loss is worked out, or (with checkpointing) while
    the last layer is run again for its backward pass."""
    tokens = request.batch_size * request.sequence_length
    per_layer = [
        tokens * activations.layer(anatomy, leaves, request.rank, request.sequence_length, numbers) * count
        for leaves, count in _kinds_of_layers(anatomy, matched)
    ]
    residual = 4 if request.kbit_prepared else numbers.wide
    if request.loss == "stock":
        loss = activations.stock_loss(anatomy.vocab, tokens, numbers)
    else:
        loss = activations.trl_loss(anatomy, tokens, numbers, triton=request.device == "cuda")
    head = tokens * anatomy.hidden * 4
    dequantised = 2 * _largest_linear(anatomy) if request.method == "qlora" else 0
    if not request.gradient_checkpointing:
        return {"activations": sum(per_layer) + head, "loss": loss, "dequantised": dequantised}
    kept = tokens * anatomy.layers * residual * anatomy.hidden
    largest = max(
        activations.layer(anatomy, leaves, request.rank, request.sequence_length, numbers)
        for leaves, _ in _kinds_of_layers(anatomy, matched)
    )
    again = tokens * (largest + 2 * numbers.wide * anatomy.intermediate) + dequantised
    if loss + head >= again:
        return {"activations": kept + head, "loss": loss}
    return {"activations": kept, "recomputed_layer": again - dequantised, "dequantised": dequantised}


def _largest_linear(anatomy: Anatomy) -> int:
    """Parameters of the largest layer that bitsandbytes quantises (not the head)."""
    return max(i * o for name, (i, o) in anatomy.linear.items() if name != HEAD)


def _kinds_of_layers(
    anatomy: Anatomy, matched: dict[str, tuple[int, int]]
) -> list[tuple[dict[str, tuple[int, int]], int]]:
    """Layers with the same adapted modules, taken together: leaf name to (in, out), and how many layers."""
    by_layer: dict[int, dict[str, tuple[int, int]]] = {n: {} for n in range(anatomy.layers)}
    for name, sizes in matched.items():
        for number in targets.layers_of([name]):
            by_layer[number][name.rpartition(".")[2]] = sizes
    counted = Counter(tuple(sorted(leaves.items())) for leaves in by_layer.values())
    return [(dict(leaves), count) for leaves, count in counted.items()]


def numbers_of(anatomy: Anatomy, request: Request) -> activations.Numbers:
    """Number formats and attention kernel of a request; masked when rows of a batch are padded to one length."""
    number = PRECISION_BYTES[request.precision]
    autocast = request.precision != "fp32" if request.autocast is None else request.autocast
    default_adapter = 2 if request.method == "qlora" and request.precision != "fp32" else 4
    wide = 4 if request.kbit_prepared and not autocast else number
    flash = request.attention == "flash"
    masked = request.batch_size > 1
    grouped = anatomy.kv_heads != anatomy.heads
    return activations.Numbers(
        wide=wide,
        attention=2 if flash else wide,
        adapter=request.adapter_bytes or default_adapter,
        autocast=autocast,
        masked=masked,
        flash=flash,
        math=wide == 4 and grouped and not masked and not flash and request.device == "cuda",
        dropout=request.dropout,
    )


def _assumptions(request: Request, numbers: activations.Numbers) -> list[str]:
    assumed = [
        f"the longest batch is {request.batch_size} x {request.sequence_length} tokens, padding included",
        "loss: TRL 1.16's default, which never holds all logits"
        if request.loss == "trl_chunked"
        else "loss: the stock causal-LM loss on all logits",
        f"LoRA weights in {numbers.adapter * 8}-bit numbers, "
        + ("with autocast" if numbers.autocast else "no autocast"),
        f"attention: {'FlashAttention' if numbers.flash else 'SDPA'}"
        + (" with a padding mask" if numbers.masked and not numbers.flash else ""),
        f"optimiser {request.optimizer}; no packing, no evaluation or generation at a larger batch",
    ]
    if request.method == "qlora":
        assumed.append(
            "4-bit NF4 with double quantisation" if request.double_quantization else "4-bit NF4, single quantisation"
        )
        assumed.append(
            "k-bit preparation (float32 norms and embeddings)" if request.kbit_prepared else "no k-bit preparation"
        )
    assumed.append(
        f"a process of {PYTHON_ON_CPU / GIB:.2f} GiB before the model, and a heap that keeps what was freed"
        if request.device == "cpu"
        else "a CUDA context of 0.4 to 0.8 GiB, one GPU, and an allocator that reserves up to 1.28 of what is allocated"
    )
    return assumed


def _findings(anatomy: Anatomy, request: Request) -> list[Finding]:
    found = []
    if anatomy.model_type not in _VERIFIED:
        found.append(finding("model.memory.unverified", model_type=anatomy.model_type))
    if request.device == "cpu" and request.precision != "fp32":
        found.append(
            finding(
                "model.memory.unverified",
                f"On the CPU the formulas were checked with fp32 only, not with {request.precision}.",
                precision=request.precision,
            )
        )
    if request.device == "cpu" and request.method == "qlora":
        found.append(finding("model.memory.no_quantisation_on_cpu"))
    if anatomy.max_positions and request.sequence_length > anatomy.max_positions:
        found.append(
            finding(
                "model.memory.beyond_positions",
                sequence_length=request.sequence_length,
                max_positions=anatomy.max_positions,
            )
        )
    return found


def _replace(request: Request, **changes: Any) -> Request:
    return Request(**{**vars(request), **changes})


def _largest(sizes: list[int], fits: Any) -> int | None:
    found = None
    for size in sizes:
        if not fits(size):
            break
        found = size
    return found


def _largest_number(limit: int, fits: Any) -> int:
    """The largest n in 1..limit that fits (0: none), by bisection: more tokens never take less."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
