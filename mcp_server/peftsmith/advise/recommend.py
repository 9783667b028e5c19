"""The recommended value for every field of a plan, each with its reason.

Knows: in which order the fields are decided, since later ones depend on earlier ones.
Does not know: the rules (knowledge/rules.toml, engine.py), the facts (facts.py), files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any

from peftsmith.advise import engine, facts, fit, updates
from peftsmith.advise.facts import Device, Intent, Rows
from peftsmith.finding import Finding, finding
from peftsmith.knowledge import methods
from peftsmith.lock import Why

if TYPE_CHECKING:
    from peftsmith.model.anatomy import Anatomy

__all__ = ["Device", "Intent", "Recommendation", "Rows", "recommend"]
NF4 = {"bits": 4, "type": "nf4", "double": True}
_AFTER_FIT = (
    "training.batch_size", "training.gradient_accumulation", "training.gradient_checkpointing",
    "training.learning_rate", "training.schedule", "training.warmup", "training.max_grad_norm",
    "training.weight_decay", "training.group_by_length", "training.attention", "training.compile",
    "training.dataloader_workers", "training.logging_steps", "training.save_steps", "training.patience",
)  # fmt: skip


@dataclass(frozen=True)
class Recommendation:
    """Method and training fields as plan.yaml names them, dotted field to reason, and the estimate they rest on."""

    method: dict[str, Any]
    training: dict[str, Any]
    why: dict[str, Why]
    fit: fit.Fit
    findings: tuple[Finding, ...]
    facts: dict[str, Any]


@dataclass
class _Draft:
    """What has been decided so far."""

    facts: dict[str, Any]
    decided: dict[str, engine.Decision] = field(default_factory=dict)

    def decide(self, name: str) -> Any:
        self.decided[name] = engine.decide(name, self.facts)
        return self.decided[name].value


def recommend(anatomy: Anatomy, rows: Rows, device: Device, intent: Intent | None = None) -> Recommendation:
    """Values for a plan on this model, data and device. Raises PeftsmithError for a method that cannot be planned."""
    intent = intent or Intent()
    found = _attempt(anatomy, rows, device, intent, experts_fit=True)
    if found.fit.fits or found.fit.request.targets != "everything":
        return found
    return _attempt(anatomy, rows, device, intent, experts_fit=False)


def _attempt(anatomy: Anatomy, rows: Rows, device: Device, intent: Intent, *, experts_fit: bool) -> Recommendation:
    draft = _Draft({**facts.of(anatomy, rows, device, intent), "experts_fit": experts_fit})
    known = draft.facts
    known |= facts.of_method(anatomy, intent, draft.decide("method.peft_type"))
    preset = draft.decide("targets.preset")
    known["preset"] = preset
    known |= facts.of_targets(anatomy, rows, intent, known, preset)
    for name in ("rank", "alpha", "dropout", "config"):
        known[name] = draft.decide(f"method.{name}")
    known["epochs"] = draft.decide("training.epochs")
    known |= facts.of_updates(rows, known)
    wanted = draft.decide("batch.effective")
    known["batch_reason"] = draft.decided["batch.effective"].why(known).reason
    known |= facts.of_packing(rows, known, wanted)
    for name in ("packing", "loss_path", "precision", "max_length"):
        known[name] = draft.decide(f"training.{name}")
    if intent.task == "question_answering":
        known |= facts.of_answers(rows, known["max_length"])
        for name in ("stride", "max_answer_tokens"):
            draft.decide(f"training.{name}")
    known["effective"] = facts.in_sequences(wanted, rows, known, known["packing"], known["max_length"])
    known["sequences_at_once"] = facts.sequences_at_once(anatomy, known)
    if known["datasets"]:
        draft.decide("mixture" if known["mix"] else "adapters")
    found = _fit(anatomy, draft, rows, device, intent, preset)
    known |= _of_fit(found, rows, known)
    for name in _AFTER_FIT:
        draft.decide(name)
    return Recommendation(
        method=_method(draft, intent),
        training={
            name.removeprefix("training."): each.value for name, each in draft.decided.items() if "training." in name
        },
        why=_whys(draft),
        fit=found,
        findings=tuple(_findings(found, device, intent, known)),
        facts=known,
    )


def _fit(anatomy: Anatomy, draft: _Draft, rows: Rows, device: Device, intent: Intent, preset: str) -> fit.Fit:
    """The setting that fits, on the base as it is or in 4 bits, as the rules of method.quantised decide."""
    known = draft.facts
    wanted = fit.request(known, rows, device, intent, preset)
    plain = fit.smallest_change(anatomy, wanted, device, quantised=False)
    # Fused experts are not quantised, so that adapting them goes with the base as it is.
    may = known["quantisable"] and preset != "everything"
    quantised = fit.smallest_change(anatomy, wanted, device, quantised=True) if may else None
    known |= {
        "fits_plain": plain.fits,
        "plain_gib": plain.gib,
        "can_quantise": quantised is not None,
        "quantised_gib": quantised.gib if quantised else None,
    }
    return quantised if draft.decide("method.quantised") and quantised else plain


def _batch_limit(batch: int, known: Mapping[str, Any]) -> str:
    """Why not twice as many rows at once."""
    more, at_once = 2 * batch, known["sequences_at_once"]
    if more > known["effective"]:
        return "that is a whole update"
    if at_once and more > at_once:
        return "more packed sequences in one pass are no faster"
    return "more are hardly faster" if more > fit.MOST_ROWS_AT_ONCE else "twice as many do not fit"


def _of_fit(found: fit.Fit, rows: Rows, known: dict[str, Any]) -> dict[str, Any]:
    batch = found.request.batch_size
    accumulation = max(1, round(known["effective"] / batch))
    whole = updates.sequences(rows.count, rows.total_tokens, known["packing"], known["max_length"])
    steps = updates.updates(whole, batch, accumulation, known["epochs"])
    rank, alpha = known["rank"], known["alpha"]
    return {
        "batch_size": batch,
        "accumulation": accumulation,
        "effective": batch * accumulation,
        "as_sequences": f" As packed sequences: {batch * accumulation}." if known["packing"].startswith("bfd") else "",
        "checkpointing": found.request.gradient_checkpointing,
        "needed_gib": found.gib,
        "batch_limit": _batch_limit(batch, known),
        "steps": steps,
        "save_steps": max(1, ceil(steps / 4)),
        "logging_steps": min(10, max(1, steps // 50)),
        "scale": f"{alpha / rank:g}" if alpha and rank else None,
    }


def _method(draft: _Draft, intent: Intent) -> dict[str, Any]:
    known = draft.facts
    made = {"peft_type": known["peft_type"], "config": known["config"]}
    if known["peft_type"] == methods.FULL:
        return {"peft_type": methods.FULL, "reason": intent.reason}
    for name in ("rank", "alpha", "dropout", "target_modules"):
        if known[name] is not None:
            made[name] = known[name]
    if known["config"].get("target_parameters") and not known["target_modules"]:
        made["target_modules"] = None
    return made | {"quantization": NF4 if draft.decided["method.quantised"].value else None}


def _whys(draft: _Draft) -> dict[str, Why]:
    """The reasons by field of plan.yaml. What is left to PEFT has none."""
    known, decided = draft.facts, draft.decided
    found = {
        name: each.why(known)
        for name, each in decided.items()
        if each.value is not None
        and name.startswith(("method.", "training.", "adapters", "mixture"))
        and name != "method.quantised"
    }
    if known["peft_type"] == methods.FULL:
        return {name: each for name, each in found.items() if name != "method.config"}
    config = found.pop("method.config")
    options = {
        f"method.config.{name}": config.model_copy(update={"value": each}) for name, each in config.value.items()
    }
    found |= options or {"method.config": config}
    quantised = decided["method.quantised"].why(known)
    name = "method.quantization.bits" if quantised.value else "method.quantization"
    found[name] = quantised.model_copy(update={"value": 4 if quantised.value else None})
    if known["target_modules"] is not None:
        found["method.target_modules"] = (
            decided["targets.preset"].why(known).model_copy(update={"value": known["target_modules"]})
        )
    return found


def _findings(found: fit.Fit, device: Device, intent: Intent, known: dict[str, Any]) -> list[Finding]:
    findings = []
    if intent.method and intent.method.lower() != "lora":
        findings.append(finding("advise.method.overruled", method=intent.method))
    if not found.fits:
        findings.append(
            finding("advise.memory.does_not_fit", needed_gib=found.gib, there_is_gib=round(device.memory_gib, 2))
        )
    return [*findings, *found.estimate.findings]
