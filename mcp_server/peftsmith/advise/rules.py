"""What is wrong or unwise in a plan, judged against the base model it names.

Knows: limits of training, method and data values as tables of small rules.
Does not know: serving (rules_serving.py), the base's modules (rules_model.py), combinations that PEFT refuses
(project/fitness.py), the rows (data/), the machine (machine/).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from peftsmith.advise import rules_model, rules_serving
from peftsmith.finding import Finding, finding
from peftsmith.knowledge import methods
from peftsmith.plan import FineTunePlan
from peftsmith.plan_method import Method
from peftsmith.project import fitness, together

if TYPE_CHECKING:
    from peftsmith.model.anatomy import Anatomy

LOWEST_LEARNING_RATE, HIGHEST_LEARNING_RATE = 5e-5, 5e-3
LOWEST_OF_FULL, HIGHEST_OF_FULL = 1e-6, 2e-4
_HOPELESS = 100  # times the highest rate that anybody reports
# alpha 32 (LoRA Without Regret) is a scale of 1/8 at rank 256 and 1/16 at rank 512.
LOWEST_SCALE, HIGHEST_SCALE = 0.0625, 8.0
MOST_EPOCHS, MOST_REPEATS = 8, 4
LARGEST_BATCH = 128
LONGEST_WARMUP = 0.3
MOST_DROPOUT = 0.3
MOST_DECAY = 0.2
TIGHTEST_CLIPPING, LOOSEST_CLIPPING = 0.05, 10.0
SHORTEST_ROWS = 64
_MOST_LABELS = 50
_QUANTISED_COPY = re.compile(r"[-_.](bnb-)?(4|8)bit\b|[-_.](gptq|awq|gguf|bnb|int4|int8)\b", re.IGNORECASE)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WHOLE_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings", "shared")

# What a rule saw, where it holds; None where it does not.
Seen = Mapping[str, Any] | None
Rule = Callable[[FineTunePlan], Seen]


def check(plan: FineTunePlan, anatomy: Anatomy | None, config: Mapping[str, Any] | None = None) -> list[Finding]:
    """Findings about a plan. Without an anatomy what needs one is reported as unknown; `config`, the base's
    config.json or what is known of it, then says what it can."""
    found = together.each_alone(plan, lambda one: judge(one, RULES) + judge(one, rules_serving.RULES))
    found += fitness.judge(plan, config if anatomy is None else anatomy.config)
    if anatomy is None:
        return [*found, finding("plan.base.unreadable", model=plan.base.model)]
    return [*found, *together.each_alone(plan, lambda one: rules_model.check(one, anatomy))]


def judge(plan: FineTunePlan, rules: Mapping[str, Rule]) -> list[Finding]:
    """The findings of a table of rules. A rule's `message` and `severity` go before the catalogue's."""
    found = []
    for id_, rule in rules.items():
        seen = rule(plan)
        if seen is not None:
            found.append(finding(id_, **seen))
    return found


def seen(holds: object, **evidence: Any) -> Seen:
    """What a rule returns: its evidence if it holds."""
    return evidence if holds else None


def scale(method: Method) -> float | None:
    """LoRA's factor alpha / r (rsLoRA: alpha / sqrt r) where the plan sets both; other methods scale otherwise."""
    if method.peft_type != "LORA" or method.alpha is None or method.rank is None:
        return None
    return float(method.alpha / (method.rank**0.5 if method.config.get("use_rslora") else method.rank))


def learning_rates(method: Method) -> tuple[float, float]:
    """The lowest and highest rate that experience supports for this method."""
    if method.full:
        return LOWEST_OF_FULL, HIGHEST_OF_FULL
    return methods.method(method.peft_type).learning_rate or (LOWEST_LEARNING_RATE, HIGHEST_LEARNING_RATE)


def effective_batch(plan: FineTunePlan) -> int:
    return plan.training.batch_size * plan.training.gradient_accumulation


def _low_rate(plan: FineTunePlan) -> Seen:
    low, rate = learning_rates(plan.method)[0], plan.training.learning_rate
    message = f"{rate:g} is below what {plan.method.peft_type} learns with ({low:g})."
    return seen(rate < low, message=message, learning_rate=rate, lowest=low)


def _high_rate(plan: FineTunePlan) -> Seen:
    high, rate = learning_rates(plan.method)[1], plan.training.learning_rate
    message = f"{rate:g} is above what {plan.method.peft_type} tolerates ({high:g}); the loss will likely diverge."
    hopeless = {"severity": "error"} if rate > _HOPELESS * high else {}
    return seen(rate > high, message=message, learning_rate=rate, highest=high, **hopeless)


def _scale(plan: FineTunePlan) -> Seen:
    value = scale(plan.method)
    return seen(value is not None and not LOWEST_SCALE <= value <= HIGHEST_SCALE, scale=round(value or 0.0, 4))


