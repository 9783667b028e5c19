"""A complete small project around the tiny model, made without planner and hardware.

Knows: plan, lock, a few rows, and the real generated scripts.
Does not know: what a good plan would be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peftsmith import __version__, files, lock, plan
from peftsmith.project import generate

LABELS = ["billing", "delivery"]
TEXTS = {
    "billing": "the money was taken twice, please send it back, order",
    "delivery": "the parcel never came, where is it now, order",
}


def rows(count: int) -> list[dict[str, str]]:
    """Two labels in turn, every text different."""
    return [{"text": f"{TEXTS[LABELS[number % 2]]} {number}", "label": LABELS[number % 2]} for number in range(count)]


def write_rows(path: Path, values: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def make_project(folder: Path, model: Path, **changes: dict[str, Any]) -> Path:
    """Write plan, lock, data and scripts into `folder`; `changes` go over the plan's parts (method=...)."""
    write_rows(folder / "data" / "train.jsonl", rows(24))
    write_rows(folder / "data" / "test.jsonl", rows(6))
    document: dict[str, Any] = {
        "schema_version": plan.SCHEMA_VERSION,
        "name": "small",
        "task": "classification",
        "base": {"model": str(model)},
        "data": {
            "train": "data/train.jsonl",
            "test": "data/test.jsonl",
            "format": "classification",
            "labels": LABELS,
            "system_prompt": "route the ticket to one queue",
        },
        "method": {"rank": 4, "alpha": 8},
        "training": {"precision": "fp32", "batch_size": 2, "max_length": 128},
    }
    for part, values in changes.items():
        document[part] = {**document[part], **values}
    text = plan.dump(plan.validate(document))
    files.write_text(folder / plan.PLAN_FILE, text)
    lock.save(
        folder,
        lock.Lock(
            peftsmith=__version__,
            plan_sha256=files.sha256_text(text),
            base={
                "model": str(model),
                "commit": None,
                "folder": str(model),
                "config_sha256": files.sha256_file(model / "config.json"),
                "licence": None,
                "parameters": 0,
            },
            data={
                split: lock.DataFile(path=name, sha256=files.sha256_file(folder / name), rows=count)
                for split, name, count in (("train", "data/train.jsonl", 24), ("test", "data/test.jsonl", 6))
            },
            versions={},
            interpreter=None,
            estimate={},
            why={},
            files={},
        ),
    )
    generate.generate(folder)
    return folder


def edit(script: Path, old: str, new: str) -> None:
    """Replace one occurrence in a script; fails when it is not there, so that no fault stays unplanted."""
    text = script.read_text(encoding="utf-8")
    assert text.count(old) >= 1, f"{script.name} has no {old!r}"
    script.write_text(text.replace(old, new, 1), encoding="utf-8")
