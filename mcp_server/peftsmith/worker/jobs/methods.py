"""What every PEFT method is called and takes, read out of the installed PEFT.

Knows: how to read PEFT's config classes (fields, types, defaults, help texts, tasks) into plain data, and to try them.
Does not know: what is wise or what works (knowledge/methods.toml), or who asks.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import types
import typing
from pathlib import Path
from typing import Any

from peftsmith.worker.child import Report, describe

# Numbers that are tried on a config class, to see which it refuses.
_TRIED = {"int": (-1, 0, 1, 2), "float": (-1.0, -0.01, 0.0, 0.01, 0.5, 0.99, 1.0, 1.01, 2.0)}
_HELP = 160  # characters of a field's help text that are kept
_PLAIN: dict[Any, str] = {int: "int", float: "float", str: "str", bool: "bool", type(None): "null", Path: "str"}


def run(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    """All methods of the installed PEFT: {"peft": version, "methods": {PeftType: see `method`}}, and which model types
    the installed transformers has a class for: {"transformers": version, "models": {task type: [model types]},
    "renamed_bodies": see `renamed_bodies`}.

    With arguments["configs"] (a list of {peft_type, options}) these are built as well, and "faults" says for each what
    PEFT raises, or None.
    """
    import peft
    import transformers
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS

    found = {str(kind.value): method(CONFIGS[kind]) for kind in sorted(CONFIGS, key=lambda each: str(each.value))}
    faults = [_fault(CONFIGS, each) for each in arguments.get("configs", [])]
    return {
        "peft": peft.__version__,
        "transformers": transformers.__version__,
        "methods": found,
        "models": models_by_task(),
        "renamed_bodies": renamed_bodies(),
        "faults": faults,
    }


def method(config: type[Any]) -> dict[str, Any]:
    """{"config": class name, "prompt_learning", "mixed", "prefix", "bitsandbytes", "tasks", "fields": {name: {"type",
    "default", "doc"}}}.

    Fields that every PeftConfig has are left out. "type" is a list of alternatives: "int", "float", "str", "bool",
    "null", "any" (a value that is not described), {"choices": [...]}, {"list": type}, {"object": type of the values},
    {"class": name, "fields": {...}}. "mixed" is True where PeftMixedModel takes the method, "prefix" begins
    the names of its tensors, "bitsandbytes" is True where PEFT has layers for a quantised base, or adds none.
    """
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
    from peft.tuners.mixed import COMPATIBLE_TUNER_TYPES

    kind = next(each for each, known in PEFT_TYPE_TO_CONFIG_MAPPING.items() if known is config)
    common = {each.name for each in dataclasses.fields(peft.PeftConfig)} | {"peft_version", "auto_mapping"}
    learns_prompt = issubclass(config, peft.PromptLearningConfig)
    return {
        "config": config.__name__,
        "prompt_learning": learns_prompt,
        "mixed": kind in COMPATIBLE_TUNER_TYPES,
        "prefix": PEFT_TYPE_TO_PREFIX_MAPPING.get(kind, ""),
        "bitsandbytes": learns_prompt or "4bit" in _source(config),
        "tasks": _tasks(config),
        "fields": fields(config, common),
    }


def fields(config: type[Any], without: set[str] | frozenset[str] = frozenset()) -> dict[str, Any]:
    """Name to {"type", "default", "doc"} of every field that a config class takes, but for those in `without`.

    Where the class itself refuses numbers, "above" or "below" is the refused number that is nearest to those it takes,
    of the few that are tried; where it refuses words, its choices stand in "type".
    """
    hints = typing.get_type_hints(config)
    found = {}
    for each in dataclasses.fields(config):
        if each.name in without or not each.init:
            continue
        default = _default(each)
        described = _type(hints[each.name])
        if default is None and "null" not in described:
            described.append("null")  # PEFT gives None as default whatever the annotation says
        text = each.metadata.get("help") or ""
        text = " ".join((text if isinstance(text, str) else " ".join(map(str, text))).split())
        short = text if len(text) <= _HELP else text[:_HELP].rsplit(" ", 1)[0] + " ..."
        found[each.name] = {
            "type": described,
            "default": default,
            "doc": short,
            **_limits(config, each.name, described),
        }
    return found


def _limits(config: type[Any], name: str, described: list[Any]) -> dict[str, Any]:
    """What of the numbers and words that fit a field's type the class refuses; puts the words into the type."""
    if "str" in described:
        choices = _choices(config, name)
        if choices:
            described[described.index("str")] = {"choices": choices}
    kind = next((each for each in ("float", "int") if each in described), None)
    if kind is None or _refusal(config, {}):
        return {}
    refused = [_refusal(config, {name: number}) is not None for number in _TRIED[kind]]
    if all(refused):
        return {}  # it depends on another field
    taken = [number for number, no in zip(_TRIED[kind], refused, strict=True) if not no]
    below = [number for number in _TRIED[kind] if number < taken[0]]
    # Counts that exclude each other (a size and a number of blocks) are refused from 1 on, which is no limit.
    above = [number for number in _TRIED[kind] if number > taken[-1]] if kind == "float" else []
    return {**({"above": below[-1]} if below else {}), **({"below": above[0]} if above else {})}


