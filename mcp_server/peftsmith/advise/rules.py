"""What is wrong or unwise in a plan, judged against the base model it names.

Knows: the plan-level rules and their limits; the catalogue of reasons in knowledge/rules.toml.
Does not know: the rows (data/), the machine (machine/), or whether the scripts work (project/).
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from peftsmith.finding import Finding, Severity, finding
from peftsmith.knowledge import methods
from peftsmith.lock import Why
from peftsmith.plan import FineTunePlan
from peftsmith.plan_method import Method
from peftsmith.project import fitness

if TYPE_CHECKING:
    from peftsmith.model.anatomy import Anatomy

LOWEST_LEARNING_RATE, HIGHEST_LEARNING_RATE = 5e-5, 5e-3
LOWEST_OF_FULL, HIGHEST_OF_FULL = 1e-6, 2e-4
# Methods that adapt the same modules as LoRA, so that the same judgement of targets holds.
_LORA_TARGETS = ("LORA", "ADALORA", "DELORA", "HIRA", "LOHA", "LOKR", "MISS", "RANDLORA", "VERA")
LOWEST_SCALE, HIGHEST_SCALE = 0.25, 8.0
MOST_EPOCHS = 8
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
IGNORE_RSLORA = ("sglang", "llama.cpp", "ollama")


@cache
def reasons() -> dict[str, dict[str, str]]:
    """knowledge/rules.toml: rule id to statement, source, strength, conflicts, would_change."""
    text = resources.files("peftsmith").joinpath("knowledge", "rules.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def why(value: object, rule: str, reason: str) -> Why:
    """The lock's entry for one recommended value."""
    entry = reasons()[rule]
    return Why(value=value, rule=rule, reason=reason, source=entry["source"], would_change=entry["would_change"])


def check(plan: FineTunePlan, anatomy: Anatomy | None) -> list[Finding]:
    """Findings about a plan; without an anatomy what needs one is reported as unknown."""
    found = [*_hyperparameters(plan), *_serving(plan)]
    found += fitness.judge(plan, None if anatomy is None else {"model_type": anatomy.model_type})
    if anatomy is None:
        return [*found, finding("plan.base.unreadable", model=plan.base.model)]
    return [*found, *_against_model(plan, anatomy)]


def _hyperparameters(plan: FineTunePlan) -> list[Finding]:
    training, method = plan.training, plan.method
    scale = _scale(method)
    low, high = _learning_rates(method)
    rules: list[tuple[bool, Callable[[], Finding]]] = [
        (
            training.learning_rate < low,
            lambda: finding("plan.learning_rate.full_tuning", learning_rate=training.learning_rate),
        ),
        (
            training.learning_rate > high,
            lambda: finding("plan.learning_rate.too_high", learning_rate=training.learning_rate),
        ),
        (training.precision == "fp16", lambda: finding("plan.precision.fp16_trainables")),
        (
            scale is not None and not LOWEST_SCALE <= scale <= HIGHEST_SCALE,
            lambda: finding("plan.alpha.scale_extreme", scale=round(scale or 0.0, 4)),
        ),
        (training.epochs > MOST_EPOCHS, lambda: finding("plan.epochs.many", epochs=training.epochs)),
        (plan.base.trust_remote_code, lambda: finding("plan.remote_code.allowed", revision=plan.base.revision)),
        (plan.data.test is None, lambda: finding("advise.test.missing")),
    ]
    return [make() for holds, make in rules if holds]


def _scale(method: Method) -> float | None:
    """LoRA's factor alpha / r (rsLoRA: alpha / sqrt r) where the plan sets both; other methods scale otherwise."""
    if method.peft_type != "LORA" or method.alpha is None or method.rank is None:
        return None
    return float(method.alpha / (method.rank**0.5 if method.config.get("use_rslora") else method.rank))


def _learning_rates(method: Method) -> tuple[float, float]:
    if method.full:
        return LOWEST_OF_FULL, HIGHEST_OF_FULL
    return methods.method(method.peft_type).learning_rate or (LOWEST_LEARNING_RATE, HIGHEST_LEARNING_RATE)


def _serving(plan: FineTunePlan) -> list[Finding]:
    found = []
    if plan.method.config.get("use_rslora") and plan.serving in IGNORE_RSLORA:
        found.append(finding("plan.scale.lost_at_serving", serving=plan.serving))
    if not plan.method.full:
        known = methods.method(plan.method.peft_type)
        if plan.serving not in methods.servers(known, plan.method.config):
            merges = methods.merges(known, plan.method.config)
            message = f"{plan.serving} does not load this {known.name} adapter" + (
                "; serve the merged model." if merges else ", and it cannot be merged."
            )
            severity: Severity = "warning" if merges else "error"
            found.append(finding("plan.method.unserved", message, severity=severity, serving=plan.serving))
    rank = plan.method.rank
    if plan.serving == "vllm" and rank is not None and rank > VLLM_RANKS[-1]:
        found.append(finding("plan.rank.above_server", rank=rank, highest=VLLM_RANKS[-1]))
    return found


def _against_model(plan: FineTunePlan, anatomy: Anatomy) -> list[Finding]:
    from peftsmith.model import target_findings

    method = plan.method
    found = []
    if method.target_modules is not None and method.peft_type in _LORA_TARGETS:
        found += target_findings.judge(anatomy, method.target_modules, method.rank or 1)
    if anatomy.max_positions and plan.training.max_length > anatomy.max_positions:
        found.append(
            finding("plan.max_length.above_model", max_length=plan.training.max_length, limit=anatomy.max_positions)
        )
    if method.quantization and anatomy.quantization:
        found.append(finding("plan.quantization.doubled", quantization=anatomy.quantization))
    if plan.task_type == "CAUSAL_LM":
        found += [
            finding(each.id, each.message, severity="error", **each.evidence)
            for each in anatomy.findings
            if each.id == "model.architecture.not_causal"
        ]
    if anatomy.quantization:
        message = f"The generated scripts do not load a base that is stored as {anatomy.quantization} yet."
        found.append(finding("model.quantization.stored", message, severity="error", scheme=anatomy.quantization))
    return found
