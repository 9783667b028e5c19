"""The catalogue's entry for one model type: modules, stacks, what flags change, the fields that are read.

Knows: what an entry holds and when it is complete.
Does not know: how widths and layer rules are found; how the entry is read (model/layouts.py).
"""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

from peftsmith.worker import table
from peftsmith.worker.architectures.built import Built
from peftsmith.worker.architectures.experiment import Experiment, Slow
from peftsmith.worker.architectures.formulas import get, names_in, product_of, term
from peftsmith.worker.architectures.layers import stacks
from peftsmith.worker.architectures.widths import fitted


def entry_of(experiment: Experiment) -> dict[str, Any]:
    base = experiment.shapes({})
    if base is None:
        raise ValueError("the shrunken config does not build")
    flags = experiment.flags(base)
    expressions, missing = fitted(experiment, {}, base)
    entry: dict[str, Any] = {
        "architecture": table.class_of(experiment.small, experiment.task).__name__,
        "modules": described(base, expressions),
        "containers": base.containers,
        "tied": base.tied,
        "stacks": stacks(experiment),
        "patches": {},
    }
    missing += [f"layers of {stack}" for stack, rule in entry["stacks"].items() if rule is None]
    for name, value in flags.items():
        other = experiment.shapes({name: value})
        assert other is not None
        more, lost = fitted(experiment, {name: value}, other)
        changed = described(other, more)
        patch = {key: row for key, row in changed.items() if entry["modules"].get(key) != row}
        entry["patches"][f"{name}={json.dumps(value)}"] = {
            "set": patch,
            "drop": [key for key in entry["modules"] if key not in changed],
            "tied": other.tied if other.tied != base.tied else None,
        }
        missing += lost
    entry["fields"] = _fields(experiment, entry)
    entry["aliases"] = {k: v for k, v in experiment.aliases.items() if v in entry["fields"]}
    entry["complete"], entry["missing"] = not missing, sorted(set(missing))
    return entry


def described(built: Built, expressions: dict[Any, str]) -> dict[str, Any]:
    """Module template (with its layer kind) -> [kind, class, {parameter: [expressions]}]; unfitted ones left
    out."""
    rows: dict[str, Any] = {}
    for name, (kind, cls, shapes) in built.modules.items():
        texts = {
            leaf: [expressions.get((name, leaf, axis)) for axis in range(len(shape))] for leaf, shape in shapes.items()
        }
        if all(text is not None for dims in texts.values() for text in dims):
            rows[name] = [kind, cls, texts, *(["depthwise"] if name in built.depthwise else [])]
    return rows


def _fields(experiment: Experiment, entry: dict[str, Any]) -> dict[str, Any]:
    """Default of every field that a formula, a rule or a flag reads: a value, or {"is": formula} when it
    follows."""
    texts = [text for _, _, shapes, *_ in entry["modules"].values() for dims in shapes.values() for text in dims]
    for patch in entry["patches"].values():
        texts += [text for _, _, shapes, *_ in patch["set"].values() for dims in shapes.values() for text in dims]
    used = {name for text in texts for name in names_in(text)}
    used |= {rule["count"] for rule in entry["stacks"].values() if rule}
    used |= {flag.partition("=")[0] for flag in entry["patches"]}
    for stack in entry["stacks"].values():
        for rule in stack["rules"] if stack else []:
            used |= set(rule[1]) if rule[0] == "lists" else {rule[1]} if rule[0] in ("first", "every") else set()
    used.discard("1")
    return {name: _default_of(experiment, name, used) for name in sorted(used)}


def _default_of(experiment: Experiment, name: str, used: set[str]) -> Any:
    """The default, and what the class makes of null; {"is": formula} when the default follows other fields."""
    if name in experiment.nulls:
        return {"is": experiment.nulls[name]}
    try:
        value = get(experiment.full, name)
    except AttributeError:
        return None
    if type(value) is not int:
        return value if isinstance(value, bool | str | None | list) else None
    follows = []
    for other in sorted(used - {name}):
        if other in experiment.nulls:
            continue
        changed = get(experiment.full, other)
        if type(changed) is not int:
            continue
        try:
            made = get(experiment.constructed({other: 2 * changed}), name)
        except Slow:
            raise
        except Exception:  # a constructor that refuses this value says nothing about the default
            continue
        if made != value:
            follows.append((other, Fraction(made, value)))
    if not follows:
        return value
    text = term(
        Fraction(value)
        / product_of([get(experiment.full, n) for n, r in follows if r == 2])
        * product_of([get(experiment.full, n) for n, r in follows if r == Fraction(1, 2)]),
        tuple(n for n, r in follows if r == 2),
    )
    if text is None or any(ratio not in (2, Fraction(1, 2)) for _, ratio in follows):
        return value
    return {"is": text + "".join(f"/{n}" for n, ratio in follows if ratio != 2)}