def _full(plan: FineTunePlan) -> Seen:
    pretraining = plan.task == "continued_pretraining"
    return seen(plan.method.full, severity="info" if pretraining else "warning", reason=plan.method.reason)


def _clipping(plan: FineTunePlan) -> Seen:
    norm = plan.training.max_grad_norm
    return seen(not TIGHTEST_CLIPPING <= norm <= LOOSEST_CLIPPING, max_grad_norm=norm)


def _virtual_tokens(plan: FineTunePlan) -> Seen:
    count = plan.method.config.get("num_virtual_tokens") or 0
    return seen(2 * count > plan.training.max_length, num_virtual_tokens=count, max_length=plan.training.max_length)


def _whole_modules(plan: FineTunePlan) -> Seen:
    saved = [name for name in plan.method.config.get("modules_to_save") or () if name in _WHOLE_EMBEDDINGS]
    return seen(saved, modules=saved)


def _same_file(plan: FineTunePlan) -> Seen:
    named = plan.splits()
    same = {file for file in named.values() if list(named.values()).count(file) > 1}
    if same & {file for split, file in named.items() if split.endswith("train")}:
        return seen(same, files=sorted(same))
    message = "eval and test are the same file: rows that choose the checkpoint are no test of it."
    return seen(same, severity="warning", message=message, files=sorted(same))


def _labels_alike(plan: FineTunePlan) -> Seen:
    plain = [" ".join(label.casefold().split()) for label in plan.data.labels]
    alike = [label for label, name in zip(plan.data.labels, plain, strict=True) if plain.count(name) > 1]
    return seen(alike, labels=alike[:8])


def _labels_unsaid(plan: FineTunePlan) -> Seen:
    prompt, labels = plan.data.system_prompt, plan.data.labels
    if plan.task != "classification" or len(labels) > _MOST_LABELS:
        return None
    unsaid = [label for label in labels if label not in (prompt or "")]
    return seen(unsaid, labels=unsaid[:8])


RULES: Mapping[str, Rule] = {
    "plan.learning_rate.full_tuning": _low_rate,
    "plan.learning_rate.too_high": _high_rate,
    "plan.precision.fp16_trainables": lambda p: seen(p.training.precision == "fp16"),
    "plan.alpha.scale_extreme": _scale,
    "plan.epochs.many": lambda p: seen(p.training.epochs > MOST_EPOCHS, epochs=p.training.epochs),
    "plan.epochs.pretraining": lambda p: seen(
        p.task == "continued_pretraining" and p.training.epochs > MOST_REPEATS, epochs=p.training.epochs
    ),
    "plan.remote_code.allowed": lambda p: seen(p.base.trust_remote_code, revision=p.base.revision),
    "advise.test.missing": lambda p: seen(p.data.test is None),
    "plan.batch.large": lambda p: seen(effective_batch(p) > LARGEST_BATCH, effective=effective_batch(p)),
    "plan.batch.single": lambda p: seen(effective_batch(p) == 1 and p.training.packing == "none"),
    "plan.grouping.ineffective": lambda p: seen(p.training.group_by_length and p.training.packing != "none"),
    "plan.warmup.long": lambda p: seen(p.training.warmup > LONGEST_WARMUP, warmup=p.training.warmup),
    "plan.weight_decay.high": lambda p: seen(
        p.training.weight_decay > MOST_DECAY, weight_decay=p.training.weight_decay
    ),
    "plan.clipping.extreme": _clipping,
    "plan.max_length.short": lambda p: seen(p.training.max_length < SHORTEST_ROWS, max_length=p.training.max_length),
    "plan.dropout.high": lambda p: seen((p.method.dropout or 0) > MOST_DROPOUT, dropout=p.method.dropout),
    "plan.full.instead_of_adapter": _full,
    "plan.quantization.fp4": lambda p: seen(p.method.quantization and p.method.quantization.type == "fp4"),
    "plan.quantization.single": lambda p: seen(
        p.method.quantization and p.method.quantization.bits == 4 and not p.method.quantization.double
    ),
    "plan.init.random": lambda p: seen(p.method.config.get("init_lora_weights") is False),
    "plan.prompt.long": _virtual_tokens,
    "plan.modules.saved_whole": _whole_modules,
    "plan.data.same_file": _same_file,
    "plan.labels.alike": _labels_alike,
    "plan.labels.unsaid": _labels_unsaid,
    "plan.base.quantised_copy": lambda p: seen(_QUANTISED_COPY.search(p.base.model), model=p.base.model),
    "plan.base.unpinned": lambda p: seen(
        p.base.revision is None and _HUB_ID.fullmatch(p.base.model), model=p.base.model
    ),
}
