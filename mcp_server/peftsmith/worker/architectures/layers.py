"""How many layers a stack has, and of which kind each is, as rules over config fields.

Knows: the rules there are (all alike, lists with an entry a layer, the first ones, every n-th), and how to test one.
Does not know: the widths inside a layer (widths.py).
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from peftsmith.worker import shrink, table
from peftsmith.worker.architectures.built import Built, kind_by
from peftsmith.worker.architectures.experiment import NOT_SIZES, Experiment, Slow
from peftsmith.worker.architectures.formulas import get, parts

MOST_LAYER_KINDS = 8


def stacks(experiment: Experiment) -> dict[str, Any]:
    """Of every stack: the field that counts its layers, and the rule by which a layer gets its kind."""
    full = experiment.shapes({}, small=False)
    if full is None:
        return {}
    found: dict[str, Any] = {}
    for stack, kinds in full.kinds.items():
        count = _count_of(experiment, stack, len(kinds))
        rules = _rules_of(experiment, kinds)
        found[stack] = {"count": count, "rules": rules} if count is not None and rules else None
    return found


def _count_of(experiment: Experiment, stack: str, layers: int) -> str | None:
    """The field that holds this stack's number of layers: changing it alone changes the stack's length."""
    candidates = [
        prefix + name
        for prefix, part in parts(experiment.full_document)
        for name, value in part.items()
        if value == layers and type(value) is int and name not in experiment.aliases
    ]
    named = [name for name in candidates if name.rpartition(".")[2] in shrink.COUNTS]
    for name in named or candidates:
        for change in ({name: 1}, {name: layers + 1}):
            built = experiment.shapes({**change, **_lists(experiment, name, layers, change[name])}, small=False)
            if built is not None and len(built.kinds.get(stack, [])) == change[name]:
                return name
    return None


def _lists(experiment: Experiment, name: str, layers: int, wanted: int) -> dict[str, Any]:
    """Lists with an entry a layer, made as long as the layers are to be."""
    prefix = name.rpartition(".")[0]
    part = dict(parts(experiment.full_document))[prefix + "." if prefix else ""]
    return {
        (prefix + "." if prefix else "") + key: (value * 2)[:wanted]
        for key, value in part.items()
        if isinstance(value, list) and len(value) == layers
    }


def _rules_of(experiment: Experiment, kinds: list[str]) -> list[list[Any]]:
    """How the kind of a layer follows from the config, every way that explains this one: all alike, by lists with
    an entry a layer, the first ones, every n-th. A reader takes the first whose fields the config has."""
    different = sorted(set(kinds))
    if len(different) == 1:
        return [["uniform", different[0]]]
    if len(different) > 2 and len(set(kinds[1:-1])) != 1:
        return _by_lists(experiment, kinds)
    rules = _by_lists(experiment, kinds)
    for prefix, part in parts(experiment.full_document):
        for name, value in part.items():
            if (
                type(value) is not int
                or not 0 < value < len(kinds)
                or name in experiment.aliases
                or NOT_SIZES.search(name)
            ):
                continue
            if len(set(kinds[:value])) == 1 and len(set(kinds[value:])) == 1:
                rules += _checked(experiment, ["first", prefix + name, kinds[0], kinds[-1]])
            for offset in (0, 1):
                every = {kind for i, kind in enumerate(kinds) if (i + offset) % value == 0}
                others = {kind for i, kind in enumerate(kinds) if (i + offset) % value}
                if len(every) == 1 and len(others) == 1:
                    rules += _checked(experiment, ["every", prefix + name, offset, every.pop(), others.pop()])
    if not rules and len(set(kinds[1:])) == 1:
        rules.append(["first", "1", kinds[0], kinds[-1]])
    return rules


def _checked(experiment: Experiment, rule: list[Any]) -> list[list[Any]]:
    """The rule, if layers also follow it when its field has another value and no list says otherwise."""
    name = rule[1]
    value = get(experiment.full, name)
    try:
        config = experiment.constructed({name: value + 1})
        built = Built(table.table(table.build(config, experiment.task)))
    except Slow:
        raise
    except Exception:  # a value that the class refuses proves nothing
        return []
    longest = max(built.kinds.values(), key=len, default=[])
    wanted = [kind_by(rule, index, value + 1) for index in range(len(longest))]
    partition = [wanted.index(kind) for kind in wanted]
    return [rule] if partition == [longest.index(kind) for kind in longest] else []


def _by_lists(experiment: Experiment, kinds: list[str]) -> list[list[Any]]:
    for prefix, part in parts(experiment.full_document):
        lists = {
            key: value
            for key, value in part.items()
            if isinstance(value, list) and len(value) == len(kinds) and len(set(map(str, value))) <= MOST_LAYER_KINDS
        }
        for count in (1, 2):
            for chosen in itertools.combinations(sorted(lists), count):
                mapping: dict[str, str] = {}
                entries = [json.dumps([lists[name][i] for name in chosen], default=str) for i in range(len(kinds))]
                if all(mapping.setdefault(entry, kind) == kind for entry, kind in zip(entries, kinds, strict=True)):
                    return [["lists", [prefix + name for name in chosen], mapping]]
    return []
