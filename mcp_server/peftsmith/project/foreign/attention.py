"""Do packed rows see each other in a script of somebody else's?

Knows: how a script's base gives its model type (a folder beside it, the hub's cache, a class by name), and what
knowledge/packing.json says of that type. Does not know: models that are only on the hub, which is not asked here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, Severity, finding
from peftsmith.knowledge import methods, packing
from peftsmith.project.foreign import facts, values
from peftsmith.project.foreign.facts import Facts, Loop
from peftsmith.project.foreign.values import Site

_FIRST_WITH_MASKS = 5  # transformers; packing.json was made with 5.23, and older masks were not tried
_LARGEST_CONFIG = 16 << 20


def judge(loop: Loop, known: Facts) -> Iterator[Finding]:
    """Findings about the packing of one trainer: a warning where rows see each other, unknown where it is not known."""
    if not values.possibly(loop.argument("packing"), True):
        return
    for name in sorted(facts.types_of(loop)):
        mixes = packing.method_mixes(methods.method(name), {})
        if mixes:
            yield facts.at(loop.site, "script.packing.attention", f"packing=True with {name}: {mixes}", method=name)
    wrapped = values.surely(loop.argument("packing_strategy"), "wrapped")
    for load in filter(None, map(facts.load_of, loop.model)):
        attention = load.get("attn_implementation")
        if load.name.startswith("unsloth.") or values.unclear(attention) or _flash(load):
            continue
        if wrapped:
            yield facts.at(loop.site, "script.packing.attention", "packing_strategy='wrapped' never keeps rows apart")
            continue
        said = values.plain(attention)
        verdict = _verdict(load, said if isinstance(said, str) else None, known)
        if verdict is not None:
            severity, why, model_type = verdict
            yield finding(
                "script.packing.attention",
                f"{loop.site.where()}: packing=True, and {load.where()} sets no flash attention: {why}",
                severity=severity,
                **loop.site.source.place(loop.site.line),
                model_type=model_type,
            )


def model_type(load: Site, folder: Path | None) -> str | None:
    """The model type of a base, from its class's name, a folder beside the script, or a copy in the hub's cache."""
    kind = re.fullmatch(r"transformers\.(?!Auto)(\w+)\.from_pretrained", load.name)
    if kind:
        return packing.type_of_class(kind[1])
    name = facts.base_name(load)
    if not name or folder is None:
        return None
    try:
        place = files.resolve(str(folder / name / "config.json"), must_exist=False)
        if not place.is_file() and files.is_model_id(name):
            from peftsmith.model import hub

            place = hub.cached_config(name) or place
        config = files.read_json(place, largest=_LARGEST_CONFIG) if place.is_file() else {}
    except (PeftsmithError, OSError):
        return None  # outside of what may be read, or no JSON: then the type is not known
    found = config.get("model_type") if isinstance(config, dict) else None
    return found if isinstance(found, str) else None


def _flash(load: Site) -> bool:
    named = any("flash" in str(values.plain(each)) for each in values.options(load.get("attn_implementation")))
    return named or values.possibly(load.get("use_flash_attention_2"), True)


def _verdict(load: Site, attention: str | None, known: Facts) -> tuple[Severity, str, str | None] | None:
    """(severity, why, model type); None where rows are kept apart."""
    found = model_type(load, known.folder)
    if found is None:
        return "unknown", "which architecture it is was not found out, and with it whether rows see each other", None
    apart = packing.keeps_apart(found)
    if apart is None:
        return "unknown", f"whether {found} models keep rows apart has not been tried", found
    if apart is not True:
        return "warning", f"{found} models {apart or 'let rows see each other through their layers'}", found
    tried = packing.attention(found)
    if attention not in (None, tried):
        return "unknown", f"{found} models keep rows apart with {tried}; {attention} has not been tried", found
    version = str(known.versions.get("transformers") or "")
    first = version.split(".")[0]
    if not first.isdigit() or int(first) < _FIRST_WITH_MASKS:
        said = f"transformers {version}" if version else "an unknown transformers"
        tried_with = f"transformers {packing.tried_with()}"
        return "unknown", f"{found} models keep rows apart with {tried_with}; {said} has not been tried", found
    return None
