"""What the templates must know of a plan's methods.

Knows: a method's settings, start and abilities, and what the methods of several adapters have in common.
Does not know: the task or the rows (facts.py), or what a method does (knowledge/methods.py).
"""

from __future__ import annotations

from typing import Any

from peftsmith.knowledge import methods, starts
from peftsmith.plan import FineTunePlan
from peftsmith.plan_method import Method
from peftsmith.project import settings


def facts_of(method: Method) -> dict[str, Any]:
    """What a script must know of the method; an option is {field of PEFT's config, setting, value}."""
    quantization = method.quantization.model_dump() if method.quantization else None
    targets = method.target_modules
    facts: dict[str, Any] = {
        "quantization": quantization,
        "full": method.full,
        "lora": method.peft_type == "LORA",
        "bottleneck": False,
        "loaded_class": "PeftModel",
        "method_name": method.peft_type,
        "method_title": _title(method),
        "result": "model" if method.full else "adapter",
        "train_dtype": "torch.float32" if method.full else "DTYPE",
        **_start(method),
        "targets": targets if isinstance(targets, str) or targets is None else ", ".join(targets),
        "options": [],
        "config_class": None,
        "merges": False,
        "resumes": True,
        "prompt_learning": False,
        "own_forward": False,
        "widens": False,
        "near_one": False,
        "saves_modules": False,
    }
    if method.full:
        return facts
    known = methods.method(method.peft_type)
    plain = {known.names[name]: name.upper() for name in method.first_class()}
    return facts | {
        "config_class": known.config,
        "bottleneck": known.library == "adapters",
        "loaded_class": "torch.nn.Module" if known.library == "adapters" else "PeftModel",
        "merges": methods.merges(known, method.config),
        "resumes": methods.resumes(known, method.config),
        "prompt_learning": known.prompt_learning,
        "own_forward": known.own_forward,
        "widens": method.quantization is not None and method.quantization.bits in known.widens,
        # DoRA's magnitudes are norms of rows, far larger than the updates that they get.
        "near_one": known.near_one == "adapter" or bool(method.config.get("use_dora")),
        "saves_modules": "modules_to_save" in known.fields,
        "options": [
            {"field": field, "setting": plain.get(field) or settings.setting_of(field), "value": value}
            for field, value in method.options().items()
            # The scripts start LoftQ themselves, from a plain adapter.
            if not (facts["loftq"] and field in ("init_lora_weights", "loftq_config"))
        ],
    }


def several(plan: FineTunePlan) -> dict[str, Any]:
    """What the methods of several adapters have in common, and the configuration of each where they have their own."""
    each = {name: facts_of(one.method) for name, one in plan.alone().items()}
    return {
        "merges": any(facts["merges"] for facts in each.values()),
        "resumes": all(facts["resumes"] for facts in each.values()),
        "adalora": any(facts["method_name"] == "ADALORA" for facts in each.values()),
        "adapter_methods": [{"name": name, **facts} for name, facts in each.items()],
        "config_classes": sorted({facts["config_class"] for facts in each.values() if facts["config_class"]}),
    }


def _start(method: Method) -> dict[str, Any]:
    """A start that looks at rows; `default_start` is the same where the plan leaves its own configuration to PEFT."""
    init = str(method.config.get("init_lora_weights"))
    start = init if init in starts.FROM_ROWS else None
    return {
        "loftq": init == starts.LOFTQ,
        "start": start,
        "looks_at_rows": start in ("corda", "lora_ga"),
        "default_start": None if method.config.get(f"{start}_config") else start,
    }


def _title(method: Method) -> str:
    titles = {"LORA": "QLoRA" if method.quantization else "LoRA", methods.FULL: "Full"}
    return titles.get(method.peft_type, method.peft_type)
