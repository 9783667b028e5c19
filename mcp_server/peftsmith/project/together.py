"""Several adapters on one base: what their scripts must know, and which can share a base at all.

Knows: which files and prompts belong to which adapter, when PEFT can wrap one base for all of them, when it can
combine them into one.
Does not know: a plan of one adapter (render.py), or whether the method alone fits the base (fitness.py).
"""

from __future__ import annotations

from typing import Any

from peftsmith.plan import FineTunePlan

# LoRA's options with which add_weighted_adapter gives something else than the weighted sum: it keeps use_rslora while
# it sets lora_alpha to the new rank (the scale becomes the rank's root instead of 1), and forgets DoRA's magnitudes.
UNCOMBINED = ("use_rslora", "use_dora", "lora_bias", "target_parameters", "modules_to_save", "trainable_token_indices")


def facts(plan: FineTunePlan) -> dict[str, Any]:
    """What the templates ask about the adapters of a plan; for a plan of one, that there are none."""
    alone = plan.alone() if plan.adapters else {}
    prompts = {name: each.system_prompt for name, each in plan.adapters.items() if each.system_prompt is not None}
    found: dict[str, Any] = {
        "adapters": list(alone),
        "own_prompts": bool(prompts),
        "system_prompts": prompts,
        "prompt_name": "system_prompt" if prompts else "SYSTEM_PROMPT",
        "combines": combines(plan),
        "mixed": mixed(plan),
        "peft_model": "PeftMixedModel" if mixed(plan) else "PeftModel",
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
    return bool(plan.adapters) and all(
        each.peft_type == "LORA" and not any(each.config.get(name) for name in UNCOMBINED) for each in chosen
    )
