"""What the catalogue makes of config.json against the real classes: the check behind benchmarks/targets.py --catalogue.

Knows: a type's config.json in the two ways that people have it, and how two tables differ.
Does not know: targets or PEFT; what is done about a difference (implied_limits.py). Runs in the training environment,
on the meta device.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

from benchmarks import configs
from peftsmith.errors import PeftsmithError
from peftsmith.model import catalogue, layouts, modules
from peftsmith.worker import table

VARIATIONS = 12
UNKNOWN, REFUSED = "not known", "refused"


def check(model_type: str, task: str, *, variations: int = VARIATIONS, seed: str = "check") -> dict[str, Any]:
    """{"complete", "full", "short", "varied", "wrong": [...]} for one type as a class of this task.

    `full` and `short`: the default config at full size is implied exactly, written out in full, or as save_pretrained
    writes it (fields that differ from the class's defaults). `varied` counts shrunken configs with fields changed that
    were described exactly; `wrong` says which were described, but not as they are. The default seed draws other changes
    than those that the limits of the entries were made with.
    """
    entry = catalogue.entry(model_type, task)
    result: dict[str, Any] = {
        "complete": bool(entry and entry["complete"]), "full": False, "short": False, "varied": 0, "refused": 0,
        "wrong": [],
    }  # fmt: skip
    if not result["complete"]:
        return result
    try:
        config = configs.default(model_type)
        exact = modules.from_json(table.table(table.build(config, task)))
    except Exception as error:  # whatever transformers raises for a type whose defaults do not build
        return {**result, "why": f"{type(error).__name__}: {str(error)[:120]}"}
    cases = [("full", config.to_dict(), exact), ("short", configs.saved(config), exact)]
    draw = random.Random(f"{model_type}:{task}:{seed}")
    small = configs.small_of(model_type)
    several = (configs.several_of(small, draw) for _ in range(variations)) if small else ()
    for name, document, built in itertools.chain(cases, configs.varied(small, task, several)):
        fault = fault_of(document, built)
        if name in ("full", "short"):
            result[name] = fault is None
        else:
            result["varied"] += fault is None
        result["refused"] += bool(fault and fault.startswith(REFUSED))
        if fault and fault != UNKNOWN and not fault.startswith(REFUSED):
            result["wrong"].append(f"{name}: {fault}")
    return result


def fault_of(document: dict[str, Any], exact: modules.Skeleton) -> str | None:
    """How the catalogue's skeleton of `document` differs from the real one; None for not at all, UNKNOWN where it says
    that it does not know."""
    try:
        found = layouts.skeleton({**document, "architectures": [exact.architecture]})
    except PeftsmithError as error:
        return f"{REFUSED}: {str(error)[:120]}"
    if found is None:
        return UNKNOWN
    ours, real = plain(found), plain(exact)
    for name in sorted(ours.keys() | real.keys()):
        if ours.get(name) != real.get(name):
            return f"{name}: {ours.get(name)}, really {real.get(name)}"
    if found.parameters != exact.parameters:
        return f"{found.parameters} parameters, really {exact.parameters}"
    if shared(found) != shared(exact):
        return f"tied {dict(found.tied)}, really {dict(exact.tied)}"
    return None


def is_wrong(document: dict[str, Any], exact: modules.Skeleton) -> bool:
    """Whether the catalogue describes `document`, but not as it is."""
    fault = fault_of(document, exact)
    return fault is not None and fault != UNKNOWN and not fault.startswith(REFUSED)


def plain(skeleton: modules.Skeleton) -> dict[str, Any]:
    """Name to kind, widths and shapes."""
    return {
        m.name: (m.kind, m.inputs, m.outputs, {k: tuple(v) for k, v in m.parameters.items()}) for m in skeleton.modules
    }


def shared(skeleton: modules.Skeleton) -> set[frozenset[str]]:
    """Groups of parameters with one storage, whichever of them is named first."""
    groups: dict[str, set[str]] = {}
    for name, target in skeleton.tied.items():
        groups.setdefault(target, {target}).add(name)
    return {frozenset(group) for group in groups.values()}
