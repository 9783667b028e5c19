"""The recommended value for every field of a plan, each with its reason.

Knows: the rules of knowledge/rules.toml as functions of model, data and memory.
Does not know: files; it takes what was inspected and returns values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from peftsmith.advise.rules import why
from peftsmith.finding import Finding, finding
from peftsmith.lock import Why

if TYPE_CHECKING:
    from peftsmith.model.anatomy import Anatomy
    from peftsmith.model.memory import Estimate, Request

RANKS = (16, 32, 64, 128, 256)
EFFECTIVE_BATCH = 16
FEWEST_ROWS = 50
ALPHA = 32
Precision = Literal["fp32", "bf16", "fp16"]
Kind = Literal["lora", "qlora"]
GIB = 1 << 30


@dataclass(frozen=True)
class Device:
    """The training device: `memory_gib` usable, `capability` of a CUDA GPU as (major, minor), None for others."""

    kind: Literal["cuda", "cpu"]
    memory_gib: float
    capability: tuple[int, int] | None = None


@dataclass(frozen=True)
class Rows:
    """What the audit says that values depend on. Token numbers are None when no tokenizer was there."""

    count: int
    longest: int | None
    loss_tokens: int | None


@dataclass(frozen=True)
class Recommendation:
    """Method and training fields as plan.yaml names them, dotted field to reason, and the estimate they rest on."""

    method: dict[str, Any]
    training: dict[str, Any]
    why: dict[str, Why]
    estimate: Estimate
    findings: tuple[Finding, ...]


def recommend(anatomy: Anatomy, rows: Rows, device: Device, *, method: Kind | None = None) -> Recommendation:
    """Values for a plan on this model, data and device; `method` overrules the choice between lora and qlora."""
    from peftsmith.model import memory, targets

    max_length = _max_length(anatomy, rows)
    precision = _precision(device)
    modules = targets.find(anatomy, rank=RANKS[0], preset="all-linear")[0].value
    rank, rank_reason = _rank(anatomy, modules, rows)
    wanted = memory.Request(
        method="lora",
        rank=rank,
        targets="all-linear",
        batch_size=_first_batch(rows),
        sequence_length=min(rows.longest or max_length, max_length),
        precision=precision,
        gradient_checkpointing=False,
        device=device.kind,
    )
    request, estimate, findings = _fit(anatomy, wanted, device, method)
    accumulation = max(1, EFFECTIVE_BATCH // request.batch_size)
    rate = _learning_rate(anatomy.parameters)
    epochs = _epochs(rows.count)
    quantization = {"bits": 4, "type": "nf4", "double": True} if request.method == "qlora" else None
    fits = (
        f"{estimate.device.high / GIB:.2f} GiB at most against {device.memory_gib:.1f} GiB on this {device.kind} device"
    )
    reasons = {
        ("method.quantization.bits" if quantization else "method.quantization"): why(
            4 if quantization else None, "method.memory", f"Estimated {fits}."
        ),
        "method.rank": why(rank, "rank.capacity", rank_reason),
        "method.alpha": why(ALPHA, "alpha.fixed", f"Effective scale {ALPHA / rank:g}."),
        "method.dropout": why(0.0, "dropout.none", "No sign of overfitting has been seen yet."),
        "method.config": why({}, "serving.portable", "Keeps the adapter loadable by every server."),
        "method.target_modules": why(modules, "targets.all_linear", f"All linear layers of a {anatomy.model_type}."),
        "training.max_length": why(
            max_length, "max_length.data", f"The longest row has {rows.longest or 'unknown'} tokens."
        ),
        "training.epochs": why(epochs, "epochs.size", f"{rows.count} rows."),
        "training.batch_size": why(request.batch_size, "batch.effective", f"The largest that fits: {fits}."),
        "training.gradient_accumulation": why(
            accumulation, "batch.effective", f"Effective batch {request.batch_size * accumulation}."
        ),
        "training.learning_rate": why(rate, "learning_rate.size", f"{anatomy.parameters / 1e9:.3g} B parameters."),
        "training.precision": why(precision, "precision.device", _device_text(device)),
        "training.gradient_checkpointing": why(
            request.gradient_checkpointing, "checkpointing.memory", f"Estimated {fits}."
        ),
    }
    return Recommendation(
        method={
            "peft_type": "LORA",
            "rank": rank,
            "alpha": ALPHA,
            "dropout": 0.0,
            "config": {},
            "target_modules": modules,
            "quantization": quantization,
        },
        training={
            "max_length": max_length,
            "epochs": epochs,
            "batch_size": request.batch_size,
            "gradient_accumulation": accumulation,
            "learning_rate": rate,
            "precision": precision,
            "gradient_checkpointing": request.gradient_checkpointing,
        },
        why=reasons,
        estimate=estimate,
        findings=tuple(findings),
    )


def _fit(
    anatomy: Anatomy, wanted: Request, device: Device, method: Kind | None
) -> tuple[Request, Estimate, list[Finding]]:
    """The cheapest change of `wanted` whose upper bound fits: smaller batch, then checkpointing, then QLoRA."""
    from peftsmith.model import memory

    methods: list[Kind] = [method] if method else ["lora", "qlora"]
    batches = [size for size in (16, 8, 4, 2, 1) if size <= wanted.batch_size]
    findings = []
    if method and method != "lora":
        findings.append(finding("advise.method.overruled", method=method))
    request, estimate = wanted, memory.estimate(anatomy, wanted)
    for kind in methods:
        for checkpointing in (False, True):
            for batch in batches if checkpointing or kind == "lora" else batches[:1]:
                request = replace(wanted, method=kind, gradient_checkpointing=checkpointing, batch_size=batch)
                estimate = memory.estimate(anatomy, request)
                if estimate.device.high <= device.memory_gib * GIB:
                    return request, estimate, findings
    needed = round(estimate.device.high / GIB, 2)
    findings.append(finding("advise.memory.does_not_fit", needed_gib=needed, there_is_gib=device.memory_gib))
    return request, estimate, findings


def _first_batch(rows: Rows) -> int:
    return 8 if rows.count < 10_000 else EFFECTIVE_BATCH


def _max_length(anatomy: Anatomy, rows: Rows) -> int:
    longest = rows.longest or 1024
    rounded = -(-longest // 64) * 64
    return min(rounded, anatomy.max_positions) if anatomy.max_positions else rounded


def _precision(device: Device) -> Precision:
    if device.kind == "cpu":
        return "fp32"
    return "bf16" if device.capability is None or device.capability >= (8, 0) else "fp16"


def _device_text(device: Device) -> str:
    if device.kind == "cpu":
        return "Training runs on the CPU."
    return "CUDA device of unknown capability." if device.capability is None else f"Capability {device.capability}."


def _rank(anatomy: Anatomy, modules: list[str] | str, rows: Rows) -> tuple[int, str]:
    from peftsmith.model import targets

    per_rank = targets.count(anatomy, modules, 1)
    if rows.loss_tokens is None:
        return RANKS[0], "The tokens that carry loss could not be counted."
    smallest = -(-rows.loss_tokens // max(per_rank, 1))
    rank = next((rank for rank in RANKS if rank >= smallest), RANKS[-1])
    return rank, f"{rows.loss_tokens} loss tokens against {per_rank} parameters a rank: at least rank {smallest}."


def _learning_rate(parameters: int) -> float:
    if parameters <= 4.5e9:
        return 5e-4
    return 2e-4 if parameters <= 13.5e9 else 1e-4


def _epochs(rows: int) -> float:
    if rows < 1000:
        return 3.0
    return 2.0 if rows < 10_000 else 1.0
