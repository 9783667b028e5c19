"""A plan's options held against the fields of PEFT's own config classes.

Knows: which options a method takes, of which type, and how to say what is wrong with one.
Does not know: where the fields come from (methods.py), or whether a choice is wise (advise/).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from peftsmith.errors import PeftsmithError
from peftsmith.knowledge import methods


def faults_of(name: str, first_class: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """What is wrong with a plan's method, one sentence each: its name, the plan's own fields, PEFT's fields."""
    if name == methods.FULL:
        return [f"full fine-tuning has no {each}" for each in (*first_class, *options)]
    try:
        known = methods.method(name)
    except PeftsmithError as error:
        return [f"{error.cause} ({name})"]
    found = [f"{name} has no {each}" for each in first_class if each not in known.names]
    found += faults(known, options)
    given = {known.names[each] for each in first_class if each in known.names} | {
        each for each, value in options.items() if value is not None
    }
    found += [f"{name} needs method.config.{each}" for each in known.needs if each not in given]
    return found


def faults(known: methods.Method, options: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the fields that a plan gives for PEFT's config, one sentence each."""
    plain = {config_field: name for name, config_field in known.names.items()}
    for name, value in options.items():
        if name in methods.SET_BY_SCRIPT or name in methods.FROM_MODEL:
            yield f"{name} is set by the scripts or by PEFT, not by the plan"
        elif name in plain:
            yield f"{name} is written as method.{plain[name]}"
        elif name not in known.fields:
            near = difflib.get_close_matches(name, [*known.fields, *known.names], 1)
            yield f"{known.config} has no field {name!r}" + (f", did you mean {near[0]!r}?" if near else "")
        elif not fits(value, known.fields[name]["type"]):
            yield f"{name} takes {described(known.fields[name]['type'])}, not {json.dumps(value)[:60]}"
        else:
            yield from _beyond(name, value, known.fields[name])


def _beyond(name: str, value: Any, field: Mapping[str, Any]) -> Iterator[str]:
    """Numbers that the config class refuses, in a field or in the fields of a configuration inside it."""
    if isinstance(value, dict):
        classes = (each["fields"] for each in field["type"] if isinstance(each, dict) and "fields" in each)
        inner: Mapping[str, Any] = next(classes, {})
        for key in value.keys() & inner.keys():
            yield from _beyond(f"{name}.{key}", value[key], inner[key])
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if "above" in field and value <= field["above"]:
            yield f"{name} must be above {field['above']}, not {value}"
        if "below" in field and value >= field["below"]:
            yield f"{name} must be below {field['below']}, not {value}"


def fits(value: Any, alternatives: list[Any]) -> bool:
    """Is a plain value one of a field's alternatives?"""
    return any(_is(value, each) for each in alternatives)


def described(alternatives: list[Any]) -> str:
    """A field's type in words."""
    return " or ".join(dict.fromkeys(_words(each) for each in alternatives))


def _is(value: Any, alternative: Any) -> bool:
    if isinstance(alternative, str):
        return {
            "int": isinstance(value, int) and not isinstance(value, bool),
            "float": isinstance(value, (int, float)) and not isinstance(value, bool),
            "str": isinstance(value, str),
            "bool": isinstance(value, bool),
            "null": value is None,
            "any": True,
        }[alternative]
    if "choices" in alternative:
        return any(_chosen(value, choice) for choice in alternative["choices"])
    if "list" in alternative:
        return isinstance(value, list) and all(fits(each, alternative["list"]) for each in value)
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        return False
    if "object" in alternative:
        return all(fits(each, alternative["object"]) for each in value.values())
    inner = alternative["fields"]
    return all(key in inner and fits(each, inner[key]["type"]) for key, each in value.items())


def _chosen(value: Any, choice: Any) -> bool:
    """PEFT writes "pissa_niter_[number of iters]" for a name that ends with a number."""
    if isinstance(choice, str) and "[" in choice:
        return isinstance(value, str) and re.fullmatch(re.sub(r"\[.*?\]", "[0-9]+", choice), value) is not None
    return type(value) is type(choice) and bool(value == choice)


def _words(alternative: Any) -> str:
    if isinstance(alternative, str):
        return {
            "int": "a whole number",
            "float": "a number",
            "str": "text",
            "bool": "true or false",
            "any": "a value",
        }.get(alternative, alternative)
    if "choices" in alternative:
        return "one of " + ", ".join(map(str, alternative["choices"]))
    if "list" in alternative:
        return f"a list of {described(alternative['list'])}"
    return "a mapping of " + (", ".join(alternative["fields"]) if "fields" in alternative else "names to values")
