"""Several adapters on one base: what their scripts must know, and which can share a base at all.

Knows: which files and prompts belong to which adapter, when PEFT can wrap one base for all of them, when it can
combine them into one.
Does not know: a plan of one adapter (render.py), or whether the method alone fits the base (fitness.py).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from peftsmith.finding import Finding, finding
from peftsmith.knowledge import methods
from peftsmith.model import catalogue
from peftsmith.plan import FineTunePlan
from peftsmith.plan_method import Method

# Whose scripts take several adapters, and one adapter for several data sets.
TASKS = ("chat", "completion", "text", "continued_pretraining", "sequence_classification", "token_classification",
         "question_answering", "seq2seq")  # fmt: skip
# PEFT 0.21.2: PeftMixedModel.from_pretrained takes these beside others, but not as the first.
_NOT_FIRST = ("OFT",)
_HEADS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")  # each adapter has a head of its own

# LoRA's options with which add_weighted_adapter gives something else than the weighted sum: it keeps use_rslora while
# it sets lora_alpha to the new rank (the scale becomes the rank's root instead of 1), and forgets DoRA's magnitudes.
UNCOMBINED = ("use_rslora", "use_dora", "lora_bias", "target_parameters", "modules_to_save", "trainable_token_indices")


def facts(plan: FineTunePlan) -> dict[str, Any]:
    """What the templates ask about the adapters of a plan; for a plan of one, that there are none."""
    alone = plan.alone() if plan.adapters or plan.mixture else {}
    prompts = {name: each.system_prompt for name, each in plan.adapters.items() if each.system_prompt is not None}
    found: dict[str, Any] = {
        "adapters": list(plan.adapters),
        "mixture": list(plan.mixture),
        "weights": {name: each.weight for name, each in plan.mixture.items() if each.weight is not None},
        "own_prompts": bool(prompts),
        "system_prompts": prompts,
        "prompt_name": "system_prompt" if prompts else "SYSTEM_PROMPT",
        "own_labels": any(each.labels is not None for each in plan.adapters.values()),
        "labels_apart": {name: each.labels for name, each in plan.adapters.items()},
        "combines": combines(plan),
        "mixed": mixed(plan),
        "peft_model": "PeftMixedModel" if mixed(plan) else "PeftModel",
        "not_first": [name for name, one in alone.items() if mixed(plan) and one.method.peft_type in _NOT_FIRST],
        "own_methods": any(each.method for each in plan.adapters.values()),
    }
    for split in ("train", "eval", "test"):
        found[f"{split}_files"] = {name: getattr(one.data, split) for name, one in alone.items()}
    found["measured_files"] = "TEST_FILES" if alone and all(found["test_files"].values()) else "EVAL_FILES"
    return found


def mixed(plan: FineTunePlan) -> bool:
    """Are the adapters of more than one type, so that only PeftMixedModel holds them all?"""
    return len({one.method.peft_type for one in plan.alone().values()}) > 1


def combines(plan: FineTunePlan) -> bool:
    """Can PEFT make one adapter of several of these, weighted?"""
    chosen = [one.method for one in plan.alone().values()]
    lora = methods.method("LORA")
    return (
        bool(plan.adapters)
        and plan.task_type not in _HEADS
        and all(
            each.peft_type == "LORA"
            and methods.merges(lora, each.config)
            and not any(each.config.get(name) for name in UNCOMBINED)
            for each in chosen
        )
    )


def about(found: Finding, adapter: str) -> Finding:
    """The finding, saying of which adapter it speaks; as it is for a plan of one."""
    if not adapter:
        return found
    evidence = {**found.evidence, "adapter": adapter}
    return replace(found, message=f"{adapter}: {found.message}", evidence=evidence)


def each_alone(plan: FineTunePlan, look: Callable[[FineTunePlan], list[Finding]]) -> list[Finding]:
    """What `look` finds of every adapter as if it were alone; what it says of all of them it says once."""
    seen = {name: look(one) for name, one in plan.alone().items()}
    first, *others = seen.values()
    common = [each for each in first if all(each in other for other in others)]
    return common + [about(each, name) for name, found in seen.items() for each in found if each not in common]


def judge(plan: FineTunePlan, model_type: str | None = None) -> Iterator[Finding]:
    """What stands against these adapters sharing one base, of this type if it is known (nothing for a plan of one)."""
    several = "adapters" if plan.adapters else "data sets"
    if (plan.adapters or plan.mixture) and plan.task not in TASKS:
        message = f"Several {several} in one project are for {', '.join(TASKS)}; not for {plan.task}."
        yield finding("plan.adapters.task", message, task=plan.task)
    if not plan.adapters:
        return
    chosen = {name: one.method for name, one in plan.alone().items()}
    types = sorted({each.peft_type for each in chosen.values()})
    alone = [each for each in types if each == methods.FULL or not methods.method(each).shares]
    if alone:
        message = f"{alone[0]} does not share a base with other adapters."
        yield finding("plan.adapters.method", message, method=alone[0])
        return
    apart = [each for each in types if not methods.method(each).mixed]
    if len(types) > 1 and apart:
        mixable = [each for each in methods.names() if methods.method(each).mixed]
        message = f"PEFT wraps one base for {' and '.join(types)} only if each is one of {', '.join(mixable)}."
        yield finding("plan.adapters.mixed", message, types=types, apart=apart)
    if len(types) > 1 and plan.method.quantization:
        message = f"PEFT wraps no quantised base for {' and '.join(types)} together."
        yield finding("plan.adapters.mixed", message, types=types)
    if len(types) > 1 and model_type and catalogue.has_experts(model_type):
        message = f"PEFT does not merge {' and '.join(types)} together into a base with experts ({model_type})."
        yield finding("plan.adapters.mixed", message, types=types, model_type=model_type)
    if plan.task_type in _HEADS:
        yield from _heads(plan, types)
    for name, each in chosen.items():
        yield from _method(name, each, own=any(one.method for one in plan.adapters.values()))
    biased = [name for name, each in chosen.items() if each.config.get("bias") not in (None, "none")]
    if len(biased) > 1:
        message = f"PEFT lets one adapter of a base train biases, not {', '.join(biased)}."
        yield finding("plan.adapters.options", message, option="bias", adapters=biased)
    for name, each in chosen.items():
        if each.config.get("modules_to_save"):
            message = f"{name}: PEFT leaves the trained copy of modules_to_save in the base that others need as it is."
            yield finding("plan.adapters.options", message, option="modules_to_save", adapter=name)
    if len({bool(each.config.get("trainable_token_indices")) for each in chosen.values()}) > 1:
        message = "Either all adapters have trainable_token_indices or none: PEFT cannot switch between the two."
        yield finding("plan.adapters.options", message, option="trainable_token_indices")
    parameters = {str(each.config.get("target_parameters")) for each in chosen.values()}
    if len(parameters) > 1:
        message = "Adapters with target_parameters must all have the same ones."
        yield finding("plan.adapters.options", message, option="target_parameters")


def _heads(plan: FineTunePlan, types: list[str]) -> Iterator[Finding]:
    """What stands against heads of the adapters' own, which PEFT keeps as copies of the base's (modules_to_save)."""
    sizes = {name: len(one.data.labels) for name, one in plan.alone().items()}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        message = f"PEFT copies one head for all adapters, so that it has as many labels for each: {shown}."
        yield finding("plan.adapters.labels", message, labels=sizes)
    headless = [each for each in types if "modules_to_save" not in methods.method(each).fields]
    headless += [each for each in types if methods.method(each).prompt_learning and each not in headless]
    if headless:
        message = f"{headless[0]} does not keep a head apart from the base's for each of several adapters."
        yield finding("plan.adapters.method", message, method=headless[0])
    if len(types) > 1:
        message = f"PEFT switches one head at a time, so that {' and '.join(types)} cannot be in use together."
        yield finding("plan.adapters.mixed", message, types=types)


def _method(name: str, method: Method, *, own: bool) -> Iterator[Finding]:
    """What stands against one adapter's method beside others."""
    known = methods.method(method.peft_type)
    init = str(method.config.get("init_lora_weights"))
    if any(fnmatch.fnmatchcase(init, pattern) for pattern in known.alters_base):
        message = f"{name}: {init} changes the base, which the other adapters need as it is."
        yield finding("plan.adapters.alters_base", message, adapter=name, option="init_lora_weights")
    if method.config.get("layer_replication"):
        message = f"{name}: layer_replication changes the base, which the other adapters need as it is."
        yield finding("plan.adapters.alters_base", message, adapter=name, option="layer_replication")
    if own and (known.name == "ADALORA" or init in ("eva", "loftq")):
        what = "ADALORA" if known.name == "ADALORA" else f"init_lora_weights={init}"
        message = f"{name}: {what} is prepared in the script, so that it must be the method of all adapters or of none."
        yield finding("plan.adapters.method", message, method=known.name, adapter=name)
    if name in known.prefix:
        message = f"An adapter of {known.name} cannot be called {name}: PEFT would take it for part of {known.prefix}."
        yield finding("plan.adapters.name", message, adapter=name)
