"""Does what a method names exist in this base model, and do its numbers fit the modules that it reaches?

Knows: how a plan's fields become PEFT's, and that PEFT says nothing of a name that matches nothing.
Does not know: how names are matched (model/reach.py), what is unwise in a match (model/target_findings.py), or what a
method adds to a module (model/methods.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peftsmith.advise.facts import highest_rank
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding
from peftsmith.model import reach
from peftsmith.plan import FineTunePlan
from peftsmith.plan_method import Method

if TYPE_CHECKING:
    from peftsmith.model.anatomy import Anatomy
    from peftsmith.model.modules import Skeleton

# Methods that adapt the same modules as LoRA, so that the same judgement of targets holds.
LORA_TARGETS = ("LORA", "ADALORA", "DELORA", "HIRA", "LOHA", "LOKR", "MISS", "RANDLORA", "VERA")
LEAST_RANK, LEAST_RANK_FROM = 4, 10_000_000  # below so many parameters a low rank is a large share
LEAST_RANK_OF_PRETRAINING = 64  # or the highest that the model takes
# Fields of a config that say which modules are reached.
_LAYERS = ("exclude_modules", "layers_to_transform", "layers_pattern")
_PLACES = ("target_parameters", *_LAYERS, "modules_to_save", "ensure_weight_tying")
_PATTERNS = ("rank_pattern", "alpha_pattern")
# The head that config.json names is not the one that these tasks train with.
OTHER_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
_OF_HEADS = ("model.targets.head", "model.targets.tied_head", "model.targets.embeddings_saved")
_SHOWN = 8


def check(plan: FineTunePlan, anatomy: Anatomy) -> list[Finding]:
    """Findings about the plan's targets, ranks and sizes; `plan.targets.unchecked` where the modules are not known."""
    if plan.method.full:
        return []
    if anatomy.skeleton is None:
        named = plan.method.target_modules is not None or plan.method.config.get("target_parameters")
        return [finding("plan.targets.unchecked", model_type=anatomy.model_type)] if named else []
    found = _of_lora(plan, anatomy) if plan.method.peft_type in LORA_TARGETS else _of_others(plan, anatomy.skeleton)
    lost = [] if found and found[0].id == "model.targets.no_match" else list(_lost(plan, anatomy.skeleton))
    if lost:
        message = f"These names match nothing in the model: {', '.join(map(repr, lost[:_SHOWN]))}."
        found.append(finding("model.targets.unmatched", message, names=lost[:_SHOWN]))
    return found if any(each.severity == "error" for each in found) else [*found, *_sizes(plan.method, anatomy)]


def _lost(plan: FineTunePlan, skeleton: Skeleton) -> Iterator[str]:
    """Names of the method's options, and of the targets of others than LoRA, that match nothing."""
    method, names = plan.method, skeleton.names
    if method.peft_type not in LORA_TARGETS and isinstance(method.target_modules, list):
        yield from (each for each in method.target_modules if not reach.matching(names, [each]))
    parameters = method.config.get("target_parameters") or []
    yield from (each for each in parameters if not reach.parameters(skeleton, [each]))
    if plan.task_type not in OTHER_HEAD:
        yield from (each for each in method.config.get("modules_to_save") or [] if not reach.matching(names, [each]))
    for each in (pattern for option in _PATTERNS for pattern in method.config.get(option) or {}):
        rule = re.compile(rf"(.*\.)?({reach.compiled(each).pattern})$")  # peft/utils/other.py get_pattern_key
        if not any(map(rule.match, names)):
            yield each


def _of_others(plan: FineTunePlan, skeleton: Skeleton) -> list[Finding]:
    targets, config = plan.method.target_modules, plan.method.config
    fields = {"target_modules": targets, **{name: config[name] for name in _LAYERS if config.get(name)}}
    if not targets or targets == "all-linear" or reach.matched(skeleton.names, fields):
        return []
    shown = [targets] if isinstance(targets, str) else targets
    return [finding("model.targets.no_match", target_modules=shown[:_SHOWN])]


def _of_lora(plan: FineTunePlan, anatomy: Anatomy) -> list[Finding]:
    method = plan.method
    if method.target_modules is None and not method.config.get("target_parameters"):
        return []
    fields: dict[str, Any] = {"target_modules": method.target_modules or []}
    fields |= {name: method.config[name] for name in _PLACES if method.config.get(name)}
    found = list(_rank(plan, anatomy, fields)) if method.peft_type == "LORA" else []
    # A planner asks the same of many plans that differ in other fields.
    found += anatomy.once(("advise.targets", repr(fields), method.rank), lambda: _reached(anatomy, fields, method))
    found = [each for each in found if plan.task_type not in OTHER_HEAD or each.id not in _OF_HEADS]
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


def _sizes(method: Method, anatomy: Anatomy) -> list[Finding]:
    """Block sizes that do not divide a width, more layers or tokens than there are: what PEFT would refuse."""
    return anatomy.once(("advise.sizes", method.model_dump_json()), lambda: _do_not_fit(method, anatomy))


def _do_not_fit(method: Method, anatomy: Anatomy) -> list[Finding]:
    from peftsmith.model import methods as costs
    from peftsmith.model import targets

    options, skeleton = method.options(), anatomy.skeleton
    quantised, whole = method.quantization is not None, method.peft_type in costs.WHOLE_MODEL
    named = options.get("target_modules") or options.get("target_parameters")
    if skeleton is None or method.peft_type not in costs.METHODS or not (whole or named):
        return []
    try:
        reached = reach.Reach(()) if whole else reach.reach(skeleton, options, method.rank or 1, method.peft_type)
        # bitsandbytes makes plain linear layers of GPT-2's transposed ones.
        modules = [
            replace(each, kind="linear") if quantised and each.kind == "conv1d" else each for each in reached.modules
        ]
        costs.trainable(method.peft_type, targets.sizes(anatomy), options, modules)
    except costs.CostUnknown:
        return []  # it may fit: nothing is known against it
    except PeftsmithError as error:
        message = f"{error.cause}. {error.next_step}"
        return [finding("plan.method.size", message, method=method.peft_type, value=error.value)]
    return [finding("model.targets.refused", f"PEFT will stop: {why}.") for why in reached.refused]
