"""Other ways to do the same job, beside the recommended one: memory, time, share and who could serve the result.

Knows: which two or three are worth comparing with a recommendation.
Does not know: how memory (model/memory.py), time (model/speed.py) or serving (model/serving.py) are judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peftsmith.advise import fit, rules_serving
from peftsmith.advise.facts import Device, Rows
from peftsmith.advise.recommend import Recommendation
from peftsmith.knowledge import methods

if TYPE_CHECKING:
    from peftsmith.model.anatomy import Anatomy
    from peftsmith.model.memory import Request
    from peftsmith.model.speed import Gpu

_LOW_RANK = 8


def compare(
    anatomy: Anatomy, advice: Recommendation, rows: Rows, device: Device, *, serving: str, gpu: Gpu | None = None
) -> list[dict[str, Any]]:
    """The recommendation first, then at most three alternatives, each with the setting that would fit.

    `seconds` (low, likely, high) is there only for a named GPU and counted tokens; it is an estimate.
    """
    found = [_row(anatomy, "recommended", "", advice.fit, advice, rows, serving, gpu)]
    for name, price, wanted, quantised in _variants(anatomy, advice):
        tried = fit.smallest_change(anatomy, wanted, device, quantised=quantised)
        found.append(_row(anatomy, name, price, tried, advice, rows, serving, gpu))
    return found


def _variants(anatomy: Anatomy, advice: Recommendation) -> Iterator[tuple[str, str, Request, bool]]:
    """(name, what it costs or saves in words, request, on a 4-bit base)."""
    request = advice.fit.request
    quantised = request.base_format == "nf4_double"
    most = min(16, advice.facts["sequences_at_once"] or 16)
    plain = replace(request, quantization=None, batch_size=min(advice.facts["effective"], most))
    kind = request.peft_type
    if kind is not None and advice.facts["quantisable"]:
        if quantised:
            yield f"{kind} on the unquantised base", "faster, no rounding; needs more memory", plain, False
        elif request.targets != "everything":
            yield f"{kind} on a 4-bit base (NF4)", "slower, rounding errors; needs less memory", plain, True
    if kind == "LORA" and _has_attention(anatomy):
        small = replace(plain, rank=_LOW_RANK, targets="attention")
        yield "LORA of rank 8 on attention only", "smaller adapter; learns less", small, quantised
    elif kind not in (None, "LORA"):
        lora = replace(plain, method="lora", rank=None, options={})
        yield "LORA", "served by every engine, merges", lora, False
    if kind is not None and not anatomy.quantization:
        full = replace(plain, method="full", rank=None, options={})
        yield "all weights (FULL)", "most capacity, forgets most, no adapter; needs a reason", full, False
    if kind is None:
        yield "LORA", "an adapter: a fraction of the memory, forgets less", replace(plain, method="lora"), False


def _has_attention(anatomy: Anatomy) -> bool:
    from peftsmith.model import targets

    return not anatomy.supported or targets.selection(anatomy, "attention") is not None


def _row(
    anatomy: Anatomy,
    name: str,
    price: str,
    tried: fit.Fit,
    advice: Recommendation,
    rows: Rows,
    serving: str,
    gpu: Gpu | None,
) -> dict[str, Any]:
    request, estimate = tried.request, tried.estimate
    whole = anatomy.parameters + (estimate.trainable if request.peft_type else 0)
    row: dict[str, Any] = {
        "name": name,
        "price": price,
        "method": request.peft_type or methods.FULL,
        "rank": request.rank,
        "bits": 4 if request.base_format == "nf4_double" else None,
        "batch_size": request.batch_size,
        "gradient_checkpointing": request.gradient_checkpointing,
        "likely_gib": round(estimate.device.likely / fit.GIB, 2),
        "plan_with_gib": tried.gib,
        "fits": tried.fits,
        "trainable": estimate.trainable,
        "share": round(estimate.trainable / whole, 6) if whole else None,
        "serving": _serving(anatomy, request, advice, serving),
    }
    if gpu is not None and rows.total_tokens:
        row["seconds"] = _seconds(anatomy, request, advice, rows.total_tokens, gpu)
    return row


def _serving(anatomy: Anatomy, request: Request, advice: Recommendation, engine: str) -> str:
    from peftsmith.model import serving

    if request.peft_type is None:
        return "ok: as a full model"
    refused = rules_serving.refused(advice.facts["config"]) if request.peft_type == "LORA" else []
    if refused and engine != rules_serving.EVERYTHING and advice.facts["peft_type"] == "LORA":
        return f"merge: {engine} refuses an adapter with {', '.join(refused)}"
    judged = serving.verdicts(
        anatomy.model_type,
        request.rank or 1,
        ends_adapted=request.task == "classification",
        method=request.peft_type,
        experts=request.targets == "everything",
    )
    return judged[engine]


def _seconds(anatomy: Anatomy, request: Request, advice: Recommendation, tokens: int, gpu: Gpu) -> dict[str, int]:
    from peftsmith.model import speed

    work = speed.Work(tokens=tokens, epochs=advice.training["epochs"], saves=4)
    found: dict[str, int] = speed.estimate(anatomy, request, work, gpu)["seconds"]
    return found