def _choices(config: type[Any], name: str) -> list[str]:
    """The words that a refusal names, as far as the class takes them."""
    said = _refusal(config, {name: "nonsense"})
    if said is None or _refusal(config, {}):
        return []
    named = dict.fromkeys(re.findall(r"'([\w.-]+)'", said))
    return [word for word in named if _refusal(config, {name: word}) is None]


def _refusal(config: type[Any], options: dict[str, Any]) -> str | None:
    """What a config class says of these options, with what it cannot do without; None where it takes them."""
    needed = {"total_step": 10_000} if config.__name__ == "AdaLoraConfig" else {}
    try:
        config(**needed, **options)
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def _default(each: dataclasses.Field[Any]) -> Any:
    value = each.default
    if each.default_factory is not dataclasses.MISSING:
        value = each.default_factory()
    if value is dataclasses.MISSING:
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, enum.Enum):
        value = value.value
    elif isinstance(value, (set, frozenset)):
        value = sorted(value)
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return None


def _type(hint: Any) -> list[Any]:
    """The alternatives of an annotation."""
    if hint in _PLAIN:
        return [_PLAIN[hint]]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        found: list[Any] = []
        for each in inner:
            found += [one for one in _type(each) if one not in found]
        return found
    if origin is typing.Literal:
        return [{"choices": list(inner)}]
    if origin in (list, set, tuple, frozenset) or hint in (list, set, tuple):
        return [{"list": _type(inner[0]) if inner else ["any"]}]
    if origin is dict or hint is dict:
        return [{"object": _type(inner[1]) if len(inner) == 2 else ["any"]}]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [{"choices": [str(each.value) for each in hint]}]
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return [{"class": hint.__name__, "fields": fields(hint)}]
    return ["any"]


def _tasks(config: type[Any]) -> list[str]:
    """The task types that the config class does not refuse by itself."""
    from peft import TaskType

    allowed = []
    for task in TaskType:
        try:
            config(task_type=task.value)
        except ValueError as error:
            if "task_type" in str(error):
                continue
        except TypeError:  # other fields are needed first; they say nothing of the task
            pass
        allowed.append(str(task.value))
    return sorted(allowed)


def _source(config: type[Any]) -> str:
    """The source of all modules beside the config's; a method that adapts quantised layers names them in it."""
    import importlib.util

    spec = importlib.util.find_spec(config.__module__)
    if spec is None or spec.origin is None:
        return ""
    folder = Path(spec.origin).parent
    return "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))


def _fault(configs: dict[Any, type[Any]], wanted: dict[str, Any]) -> str | None:
    try:
        configs[wanted["peft_type"]](**wanted["options"])
    except Exception as error:
        return describe(error)
    return None


def models_by_task() -> dict[str, list[str]]:
    """Task type to the model types that transformers has a class with that head for."""
    from transformers.models.auto import modeling_auto as auto

    mappings = {
        "CAUSAL_LM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "SEQ_2_SEQ_LM": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "SEQ_CLS": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "TOKEN_CLS": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        "QUESTION_ANS": auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    }
    return {task: sorted(names) for task, names in mappings.items()}


def renamed_bodies() -> list[str]:
    """Model types whose class for question answering calls the body "transformer", which checkpoints call "model".

    from_pretrained then finds no weight of the body, and starts it at random, unless key_mapping tells it so.
    """
    import transformers
    from transformers.models.auto import modeling_auto as auto

    found = []
    for model_type, name in auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.items():
        head, body = getattr(transformers, name), auto.MODEL_MAPPING_NAMES.get(model_type)
        known = getattr(transformers, body) if isinstance(body, str) else head
        if (known.base_model_prefix, head.base_model_prefix) == ("model", "transformer"):
            found.append(model_type)
    return sorted(found)
