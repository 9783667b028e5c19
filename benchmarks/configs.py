"""A type's config.json with fields changed: what benchmarks/implied.py compares, and implied_limits.py tries out.

Knows: which fields are flags and sizes, how to vary them, and which variants the real class builds.
Does not know: what the catalogue makes of them. Runs in the training environment, on the meta device.
"""

from __future__ import annotations

import copy
import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator
from typing import Any

from peftsmith.model import modules
from peftsmith.worker import shrink, table
from peftsmith.worker.architectures.formulas import place_of

UNSET_SIZES = (4, 16, 64)  # what a size that is null or 0 by default is set to
_NO_SIZE = re.compile(
    r"token_id|_id$|_ids$|label|seed|chunk|dropout|pad_idx|rope|scal|initial|eps|std$|theta|freq|dtype|^_|parameters$"
    r"|architectures|token$|implementation|_prob$|_args$|task|index|problem_type|_type$|^name_or|version|prefix"
)
_NO_FLAG = re.compile(r"cache|output_|return|^is_|chunk|torchscript|pruned")


def default(model_type: str) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type](**shrink.NEEDED.get(model_type, {}))


def saved(config: Any) -> dict[str, Any]:
    """The config.json that save_pretrained writes."""
    document: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    return document


def small_of(model_type: str) -> dict[str, Any] | None:
    """The shrunken config of a type; None where there is none, and the type is compared at its full size alone."""
    try:
        return dict(shrink.shrunken(model_type).to_dict())
    except Exception:  # whatever transformers raises for defaults that do not build
        return None


def varied(
    small: dict[str, Any] | None, task: str, several: Iterable[dict[str, Any]]
) -> Iterator[tuple[str, dict[str, Any], modules.Skeleton]]:
    """(changes as JSON, config.json, real skeleton) for those of `several` changes that the class accepts."""
    for changes in several:
        document = copy.deepcopy(small or {})
        for name, value in changes.items():
            place, leaf = place_of(document, name)
            place[leaf] = value
        try:
            config = table.config_of(document)
            built = modules.from_json(table.table(table.build(config, task)))
        except Exception:  # a combination that the class refuses proves nothing
            continue
        if all(get(config, name) == value for name, value in changes.items()):
            yield json.dumps(changes), saved(config), built


def several_of(small: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Up to four flags and sizes with other values, drawn at random."""
    fields = [*changeable(small), *changeable(small, unset=True)]
    changes = {}
    for name in draw.sample(fields, min(len(fields), draw.randint(1, 4))):
        place, leaf = place_of(small, name)
        changes[name] = _changed(place[leaf], leaf, draw)
    return changes


def one_each(small: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every flag and size alone, with one or two other values."""
    for name in (*changeable(small), *changeable(small, unset=True)):
        place, leaf = place_of(small, name)
        value = place[leaf]
        if isinstance(value, bool):
            others: tuple[Any, ...] = (not value,)
        elif value == []:
            others = ([0],)
        elif not value:
            others = (UNSET_SIZES[0], UNSET_SIZES[-1])
        else:
            others = (2 * value, 2 if value < 4 else value // 2)
        for other in others:
            yield {name: other}


def pairs(flags: list[str]) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Every two flags of an entry ("bias=true") at once, and the changes that set them."""
    for pair in itertools.combinations(flags, 2):
        changes = {name: json.loads(text) for name, _, text in (flag.partition("=") for flag in pair)}
        if len(changes) == 2:
            yield pair, changes


def changeable(document: dict[str, Any], prefix: str = "", *, unset: bool = False) -> Iterator[str]:
    """Dotted names of flags and sizes, or of those that are null or 0; of nested configs too."""
    for name, value in document.items():
        if isinstance(value, dict) and "model_type" in value:
            yield from changeable(value, f"{prefix}{name}.", unset=unset)
        elif unset:
            if (value is None or value == [] or (value == 0 and type(value) is int)) and not _NO_SIZE.search(name):
                yield prefix + name
        elif isinstance(value, bool):
            if not _NO_FLAG.search(name):
                yield prefix + name
        elif type(value) is int and 0 < value < 10**7 and not _NO_SIZE.search(name):
            yield prefix + name


def _changed(value: Any, name: str, draw: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if not value:
        return [0] if value == [] else draw.choice(UNSET_SIZES)
    if name in shrink.COUNTS:
        return draw.randint(1, 6)
    if name.endswith("heads"):  # other multiples would no longer divide the width, which classes round in their own way
        return value * draw.choice((2, 4)) if draw.random() < 0.5 else max(1, value // 2)
    return value * draw.choice((1, 2, 3, 4)) if draw.random() < 0.8 else max(1, value // 2)


def get(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part, None)
    return config
