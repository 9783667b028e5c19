"""What the catalogue makes of config.json against the real classes: the check behind benchmarks/targets.py --catalogue.

Run by itself (PYTHONPATH=mcp_server .venv-train/bin/python benchmarks/implied.py --write [--types a,b]) it is the last
step of making the catalogue: what an entry gets wrong is written into the entry as a limit (`only`, `apart`), so that
the reader says "unknown" there, and an entry that is still wrong is marked incomplete.
Knows: how to write a type's config.json in the two ways that people have it, how to vary it, and how two tables differ.
Does not know: targets or PEFT. Runs in the training environment, on the meta device.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import random
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "mcp_server")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from peftsmith.errors import PeftsmithError  # noqa: E402
from peftsmith.model import catalogue, layouts, modules  # noqa: E402
from peftsmith.worker import catalogue as making  # noqa: E402
from peftsmith.worker import shrink, table  # noqa: E402

# Flags whose modules no formula tells: an entry holds for their default alone.
UNTOLD = {"stablelm": {"qk_layernorm": False}}  # one norm a head, in a list of its own
VARIATIONS, MOST_ROUNDS = 12, 3
UNKNOWN, REFUSED = "not known", "refused"
UNSET_SIZES = (4, 16, 64)  # what a size that is null or 0 by default is set to
_NO_SIZE = re.compile(
    r"token_id|_id$|_ids$|label|seed|chunk|dropout|pad_idx|rope|scal|initial|eps|std$|theta|freq|dtype|^_|parameters$"
    r"|architectures|token$|implementation|_prob$|_args$|task|index|problem_type|_type$|^name_or|version|prefix"
)
_NO_FLAG = re.compile(r"cache|output_|return|^is_|chunk|torchscript|pruned")


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
        config = default(model_type)
        exact = modules.from_json(table.table(table.build(config, task)))
    except Exception as error:  # whatever transformers raises for a type whose defaults do not build
        return {**result, "why": f"{type(error).__name__}: {str(error)[:120]}"}
    cases = [("full", config.to_dict(), exact), ("short", saved(config), exact)]
    draw = random.Random(f"{model_type}:{task}:{seed}")
    small = small_of(model_type)
    several = (several_of(small, draw) for _ in range(variations)) if small else ()
    for name, document, built in itertools.chain(cases, varied(small, task, several)):
        fault = fault_of(document, built)
        if name in ("full", "short"):
            result[name] = fault is None
        else:
            result["varied"] += fault is None
        result["refused"] += bool(fault and fault.startswith(REFUSED))
        if fault and fault != UNKNOWN and not fault.startswith(REFUSED):
            result["wrong"].append(f"{name}: {fault}")
    return result


def default(model_type: str) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type](**shrink.NEEDED.get(model_type, {}))


def saved(config: Any) -> dict[str, Any]:
    """The config.json that save_pretrained writes."""
    document: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    return document


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
            place, leaf = _place(document, name)
            place[leaf] = value
        try:
            config = table.config_of(document)
            built = modules.from_json(table.table(table.build(config, task)))
        except Exception:  # a combination that the class refuses proves nothing
            continue
        if all(_get(config, name) == value for name, value in changes.items()):
            yield json.dumps(changes), saved(config), built


def several_of(small: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Up to four flags and sizes with other values, drawn at random."""
    fields = [*changeable(small), *changeable(small, unset=True)]
    changes = {}
    for name in draw.sample(fields, min(len(fields), draw.randint(1, 4))):
        place, leaf = _place(small, name)
        changes[name] = _changed(place[leaf], leaf, draw)
    return changes


