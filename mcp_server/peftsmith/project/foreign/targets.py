"""Do the modules that a script's adapter names exist in the base that it loads?

Knows: which base and which names belong together, and where a base's config.json may lie: in a folder beside the
script, or in the hub cache. Nothing is fetched.
Does not know: how names are matched (model/reach.py), or how modules follow from config.json (model/layouts.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding
from peftsmith.model import hub, layouts, reach, source
from peftsmith.model.modules import Skeleton
from peftsmith.project.foreign import facts, values
from peftsmith.project.foreign.facts import Facts, Loop
from peftsmith.project.foreign.values import Site, Value

_SHOWN = 8


def judge(loop: Loop, known: Facts) -> Iterator[Finding]:
    """Targets of the trainer's adapters that match nothing in its base; unknown where the base is not here."""
    bases = set(_bases(loop))
    configs = [each.site for each in loop.peft]
    configs += [each.site for site in loop.adapters for each in values.things(site.get("peft_config", 1))]
    for config in configs:
        names = _names(config.get("target_modules"))
        if names is None or not bases:
            continue
        for base in sorted(bases):
            yield from _compared(config, names, base, known)


def _bases(loop: Loop) -> Iterator[str]:
    """The base as the script names it: where it loads it, or as it gives it to the trainer."""
    for model in loop.model:
        load = facts.load_of(model)
        name = facts.base_name(load) if load is not None else None
        if name:
            yield name
    for each in values.options(loop.model_value):
        named = values.plain(each)
        if isinstance(named, str):
            yield named


def _names(value: Value | None) -> list[str] | str | None:
    """target_modules where it is plain, and no shorthand that fits any model."""
    named = values.plain(value)
    if isinstance(named, (list, tuple, set)) and named and all(isinstance(each, str) for each in named):
        return sorted(named)
    return named if isinstance(named, str) and named != "all-linear" else None


def _compared(config: Site, names: list[str] | str, base: str, known: Facts) -> Iterator[Finding]:
    skeleton = _skeleton(base, known.folder)
    if skeleton is None:
        message = f"whether {base[:100]} has these target modules was not looked up: its config.json is not here"
        yield facts.at(config, "script.targets.unchecked", message, base=base[:200])
        return
    if not reach.matching(skeleton.names, names):
        shown = [names] if isinstance(names, str) else names[:_SHOWN]
        message = f"target_modules match nothing in {base[:100]}: {', '.join(map(repr, shown))}"
        yield facts.at(config, "script.targets.no_match", message, base=base[:200], names=shown)
        return
    lost = [each for each in names if not reach.matching(skeleton.names, [each])] if isinstance(names, list) else []
    if lost:
        message = f"no module of {base[:100]} is called {', '.join(map(repr, lost[:_SHOWN]))}"
        yield facts.at(config, "script.targets.unmatched", message, base=base[:200], names=lost[:_SHOWN])


def _skeleton(base: str, folder: Path | None) -> Skeleton | None:
    """The base's modules as its config.json implies them; None, which is reported as unknown, where it lies nowhere
    here, cannot be read, or implies none."""
    try:
        local = (folder or Path.cwd()) / Path(base).expanduser()
        place = files.resolve(local) if (local / "config.json").is_file() else hub.cached(base)
        config: dict[str, Any] | None = source.read_config(place / "config.json") if place else None
        return layouts.skeleton(config) if config else None
    except (PeftsmithError, OSError, ValueError):
        return None
