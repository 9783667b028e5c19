"""The whole answer to "how much memory": the estimate, what fits, alternatives, a trace, a measured run beside it.

Knows: which parts were asked for. Does not know: how any of them is worked out (memory, fits, precise, inference).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftsmith.finding import Finding, finding
from peftsmith.model import fits, inference, memory
from peftsmith.model.anatomy import Anatomy
from peftsmith.model.request import Request

_BITSANDBYTES = ("nf4", "nf4_double", "fp4", "int8")


@dataclass(frozen=True)
class Answer:
    """Findings, and the parts of the result by name."""

    findings: list[Finding]
    parts: dict[str, Any]


def memory_answer(
    anatomy: Anatomy,
    request: Request,
    *,
    gib: float | None,
    gpu: str | None,
    alternatives: bool,
    precise: bool,
    measured_gib: float | None,
    project: Path,
) -> Answer:
    """`gib` or the memory of `gpu` is what it has to fit into. Raises PeftsmithError as the parts do."""
    parts: dict[str, Any] = {}
    if precise:
        from peftsmith.machine import environment
        from peftsmith.model import precise as tracing

        estimate, parts["traced"] = tracing.estimate(anatomy, request, environment.require(project))
    else:
        estimate = memory.estimate(anatomy, request)
    parts["estimate"] = estimate.to_json()
    room = gib if gib is not None else _memory_of(gpu) if gpu else None
    parts["fits"] = fits.what_fits(anatomy, request, room) if room else None
    parts["alternatives"] = fits.alternatives(anatomy, request) if alternatives else None
    parts["afterwards"] = inference.afterwards(anatomy, request, estimate.trainable)
    findings = [*estimate.findings, *_left_whole(anatomy, request)]
    if measured_gib is not None:
        parts["measured"] = against(estimate, measured_gib)
        if not parts["measured"]["within_range"]:
            findings.append(finding("model.memory.off", measured_gib=measured_gib, **parts["measured"]))
    return Answer(findings, parts)


def _left_whole(anatomy: Anatomy, request: Request) -> list[Finding]:
    """bitsandbytes replaces linear modules; experts that are one parameter stay as they are."""
    if request.base_format not in _BITSANDBYTES or anatomy.skeleton is None:
        return []
    size = 2 * sum(module.elements for module in anatomy.skeleton.modules if module.kind == "experts")
    if not size:
        return []
    message = f"The fused experts stay in 16 bits: {size / memory.GIB:.1f} GiB that bitsandbytes does not quantise."
    return [finding("model.quantization.experts_left", message, gib=round(size / memory.GIB, 3))]


def _memory_of(gpu: str) -> float:
    from peftsmith.model import speed

    return speed.gpu(gpu).memory_gib


def against(estimate: memory.Estimate, measured_gib: float) -> dict[str, Any]:
    """A measured peak of reserved memory beside the estimate."""
    likely = estimate.reserved.likely / memory.GIB
    return {
        "estimated_gib": round(likely, 3),
        "error_percent": round(100 * (likely / measured_gib - 1), 1),
        "within_range": estimate.reserved.low <= measured_gib * memory.GIB <= estimate.reserved.high,
    }
