"""The last step of making the catalogue: what an entry gets wrong is written into it as a limit (`only`, `apart`).

Run as: PYTHONPATH=mcp_server .venv-train/bin/python benchmarks/implied_limits.py [--types a,b]

The reader then says "unknown" there, and an entry that is still wrong is marked incomplete.
Knows: which changes to try on an entry, and what to forbid when they are described wrongly.
Does not know: how two tables differ (implied.py), how a config.json is varied (configs.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "mcp_server"), str(ROOT)]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks import configs, implied
from peftsmith.model import catalogue
from peftsmith.worker.architectures.entry import described
from peftsmith.worker.architectures.experiment import Experiment
from peftsmith.worker.architectures.formulas import place_of
from peftsmith.worker.architectures.widths import fitted

# Flags whose modules no formula tells: an entry holds for their default alone.
UNTOLD = {"stablelm": {"qk_layernorm": False}}  # one norm a head, in a list of its own
MOST_ROUNDS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
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


def limited(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with limits where it would be wrong: fields with the one value that it holds for, pairs of flags."""
    model_type, _, task = entry["key"].partition(":")
    small = configs.small_of(model_type)
    entry = {key: value for key, value in entry.items() if key not in ("only", "apart")}
    entry["patches"] = {flag: patch for flag, patch in entry["patches"].items() if "&" not in flag}
    if small is None or not entry["complete"]:
        return entry
    _use(entry)
    only: dict[str, Any] = dict(UNTOLD.get(model_type, {}))
    for name, document, built in configs.varied(small, task, configs.one_each(small)):
        (field,) = json.loads(name)
        if field not in only and implied.is_wrong(document, built):
            only[field] = _default(model_type, field)
    apart = []
    flags = [flag for flag in entry["patches"] if flag.partition("=")[0] not in only]
    for pair, changes in configs.pairs(flags):
        if True in _wrong(small, task, changes):
            together = both(entry, pair, changes)
            if together is None:
                apart.append(list(pair))
            else:
                entry["patches"]["&".join(pair)] = together
    entry |= ({"only": only} if only else {}) | ({"apart": apart} if apart else {})
    _use(entry)
    for changes in unread_pairs(entry, small):
        if True in _wrong(small, task, changes):
            unread = [name for name in changes if name not in entry["fields"]]
            entry["only"] = entry.get("only", {}) | {name: _default(model_type, name) for name in unread}
            _use(entry)
    for _ in range(MOST_ROUNDS):
        wrong = implied.check(model_type, task, seed="limits")["wrong"]
        found = {
            name for fault in wrong if fault.startswith("{") for name in culprits(small, task, _changes_in(fault))
            if name not in entry["fields"]
        }  # fmt: skip
        if not found:
            break
        entry["only"] = entry.get("only", {}) | {name: _default(model_type, name) for name in found}
        _use(entry)
    if wrong:
        entry = {key: value for key, value in entry.items() if key not in ("only", "apart")}
        entry |= {"complete": False, "missing": [f"disproved: {fault[:160]}" for fault in wrong[:3]]}
    return entry


def unread_pairs(entry: dict[str, Any], small: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Two fields at once of which the entry reads at most one: flags among each other, unset sizes with its flags."""
    flags = {
        name: not _value(small, name) for name in configs.changeable(small) if isinstance(_value(small, name), bool)
    }
    unset = {
        name: [0] if _value(small, name) == [] else configs.UNSET_SIZES[1]
        for name in configs.changeable(small, unset=True)
    }
    known = {flag.partition("=")[0]: flag.partition("=")[2] for flag in entry["patches"] if "&" not in flag}
    for first, second in itertools.combinations(flags, 2):
        if not {first, second} <= known.keys():
            yield {first: flags[first], second: flags[second]}
    for name, value in unset.items():
        for flag, text in known.items():
            if flag != name:
                yield {name: value, flag: json.loads(text)}


def _value(document: dict[str, Any], name: str) -> Any:
    place, leaf = place_of(document, name)
    return place[leaf]


def culprits(small: dict[str, Any], task: str, changes: dict[str, Any]) -> list[str]:
    """Those of these changes without which the others are described as they are."""
    found = []
    for name in changes:
        rest = {key: value for key, value in changes.items() if key != name}
        faults = [implied.is_wrong(document, built) for _, document, built in configs.varied(small, task, [rest])]
        if faults == [False]:
            found.append(name)
    return found


def both(entry: dict[str, Any], pair: tuple[str, str], changes: dict[str, Any]) -> dict[str, Any] | None:
    """What two flags do together, as a patch that is applied after theirs; None when no formulas are found in the
    fields that the entry reads."""
    model_type, _, task = entry["key"].partition(":")
    experiment = Experiment(model_type, task)
    built = experiment.shapes(changes)
    if built is None:
        return None
    expressions, lost = fitted(experiment, changes, built)
    if lost:
        return None
    rows = described(built, expressions)
    texts = (text for _, _, shapes, *_ in rows.values() for dims in shapes.values() for text in dims)
    if any(name not in entry["fields"] for text in texts for name in catalogue.fields_in(text)):
        return None
    touched = {name for flag in pair for part in ("set", "drop") for name in entry["patches"][flag][part]}
    return {
        "set": {name: row for name, row in rows.items() if name in touched or entry["modules"].get(name) != row},
        "drop": sorted((entry["modules"].keys() | touched) - rows.keys()),
        "tied": built.tied,
    }


def _wrong(small: dict[str, Any], task: str, changes: dict[str, Any]) -> list[bool]:
    """Whether the config with these changes is described wrongly; empty when the class refuses them."""
    return [implied.is_wrong(document, built) for _, document, built in configs.varied(small, task, [changes])]


def _default(model_type: str, name: str) -> Any:
    return configs.get(configs.default(model_type), name)


def _changes_in(fault: str) -> dict[str, Any]:
    """The changes that a fault of `check` begins with."""
    found, _ = json.JSONDecoder().raw_decode(fault)
    return dict(found)


def _use(entry: dict[str, Any]) -> None:
    """Let the reader see this entry in place of the stored one."""
    lines = catalogue._lines()
    assert isinstance(lines, dict)
    lines[entry["key"]] = json.dumps(entry)
    catalogue.entry.cache_clear()


if __name__ == "__main__":
    sys.exit(main())
