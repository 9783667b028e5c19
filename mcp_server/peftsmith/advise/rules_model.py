"""What is wrong or unwise in a plan for this very base model: lengths, number formats, tokens, templates.

Knows: which fields of a plan depend on the base's widths, positions, vocabulary, template and family.
Does not know: whether its targets are there (rules_targets.py), or what is wrong whatever the base is (rules.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from peftsmith.advise import rules_targets
from peftsmith.advise.facts import OVERFLOW_FP16
from peftsmith.finding import Finding, finding
from peftsmith.plan import FineTunePlan

if TYPE_CHECKING:
    from peftsmith.model.anatomy import Anatomy

_CHATS = ("chat", "classification")


def check(plan: FineTunePlan, anatomy: Anatomy) -> list[Finding]:
    """Findings about a plan that depend on its base model."""
    return [*rules_targets.check(plan, anatomy), *_limits(plan, anatomy), *_base(plan, anatomy)]


def _limits(plan: FineTunePlan, anatomy: Anatomy) -> Iterator[Finding]:
    length, limit = plan.training.max_length, anatomy.max_positions
    if limit and length > limit:
        yield finding("plan.max_length.above_model", max_length=length, limit=limit)
    tokens = plan.method.config.get("trainable_token_indices") or plan.method.config.get("token_indices") or []
    numbers = [each for value in tokens.values() for each in value] if isinstance(tokens, dict) else tokens
    outside = [each for each in numbers if isinstance(each, int) and not 0 <= each < anatomy.vocab]
    if outside and anatomy.vocab:
        yield finding("plan.tokens.outside", tokens=outside[:8], vocabulary=anatomy.vocab)
    if plan.training.precision == "fp16" and anatomy.model_type.startswith(OVERFLOW_FP16):
        yield finding("plan.precision.fp16_overflow", model_type=anatomy.model_type)


def _base(plan: FineTunePlan, anatomy: Anatomy) -> Iterator[Finding]:
    if plan.method.quantization and anatomy.quantization:
        yield finding("plan.quantization.doubled", quantization=anatomy.quantization)
    if plan.task_type == "CAUSAL_LM":
        for each in anatomy.findings:
            if each.id == "model.architecture.not_causal":
                yield finding(each.id, each.message, severity="error", **each.evidence)
    if plan.task in _CHATS and anatomy.chat_template is None and plan.training.chat_template is None:
        yield finding("plan.template.missing", task=plan.task)
    if anatomy.quantization:
        message = f"The generated scripts do not load a base that is stored as {anatomy.quantization} yet."
        yield finding("model.quantization.stored", message, severity="error", scheme=anatomy.quantization)
