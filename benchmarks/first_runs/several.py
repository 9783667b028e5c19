"""Cases with more than one data set: an adapter for each on one base, of one type or of several, or one for all.

Knows: how the entries of several.toml become plans, and which of them must be refused with what.
Does not know: plans of one adapter (cases.py), or how a case is tried (trying.py).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.first_runs import cases
from benchmarks.first_runs.cases import Case

NAMES = ("billing", "delivery")


@cache
def entries() -> dict[str, list[dict[str, Any]]]:
    return tomllib.loads(Path(__file__).with_name("several.toml").read_text(encoding="utf-8"))


def valid() -> Iterator[Case]:
    """Plans that must be proven."""
    for entry in entries()["proven"]:
        yield case(entry)


def invalid() -> Iterator[Case]:
    """Plans whose adapters cannot share a base, each with the finding that must say so."""
    for entry in entries()["refused"]:
        yield case(entry)


def case(entry: Mapping[str, Any]) -> Case:
    """`type`, `task`, `methods` (PEFT types, or whole methods: one for all, or one each), `quantization`, `labels` of
    each, `weights` (then it is a mixture; empty ones draw every row once), `refused`."""
    chosen = [each if isinstance(each, dict) else cases.method(each, entry["type"]) for each in entry["methods"]]
    if "quantization" in entry:
        chosen = [{**each, "quantization": cases.facts()["quantizations"][entry["quantization"]]} for each in chosen]
    single = cases.combination(entry["type"], entry["task"], chosen[0], refused=entry.get("refused"))
    mixture = "weights" in entry
    parts = [_part(name) for name in NAMES]
    for place, part in enumerate(parts):
        part |= {"labels": entry["labels"][place]} if "labels" in entry and not mixture else {}
        part |= {"weight": entry["weights"][place]} if entry.get("weights") else {}
        part |= {"method": chosen[place]} if len(chosen) > 1 else {}
    data = {name: value for name, value in single.plan["data"].items() if name not in ("train", "eval", "test")}
    data["labels"] = [] if "labels" in entry and not mixture else data["labels"]
    document = {**single.plan, "data": data, "mixture" if mixture else "adapters": dict(zip(NAMES, parts, strict=True))}
    told = {name: value for name, value in entry.items() if name not in ("type", "task", "refused")}
    name = f"several {entry['type']} {entry['task']} {json.dumps(told, sort_keys=True)}"
    return replace(single, name=name, plan=document)


def _part(name: str) -> dict[str, Any]:
    return {"train": f"data/{name}/train.jsonl", "test": f"data/{name}/test.jsonl"}