def one_each(small: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every flag and size alone, with one or two other values."""
    for name in (*changeable(small), *changeable(small, unset=True)):
        place, leaf = _place(small, name)
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


def limited(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with limits where it would be wrong: fields with the one value that it holds for, pairs of flags."""
    model_type, _, task = entry["key"].partition(":")
    small = small_of(model_type)
    entry = {key: value for key, value in entry.items() if key not in ("only", "apart")}
    entry["patches"] = {flag: patch for flag, patch in entry["patches"].items() if "&" not in flag}
    if small is None or not entry["complete"]:
        return entry
    _use(entry)
    only: dict[str, Any] = dict(UNTOLD.get(model_type, {}))
    for name, document, built in varied(small, task, one_each(small)):
        (field,) = json.loads(name)
        if field not in only and _is_wrong(document, built):
            only[field] = _get(default(model_type), field)
    apart = []
    flags = [flag for flag in entry["patches"] if flag.partition("=")[0] not in only]
    for pair, changes in pairs(flags):
        if any(_is_wrong(document, built) for _, document, built in varied(small, task, [changes])):
            together = both(entry, pair, changes)
            if together is None:
                apart.append(list(pair))
            else:
                entry["patches"]["&".join(pair)] = together
    entry |= ({"only": only} if only else {}) | ({"apart": apart} if apart else {})
    _use(entry)
    for changes in unread_pairs(entry, small):
        if any(_is_wrong(document, built) for _, document, built in varied(small, task, [changes])):
            unread = [name for name in changes if name not in entry["fields"]]
            entry["only"] = entry.get("only", {}) | {name: _get(default(model_type), name) for name in unread}
            _use(entry)
    for _ in range(MOST_ROUNDS):
        wrong = check(model_type, task, seed="limits")["wrong"]
        found = {
            name for fault in wrong if fault.startswith("{") for name in culprits(small, task, _changes_in(fault))
            if name not in entry["fields"]
        }  # fmt: skip
        if not found:
            break
        entry["only"] = entry.get("only", {}) | {name: _get(default(model_type), name) for name in found}
        _use(entry)
    if wrong:
        entry = {key: value for key, value in entry.items() if key not in ("only", "apart")}
        entry |= {"complete": False, "missing": [f"disproved: {fault[:160]}" for fault in wrong[:3]]}
    return entry


def unread_pairs(entry: dict[str, Any], small: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Two fields at once of which the entry reads at most one: flags among each other, unset sizes with its flags."""
    flags = {name: not _value(small, name) for name in changeable(small) if isinstance(_value(small, name), bool)}
    unset = {
        name: [0] if _value(small, name) == [] else UNSET_SIZES[1] for name in changeable(small, unset=True)
    }  # fmt: skip
    known = {flag.partition("=")[0]: flag.partition("=")[2] for flag in entry["patches"] if "&" not in flag}
    for first, second in itertools.combinations(flags, 2):
        if not {first, second} <= known.keys():
            yield {first: flags[first], second: flags[second]}
    for name, value in unset.items():
        for flag, text in known.items():
            if flag != name:
                yield {name: value, flag: json.loads(text)}


def _value(document: dict[str, Any], name: str) -> Any:
    place, leaf = _place(document, name)
    return place[leaf]


def culprits(small: dict[str, Any], task: str, changes: dict[str, Any]) -> list[str]:
    """Those of these changes without which the others are described as they are."""
    found = []
    for name in changes:
        rest = {key: value for key, value in changes.items() if key != name}
        faults = [_is_wrong(document, built) for _, document, built in varied(small, task, [rest])]
        if faults == [False]:
            found.append(name)
    return found


def both(entry: dict[str, Any], pair: tuple[str, str], changes: dict[str, Any]) -> dict[str, Any] | None:
    """What two flags do together, as a patch that is applied after theirs; None when no formulas are found in the
    fields that the entry reads."""
    model_type, _, task = entry["key"].partition(":")
    experiment = making.Experiment(model_type, task)
    built = experiment.shapes(changes)
    if built is None:
        return None
    expressions, lost = experiment.fitted(changes, built)
    if lost:
        return None
    rows = experiment.described(built, expressions)
    texts = (text for _, _, shapes, *_ in rows.values() for dims in shapes.values() for text in dims)
    if any(name not in entry["fields"] for text in texts for name in catalogue.fields_in(text)):
        return None
    touched = {name for flag in pair for part in ("set", "drop") for name in entry["patches"][flag][part]}
    return {
        "set": {name: row for name, row in rows.items() if name in touched or entry["modules"].get(name) != row},
        "drop": sorted((entry["modules"].keys() | touched) - rows.keys()),
        "tied": built.tied,
    }


def _changes_in(fault: str) -> dict[str, Any]:
    """The changes that a fault of `check` begins with."""
    found, _ = json.JSONDecoder().raw_decode(fault)
    return dict(found)


def _is_wrong(document: dict[str, Any], built: modules.Skeleton) -> bool:
    fault = fault_of(document, built)
    return fault is not None and fault != UNKNOWN and not fault.startswith(REFUSED)


def _use(entry: dict[str, Any]) -> None:
    """Let the reader see this entry in place of the stored one."""
    lines = catalogue._lines()
    assert isinstance(lines, dict)
    lines[entry["key"]] = json.dumps(entry)
    catalogue.entry.cache_clear()


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


def _place(document: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    *path, leaf = name.split(".")
    for part in path:
        document = document[part]
    return document, leaf


def _get(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part, None)
    return config


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", required=True, help="write the limits into the catalogue")
    parser.add_argument("--types", help="only these, comma-separated")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    wanted = set(arguments.types.split(",")) if arguments.types else None
    path = ROOT / "mcp_server" / "peftsmith" / "knowledge" / catalogue.FILES[0]
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for index, entry in enumerate(entries):
        if wanted is None or entry["key"].partition(":")[0] in wanted:
            entries[index] = limited(entry)
            limits = {key: entries[index].get(key) for key in ("complete", "only", "apart", "missing")}
            print(entry["key"], json.dumps(limits), flush=True)
            text = "\n".join(json.dumps(each, separators=(",", ":")) for each in entries) + "\n"
            path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
