"""How long a fine-tune takes on a named GPU, and what that costs: an estimate with a range, never a promise.

Knows: FLOPs and bytes of a step, which share of a GPU's rate training reaches, evaluation and saving, price and power.
Does not know: the rates themselves (knowledge/gpus.toml), prices, or how many tokens there are (the audit counts them).
Formulas: forward 2 FLOPs a weight and token, backward as much again for inputs and, where weights train, for weights
(arXiv:2001.08361 section 2.1); attention 4 x length x width a layer and token, halved by the causal mask.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from peftsmith.errors import PeftsmithError
from peftsmith.model import memory, weights
from peftsmith.model.anatomy import Anatomy
from peftsmith.model.request import Request, check
from peftsmith.model.roles import role

# Share of the dense rate that a step reaches: (worst, likely, best). Large pre-training runs report 38-46 % (Llama 3,
# arXiv:2407.21783 table 4; PaLM, arXiv:2204.02311 table 3); single-GPU LoRA with small batches half of that and less.
REACHED = (0.12, 0.28, 0.5)
# A 4-bit base is unpacked for every product: times a step (QLoRA against LoRA, Lightning's measurements: 39 % longer).
UNPACKING = (1.7, 1.4, 1.15)
BANDWIDTH_REACHED = (0.5, 0.7, 0.9)
DISK_BYTES_A_SECOND = (5e7, 2e8, 2e9)
STARTING_SECONDS = (300.0, 90.0, 30.0)


@dataclass(frozen=True)
class Gpu:
    """`rate` in TFLOP/s (dense, 16-bit), `bandwidth` in GB/s."""

    name: str
    memory_gib: float
    bandwidth: float
    rate: float
    capability: str
    source: str


@dataclass(frozen=True)
class Work:
    """`tokens` that an epoch holds without padding; `padding` is the share of a batch that is padding (0 when
    packed)."""

    tokens: int
    epochs: float = 1.0
    padding: float = 0.0
    evaluation_tokens: int = 0
    evaluations: int = 0
    saves: int = 1


@cache
def gpus() -> Mapping[str, Gpu]:
    """The catalogue, by name."""
    text = resources.files("peftsmith").joinpath("knowledge", "gpus.toml").read_text(encoding="utf-8")
    return {name: Gpu(name=name, **body) for name, body in tomllib.loads(text).items()}


def gpu(name: str) -> Gpu:
    """One GPU, by its name without regard to case, spaces and dashes; a name that begins it is enough if only one
    does."""
    wanted = _plain(name)
    found = [each for each in gpus().values() if _plain(each.name) == wanted]
    found = found or [each for each in gpus().values() if wanted and _plain(each.name).startswith(wanted)]
    if len(found) != 1:
        raise PeftsmithError(
            "There is no such GPU in the catalogue" if not found else "Several GPUs have that name",
            value=name,
            next_step=f"Use one of {', '.join(each.name for each in found or gpus().values())}.",
        )
    return found[0]


def flops_per_token(anatomy: Anatomy, request: Request) -> dict[str, float]:
    """FLOPs a token of one training step, by part; `forward` alone is what an evaluation takes."""
    assert anatomy.skeleton is not None
    active = _active(anatomy)
    width = anatomy.heads * anatomy.head_dim or anatomy.hidden
    attention = 2.0 * anatomy.layers * request.sequence_length * width
    forward = 2.0 * active + attention
    full = request.peft_type is None
    again = forward if request.gradient_checkpointing else 0.0
    estimate = memory.estimate(anatomy, request)
    return {
        "forward": forward,
        "backward": 2.0 * active * (2 if full else 1) + 2 * attention,
        "recomputed": again,
        "adapter": 0.0 if full else 6.0 * estimate.trainable,
        "loss_again": 2.0 * anatomy.vocab * anatomy.hidden if request.loss in ("trl_chunked", "liger") else 0.0,
    }


def estimate(
    anatomy: Anatomy,
    request: Request,
    work: Work,
    device: Gpu,
    *,
    price_per_hour: float | None = None,
    watts: float | None = None,
) -> dict[str, Any]:
    """Seconds with a range, its parts, and cost and energy for a price and a power that the user gives.

    Raises PeftsmithError for impossible numbers.
    """
    check(anatomy, request)
    _check(work, price_per_hour, watts)
    parts = flops_per_token(anatomy, request)
    trained = work.tokens * work.epochs / (1 - work.padding)
    evaluated = float(work.evaluation_tokens * work.evaluations)
    total = trained * sum(parts.values()) + evaluated * parts["forward"]
    steps = trained / (request.batch_size * request.sequence_length)
    held = memory.estimate(anatomy, request).terms
    moved = steps * (3 * held.get("weights", 0) + 6 * (held.get("adapter", 0) + held.get("optimizer", 0)))
    adapter_bytes = held.get("adapter", 0) or held["weights"]
    unpacked = (request.base_format or weights.stored_format(anatomy.quantization) or "none") not in (
        "none",
        "int8",
        "fp8",
    )
    seconds = []
    for index in range(3):
        compute = total / (device.rate * 1e12 * REACHED[index]) * (UNPACKING[index] if unpacked else 1)
        traffic = moved / (device.bandwidth * 1e9 * BANDWIDTH_REACHED[index])
        saving = work.saves * adapter_bytes * 3 / DISK_BYTES_A_SECOND[index]
        seconds.append(max(compute, traffic) / request.gpus + saving + STARTING_SECONDS[index])
    high, likely, low = seconds
    found: dict[str, Any] = {
        "estimate": True,
        "gpu": device.name,
        "seconds": {"low": round(low), "likely": round(likely), "high": round(high)},
        "tokens_per_second": round(trained / max(likely - STARTING_SECONDS[1], 1e-9)),
        "flops_per_token": {name: round(value) for name, value in parts.items()},
        "optimiser_steps_at_most": round(steps) + 1,
        "assumptions": [
            f"{REACHED[0]:.0%} to {REACHED[2]:.0%} of {device.rate:g} TFLOP/s, {REACHED[1]:.0%} likely",
            f"rates from: {device.source}",
            f"{work.padding:.0%} of the tokens of a batch are padding",
            f"{request.gpus} device(s) that scale without loss",
            f"{STARTING_SECONDS[2]:g} to {STARTING_SECONDS[0]:g} s until the first step, which the rate leaves out",
        ],
    }
    if device.capability < "8" and request.precision == "bf16":
        found["assumptions"].append(f"{device.name} has no bf16: the plan needs fp16")
    for name, rate, factor in (("cost", price_per_hour, 1 / 3600), ("kilowatt_hours", watts, 1 / 3.6e6)):
        if rate is not None:
            found[name] = {
                each: round(value * rate * request.gpus * factor, 3) for each, value in found["seconds"].items()
            }
    return found


def _active(anatomy: Anatomy) -> float:
    """Weights that a token is multiplied with: linear layers, and of the experts those that it is sent to."""
    assert anatomy.skeleton is not None
    total = 0.0
    routed = _routed(anatomy)
    for module in anatomy.skeleton.modules:
        if module.kind in ("linear", "conv1d") and role(module.name) != "tower":
            total += module.inputs * module.outputs * (routed if ".experts." in module.name else 1.0)
        elif module.kind == "experts":
            total += module.elements * routed
    return total


def _routed(anatomy: Anatomy) -> float:
    """The share of the experts that a token is sent to."""
    text = anatomy.config.get("text_config", anatomy.config)
    per_token = text.get("num_experts_per_tok") or text.get("moe_topk") or 0
    names = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    experts = next((text[name] for name in names if isinstance(text.get(name), int)), 0)
    return per_token / experts if per_token and experts else 1.0


def _check(work: Work, price_per_hour: float | None, watts: float | None) -> None:
    limits = {
        "tokens": (work.tokens, 1, 1e15), "epochs": (work.epochs, 1e-6, 1e4), "padding": (work.padding, 0, 0.99),
        "evaluation_tokens": (work.evaluation_tokens, 0, 1e15), "evaluations": (work.evaluations, 0, 1e6),
        "saves": (work.saves, 0, 1e6), "price_per_hour": (price_per_hour or 0, 0, 1e6), "watts": (watts or 0, 0, 1e6),
    }  # fmt: skip
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise PeftsmithError(f"{name} must lie between {low:g} and {high:g}", value=value, next_step="Correct it.")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum()).removeprefix("nvidia").removeprefix("geforce")
