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

from peftsmith.finding import Finding, finding
from peftsmith.lock import Why
from peftsmith.plan import FineTunePlan

if TYPE_CHECKING:
    from peftsmith.model.anatomy import Anatomy

LOWEST_LEARNING_RATE, HIGHEST_LEARNING_RATE = 5e-5, 5e-3
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
    if anatomy is None:
        return [*found, finding("plan.base.unreadable", model=plan.base.model)]
    return [*found, *_against_model(plan, anatomy)]


def _hyperparameters(plan: FineTunePlan) -> list[Finding]:
    training, method = plan.training, plan.method
    scale = method.alpha / (method.rank**0.5 if method.rslora else method.rank)
    rules: list[tuple[bool, Callable[[], Finding]]] = [
        (
            training.learning_rate < LOWEST_LEARNING_RATE,
            lambda: finding("plan.learning_rate.full_tuning", learning_rate=training.learning_rate),
        ),
        (
            training.learning_rate > HIGHEST_LEARNING_RATE,
            lambda: finding("plan.learning_rate.too_high", learning_rate=training.learning_rate),
        ),
        (training.precision == "fp16", lambda: finding("plan.precision.fp16_trainables")),
        (
            not LOWEST_SCALE <= scale <= HIGHEST_SCALE,
            lambda: finding("plan.alpha.scale_extreme", scale=round(scale, 4)),
        ),
        (training.epochs > MOST_EPOCHS, lambda: finding("plan.epochs.many", epochs=training.epochs)),
        (plan.base.trust_remote_code, lambda: finding("plan.remote_code.allowed", revision=plan.base.revision)),
        (plan.data.test is None, lambda: finding("advise.test.missing")),
    ]
    return [make() for holds, make in rules if holds]


def _serving(plan: FineTunePlan) -> list[Finding]:
    found = []
    if plan.method.rslora and plan.serving in IGNORE_RSLORA:
        found.append(finding("plan.scale.lost_at_serving", serving=plan.serving))
    if plan.serving == "vllm" and not any(plan.method.rank <= rank for rank in VLLM_RANKS):
        found.append(finding("plan.rank.above_server", rank=plan.method.rank, highest=VLLM_RANKS[-1]))
    return found


def _against_model(plan: FineTunePlan, anatomy: Anatomy) -> list[Finding]:
    from peftsmith.model import target_findings

    found = target_findings.judge(anatomy, plan.method.target_modules, plan.method.rank)
    if anatomy.max_positions and plan.training.max_length > anatomy.max_positions:
        found.append(
            finding("plan.max_length.above_model", max_length=plan.training.max_length, limit=anatomy.max_positions)
        )
    if plan.method.quantization and anatomy.quantization:
        found.append(finding("plan.quantization.doubled", quantization=anatomy.quantization))
    found += [
        finding(each.id, each.message, severity="error", **each.evidence)
        for each in anatomy.findings
        if each.id == "model.architecture.not_causal"
    ]
    if anatomy.quantization:
        message = f"The generated scripts do not load a base that is stored as {anatomy.quantization} yet."
        found.append(finding("model.quantization.stored", message, severity="error", scheme=anatomy.quantization))
    return found
