"""Plans, locks and small projects that the tests of this stage share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peftsmith import files, lock, plan
from peftsmith.project import generate

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LABELS = ["billing", "shipping", "other"]
TEXTS = {
    "billing": ["the money was taken twice", "send the invoice again", "wrong amount on my card", "refund my order"],
    "shipping": ["the parcel never came", "change the address of my order", "when does it leave", "box is damaged"],
    "other": ["the app closes by itself", "how do I open the settings", "do you have a shop", "thank you for the help"],
}


def make(task: str = "classification", **changes: Any) -> plan.FineTunePlan:
    """A valid plan; `changes` are dotted fields with __ in place of the dot."""
    document: dict[str, Any] = {
        "schema_version": plan.SCHEMA_VERSION,
        "name": "tickets",
        "task": task,
        "base": {"model": "owner/model", "revision": COMMIT},
        "data": {
            "train": "data/train.jsonl",
            "test": "data/test.jsonl",
            "format": "classification" if task == "classification" else "messages",
            "labels": LABELS if task == "classification" else [],
            "system_prompt": "Route the ticket to one queue." if task == "classification" else None,
        },
        "method": {"rank": 4, "alpha": 8},
        "training": {
            "max_length": 256,
            "batch_size": 2,
            "learning_rate": 0.01,
            "precision": "fp32",
            "gradient_checkpointing": False,
        },
    }
    for dotted, value in changes.items():
        *parents, key = dotted.split("__")
        node = document
        for parent in parents:
            node = node[parent]
        node[key] = value
    return plan.validate(document)


def lock_for(wanted: plan.FineTunePlan, folder: Path | None = None, **changes: Any) -> lock.Lock:
    base = {"model": wanted.base.model, "commit": wanted.base.revision, "folder": str(folder) if folder else None}
    empty: dict[str, Any] = {"data": {}, "versions": {}, "interpreter": None, "estimate": {}, "why": {}, "files": {}}
    return lock.Lock(peftsmith="0.1.0", plan_sha256="", base=base, **{**empty, **changes})


def write_project(folder: Path, wanted: plan.FineTunePlan, base: Path | None = None) -> Path:
    """A project folder with plan, lock and rows, before generate_project."""
    (folder / "data").mkdir(parents=True)
    text = plan.dump(wanted)
    (folder / plan.PLAN_FILE).write_text(text, encoding="utf-8")
    for name in (wanted.data.train, wanted.data.eval, wanted.data.test):
        if name:
            write_rows(folder / name, wanted.data.format)
    lock.save(folder, lock_for(wanted, base).model_copy(update={"plan_sha256": files.sha256_text(text)}))
    return folder


_GENERATED: dict[str, dict[Path, bytes]] = {}


def generated(folder: Path, wanted: plan.FineTunePlan) -> Path:
    """A project with its scripts. They are generated once a plan; after that the same bytes are written."""
    key = wanted.model_dump_json()
    if key not in _GENERATED:
        generate.generate(write_project(folder, wanted))
        found = (path for path in folder.rglob("*") if path.is_file())
        _GENERATED[key] = {path.relative_to(folder): path.read_bytes() for path in found}
    for name, content in _GENERATED[key].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_rows(path: Path, format: str) -> None:
    lines = []
    for place in range(4):
        for label in LABELS:
            text = TEXTS[label][place]
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": f"That is {label}."}]
            row: dict[str, Any] = {"messages": turns}
            if format == "classification":
                row = {"text": text, "label": label}
            elif format == "prompt_completion":
                row = {"prompt": text, "completion": f"That is {label}."}
            lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
