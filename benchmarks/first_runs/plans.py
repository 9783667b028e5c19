"""Plans of other people as cases: JSON, JSON lines or YAML, with a base that may be a folder, a type or a hub id.

Knows: the shapes in which plans come, and how to find the model type behind what a plan names as its base.
Does not know: whether a plan is valid (that is what the benchmark tries), or the hub itself, which it never asks.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.first_runs import cases
from benchmarks.first_runs.cases import Case
from benchmarks.first_runs.project import named_folder
from peftsmith import files, plan
from peftsmith.errors import PeftsmithError
from peftsmith.knowledge import methods
from peftsmith.model import catalogue

_LARGEST = 64 << 20
_LISTS = ("cases", "plans")  # keys under which a file may keep its list
_SHORTEST_TYPE = 3


def read(path: Path) -> list[Case]:
    """The cases in a file (.json, .jsonl, .yaml), or in the files and projects of a folder.

    An entry is a plan document, {"plan": document, "refused": finding id or true, "config": config.json}, or one of our
    combinations {"model_type", "task", "method", "training", "refused"}. PeftsmithError for a file that cannot be read
    and for an entry that is none of these.
    """
    if path.is_dir():
        named = [*path.glob("*"), *path.glob(f"*/{plan.PLAN_FILE}")]
        found = sorted(each for each in named if each.suffix in (".json", ".jsonl", ".yaml", ".yml"))
        return [case for each in found for case in read(each)]
    entries = list(_entries(path))
    return [_case(entry, number, path) for number, entry in enumerate(entries, start=1)]


def _entries(path: Path) -> Iterator[Any]:
    text = files.read_text(path, largest=_LARGEST)
    try:
        if path.suffix in (".yaml", ".yml"):
            from ruamel.yaml import YAML

            documents = list(YAML(typ="safe", pure=True).load_all(text))
        elif path.suffix in (".jsonl", ".ndjson"):
            documents = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            documents = [json.loads(text)]
    except Exception as error:  # ruamel's errors have no common base but Exception
        raise PeftsmithError(
            f"{path.name} cannot be read: {error}", next_step="Give JSON, JSON lines or YAML."
        ) from error
    for document in documents:
        listed = next((document[key] for key in _LISTS if key in document), None) if _mapping(document) else document
        yield from listed if isinstance(listed, list) else [document]


def _mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _case(entry: Any, number: int, path: Path) -> Case:
    where = f"{path.name}, entry {number}"
    if not _mapping(entry):
        raise PeftsmithError(
            "This is neither a plan nor a case", value=f"{where}: {str(entry)[:60]}", next_step="Give a mapping."
        )
    refused = entry.get("refused")
    if not (refused is None or isinstance(refused, (str, bool))):
        raise PeftsmithError(f"{where}: refused is a finding's id or true", value=refused, next_step="Correct it.")
    if "model_type" in entry and "plan" not in entry:
        return cases.combination(
            entry["model_type"],
            entry["task"],
            entry.get("method", {}),
            entry.get("training"),
            refused or None,
            entry.get("config"),
        )
    document = entry.get("plan", entry) if "plan" in entry else {k: v for k, v in entry.items() if k != "refused"}
    if not _mapping(document):
        raise PeftsmithError(f"{where}: plan is not a mapping", value=str(document)[:60], next_step="Write it out.")
    document = {"schema_version": plan.SCHEMA_VERSION, **document}
    given = entry.get("config") if "plan" in entry else None
    case = Case(_name(document, str(entry.get("name", "")), path), document, {}, refused or None, path.parent)
    return _with_config(case, given)


def _name(document: Mapping[str, Any], named: str, path: Path) -> str:
    """What the plan is, and enough of its hash to tell it from others."""

    def of(part: str, key: str) -> str:
        inner = document.get(part)
        return str(inner.get(key) or "") if isinstance(inner, Mapping) else ""

    words = [of("base", "model"), str(document.get("task", "")), of("method", "peft_type") or "LORA", named]
    shown = files.clean(" ".join(word for word in words if word), 200)
    return f"{path.name}: {shown} #{files.sha256_json(dict(document))[:8]}"


def _with_config(case: Case, given: Any) -> Case:
    """The case with its base's config: the one given, the folder's, or the defaults of the type."""
    folder, base = named_folder(case), case.plan.get("base")
    named = base.get("model") if isinstance(base, Mapping) else None
    untried = None
    if isinstance(given, Mapping):
        config = dict(given)
    elif folder is not None:
        config = files.read_json(folder / "config.json")
    else:
        model_type = type_of(named) if isinstance(named, str) else None
        config = {"model_type": model_type, **cases.sizes(model_type)} if model_type else {}
        if not model_type and not case.refused:
            untried = f"the type of {named!r} is not known here: give its config"
    return Case(case.name, case.plan, config, case.refused, case.source, untried)


def type_of(model: str) -> str | None:
    """The model type that a plan's base is, by its name alone; None where the name does not say it."""
    if model in _types():
        return model
    name = model.rpartition("/")[2]
    for pattern, model_type in _patterns():
        if re.search(pattern, name, re.IGNORECASE):
            return str(model_type)
    plain = _plain(name)
    held = [each for each in _types() if len(_plain(each)) >= _SHORTEST_TYPE and _plain(each) in plain]
    return max(held, key=lambda each: len(_plain(each)), default=None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@cache
def _types() -> tuple[str, ...]:
    """The catalogue's model types that transformers has a class for."""
    return tuple(each for each in catalogue.types() if methods.supports("CAUSAL_LM", each) is not None)


@cache
def _patterns() -> tuple[tuple[str, str], ...]:
    table = tomllib.loads(Path(__file__).with_name("hub_types.toml").read_text(encoding="utf-8"))
    return tuple((pattern, model_type) for pattern, model_type in table["types"])
