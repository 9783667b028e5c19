"""What is wrong or unwise in a plan for this very base model: targets, lengths, number formats, tokens.

Knows: which fields of a plan depend on the base's widths, positions, vocabulary, template and family.
Does not know: how targets are matched (model/reach.py), or what is wrong whatever the base is (rules.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peftsmith.advise.facts import OVERFLOW_FP16, highest_rank
from peftsmith.finding import Finding, finding
from peftsmith.plan import FineTunePlan
from peftsmith.plan_method import Method

if TYPE_CHECKING:
    from peftsmith.model.anatomy import Anatomy

# Methods that adapt the same modules as LoRA, so that the same judgement of targets holds.
LORA_TARGETS = ("LORA", "ADALORA", "DELORA", "HIRA", "LOHA", "LOKR", "MISS", "RANDLORA", "VERA")
LEAST_RANK, LEAST_RANK_FROM = 4, 10_000_000  # below so many parameters a low rank is a large share
LEAST_RANK_OF_PRETRAINING = 64  # or the highest that the model takes
# Fields of a config that say which modules are reached.
_PLACES = (
    "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
    "ensure_weight_tying",
)  # fmt: skip
_CHATS = ("chat", "classification")
# The head that config.json names is not the one that these tasks train with.
_OTHER_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
_OF_HEADS = ("model.targets.head", "model.targets.tied_head", "model.targets.embeddings_saved")


def check(plan: FineTunePlan, anatomy: Anatomy) -> list[Finding]:
    """Findings about a plan that depend on its base model."""
    return [*_targets(plan, anatomy), *_limits(plan, anatomy), *_base(plan, anatomy)]


def _targets(plan: FineTunePlan, anatomy: Anatomy) -> list[Finding]:
    method = plan.method
    reached = method.target_modules is not None or bool(method.config.get("target_parameters"))
    if method.peft_type not in LORA_TARGETS or not reached:
        return []
    if not anatomy.supported:
        return [finding("plan.targets.unchecked", model_type=anatomy.model_type)]
    fields: dict[str, Any] = {"target_modules": method.target_modules or []}
    fields |= {name: method.config[name] for name in _PLACES if method.config.get(name)}
    found = list(_rank(plan, anatomy, fields)) if method.peft_type == "LORA" else []
    # A planner asks the same of many plans that differ in other fields.
    found += anatomy.once(("advise.targets", repr(fields), method.rank), lambda: _reached(anatomy, fields, method))
    found = [each for each in found if plan.task_type not in _OTHER_HEAD or each.id not in _OF_HEADS]
    # A plan's rank follows from its data: a share of some per cent is then worth knowing and no fault.
    return [replace(each, severity="info") if each.id == "model.targets.share_high" else each for each in found]


def _rank(plan: FineTunePlan, anatomy: Anatomy, fields: dict[str, Any]) -> Iterator[Finding]:
    rank = plan.method.rank or 0
    if rank < LEAST_RANK and anatomy.parameters >= LEAST_RANK_FROM:
        yield finding("plan.rank.very_low", rank=rank, least=LEAST_RANK)
    if plan.task == "continued_pretraining":
        least = min(LEAST_RANK_OF_PRETRAINING, highest_rank(anatomy, fields))
        if rank < least:
            yield finding("plan.rank.low_for_pretraining", rank=rank, least=least)


def _reached(anatomy: Anatomy, fields: dict[str, Any], method: Method) -> list[Finding]:
    from peftsmith.model import target_findings, targets
    from peftsmith.model.roles import ATTENTION, role

    found = target_findings.judge(anatomy, fields, method.rank or 1)
    kinds = {role(name) for name in targets.adapted(anatomy, fields)}
    return [*found, finding("plan.targets.attention_only")] if kinds and kinds <= set(ATTENTION) else found


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
