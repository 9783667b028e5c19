"""What the twin must know of the scripts that render() writes (worker/jobs/twin.py), and how small it may be.

Knows: which claims of a project the twin holds against what it sees, and the sizes that a plan's own numbers need.
Does not know: how the twin is made (worker/), or what the scripts look like.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from peftsmith.knowledge import methods
from peftsmith.plan import FineTunePlan
from peftsmith.plan_method import Method
from peftsmith.project import facts, method_facts

_BODY_NAMES = {r"^model\.": "transformer."}  # as in the scripts (partials/body_names.py.j2)
_PICKS_LAYERS = re.compile(r"\.[(\[]?\d|\d[)\]]?\\?\.")  # a pattern with a layer's number in it
# Options of LoRA that leave the number of trained parameters as rank and targets imply it, but for two starts: EVA
# moves ranks between layers, MiCA trains one of the two matrices.
_COUNTED = {"use_rslora", "init_lora_weights", "fan_in_fan_out", "alpha_pattern"}
_NOT_COUNTED = ("eva", "mica")


def facts_of(plan: FineTunePlan, model_type: str) -> dict[str, Any]:
    """What the twin must know of the scripts that render() writes (worker/jobs/twin.py)."""
    method = plan.method
    stated = {**facts.task_facts(plan), **method_facts.facts_of(method)}
    every = [one.method for one in plan.alone().values()]
    needed = [least for each in every if (least := layers(each.options())) is not None]
    counted = method.peft_type == "LORA" and bool(method.rank and method.target_modules)
    counted = counted and method.config.get("init_lora_weights") not in _NOT_COUNTED
    return {
        "model_class": stated["model_class"],
        "task_type": plan.task_type,
        "labels": next(iter(plan.alone().values())).data.labels if stated["labelled_head"] else [],
        "key_mapping": _BODY_NAMES if facts.body_renamed(plan, model_type) else None,
        "result": stated["result"],
        "plain_lora": counted and set(method.config) <= _COUNTED,
        "merges": stated["merges"],
        "resumes": stated["resumes"],
        "converts": plan.converts,
        "tasks": list(plan.mixture) if facts.by_task(plan) else [],
        "head": max(map(_head, every)),
        "layers": max(needed) if len(needed) == len(every) else None,
    }


def _head(method: Method) -> int:
    """How wide an attention head of the twin must be for the method's own numbers."""
    return 16 if method.full else head(methods.method(method.peft_type), method.options())


def head(known: methods.Method, options: Mapping[str, Any]) -> int:
    """How wide an attention head of a cut-down model must be for the plan's own numbers to fit it: 16, or more.

    Block sizes have to divide every width, and what starts from a decomposition needs widths of its rank at least.
    """

    def of(name: str) -> int:
        value = options.get(name, known.fields[name]["default"])
        return value if isinstance(value, int) else 0

    needed = [16, known.twin_width, *(of(name) for name in known.divides)]
    if known.decomposes or methods.decomposes(options):
        # LoRA-GA takes twice as many directions of a gradient as the rank.
        times = 2 if options.get("init_lora_weights") == "lora_ga" else 1
        needed.append(-(-times * of(known.names["rank"]) // 32) * 16 if "rank" in known.names else 0)
    if known.sparse:
        needed.append(-(-of(known.names["rank"]) // 16) * 32)
    return max(needed)


def layers(options: Mapping[str, Any]) -> int | None:
    """How many layers a cut-down model must have at least, so that the layers which the plan names are there.

    None: all of them, as the plan picks layers by a pattern.
    """
    chosen = options.get("layers_to_transform")
    numbers = [chosen] if isinstance(chosen, int) else list(chosen or ())
    repeated = [int(each[-1]) for each in options.get("layer_replication") or () if each]
    needed: list[int] = [options.get("adapter_layers") or 0, *repeated, *(number + 1 for number in numbers)]
    for field_name in ("target_modules", "exclude_modules", "modules_to_save", "target_parameters"):
        named = options.get(field_name)
        if isinstance(named, str) and _PICKS_LAYERS.search(named):
            return None
        names = named if isinstance(named, list) else []
        needed += [int(part) + 1 for name in names for part in name.split(".") if part.isdigit()]
    return max(needed)
