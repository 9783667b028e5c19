"""Which sum of products of config fields a width is, by experiment.

Knows: how to find a formula by doubling fields, and to disprove it on configs that had no part in finding it.
Does not know: which fields there are to change (experiment.py).
"""

from __future__ import annotations

import itertools
import random
import re
from fractions import Fraction
from typing import Any

from peftsmith.worker.architectures.built import Built
from peftsmith.worker.architectures.experiment import Experiment
from peftsmith.worker.architectures.formulas import names_in, product_of, term, value_of

MOST_FIELDS_OF_A_WIDTH = 6
MOST_BUILDS = 400
CHECKS = 3


def fitted(experiment: Experiment, fixed: dict[str, Any], base: Built) -> tuple[dict[Any, str], list[str]]:
    """An expression for every width, and the widths without one. Widths: (module, parameter, dimension)."""
    sizes = experiment.sizes()
    depends: dict[Any, list[str]] = {}
    refused: list[int] = []
    for name, value in sizes.items():
        other = experiment.shapes({**fixed, name: 2 * value})
        if other is None or other.shapes.keys() != base.shapes.keys():
            refused.append(value)
            continue
        for place, width in base.widths.items():
            if other.widths.get(place) != width:
                depends.setdefault(place, []).append(name)
    known: dict[tuple[str, ...], Built | None] = {(): base}
    expressions: dict[Any, str] = {}
    for place, width in base.widths.items():
        names = depends.get(place, [])
        if names:
            found = _fit(experiment, place, names, sizes, fixed, known)
        else:  # a constant, unless it may follow a field that could not be varied
            found = None if any(width > 1 and (width % v == 0 or v % width == 0) for v in refused) else str(width)
        if found is not None:
            expressions[place] = found
    wrong = _disproved(experiment, expressions, sizes, fixed, base)
    missing = [place for place in base.widths if place not in expressions or place in wrong]
    return (
        {place: text for place, text in expressions.items() if place not in wrong},
        [f"{module}.{leaf}[{axis}]" for module, leaf, axis in missing],
    )


def _fit(
    experiment: Experiment, place: Any, names: list[str], sizes: dict[str, int], fixed: dict[str, Any],
    known: dict[tuple[str, ...], Built | None],
) -> str | None:  # fmt: skip
    """A sum of products of fields, by doubling every subset of them; a number of heads may also divide, and is then
    halved instead. None when there is no such formula."""
    if len(names) > MOST_FIELDS_OF_A_WIDTH:
        return None
    dividing = [name for name in names if re.search(r"heads?$", name) and not re.search(r"kv|key_value", name)]
    found = _sum(experiment, place, names, (), sizes, fixed, known) or _product(place, names, sizes, known)
    for name in dividing if found is None else []:
        found = found or _sum(experiment, place, names, (name,), sizes, fixed, known)
    return found


def _product(
    place: Any, names: list[str], sizes: dict[str, int], known: dict[tuple[str, ...], Built | None]
) -> str | None:
    """One product with quotients, where fields can only be doubled one at a time."""
    base = known[()]
    assert base is not None
    factor = Fraction(base.widths[place])
    over: list[str] = []
    under: list[str] = []
    for name in names:
        built = known.get((name,))
        ratio = Fraction(built.widths[place], base.widths[place]) if built and place in built.widths else None
        if ratio not in (2, Fraction(1, 2)):
            return None
        (over if ratio == 2 else under).append(name)
        factor = factor / sizes[name] if ratio == 2 else factor * sizes[name]
    text = term(factor, tuple(over))
    return None if text is None else text + "".join(f"/{name}" for name in under)


def _sum(
    experiment: Experiment, place: Any, names: list[str], inverse: tuple[str, ...], sizes: dict[str, int],
    fixed: dict[str, Any], known: dict[tuple[str, ...], Built | None],
) -> str | None:  # fmt: skip
    seen: dict[tuple[str, ...], int] = {}
    for count in range(len(names) + 1):
        for chosen in itertools.combinations(names, count):
            key = tuple("/" + name if name in inverse else name for name in chosen)
            if key not in known:
                if experiment.builds > MOST_BUILDS:
                    return None
                changes = {n: sizes[n] // 2 if n in inverse else 2 * sizes[n] for n in chosen}
                known[key] = experiment.shapes({**fixed, **changes})
            built = known[key]
            if built is None or place not in built.widths:
                return None
            seen[chosen] = built.widths[place]
    # doubling a field adds its part once more: differences give every part together with the parts that contain it
    together = {
        chosen: sum(
            (-1) ** (len(chosen) - count) * seen[part]
            for count in range(len(chosen) + 1)
            for part in itertools.combinations(chosen, count)
        )
        for chosen in seen
    }
    terms = []
    for chosen in seen:
        alone = sum(
            (-1) ** (len(wider) - len(chosen)) * size for wider, size in together.items() if set(chosen) <= set(wider)
        )
        if alone:
            over = tuple(name for name in chosen if name not in inverse)
            under = tuple(name for name in chosen if name in inverse)
            factor = Fraction(alone) / product_of([sizes[n] for n in over]) * product_of([sizes[n] for n in under])
            text = term(factor, over)
            if text is None:
                return None
            terms.append(text + "".join(f"/{name}" for name in under))
    return "+".join(terms)


def _disproved(
    experiment: Experiment, expressions: dict[Any, str], sizes: dict[str, int], fixed: dict[str, Any], base: Built
) -> set[Any]:
    """Widths whose expression fails on configs with several fields changed at random."""
    used = sorted({name for text in expressions.values() for name in names_in(text)})
    draw = random.Random(0)
    wrong: set[Any] = set()
    passed = 0
    for _ in range(12 * CHECKS):
        if passed >= CHECKS:
            return wrong
        changed = {name: draw.choice((1, 2, 4)) * sizes[name] for name in used if draw.random() < 0.6}
        built = experiment.shapes({**fixed, **changed})
        if built is None or built.shapes.keys() != base.shapes.keys():
            continue
        passed += 1
        values = {**sizes, **changed}
        wrong |= {p for p, text in expressions.items() if value_of(text, values) != built.widths[p]}
    return wrong if passed else set(expressions) if used else wrong
