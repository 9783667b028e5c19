"""Small projects with several adapters on the tiny model.

Knows: rows of two tasks, a plan over them, the generated scripts.
Does not know: a plan of one adapter (small_project.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftsmith import __version__, files, lock, plan
from peftsmith.project import generate
from tests.project.small_project import write_rows

ANSWERS = {"billing": "It is the bill.", "delivery": "The parcel is late."}


def document(model: Path | str, **changes: Any) -> dict[str, Any]:
    """Two adapters, each with its own rows and system prompt; `changes` go over the document's parts."""
    made: dict[str, Any] = {
        "schema_version": plan.SCHEMA_VERSION,
        "name": "support",
        "task": "chat",
        "base": {"model": str(model)},
        "data": {"format": "prompt_completion"},
        "method": {"rank": 4, "alpha": 8},
        "adapters": {
            name: {
                "train": f"data/{name}/train.jsonl",
                "test": f"data/{name}/test.jsonl",
                "system_prompt": f"You know all about {name}.",
            }
            for name in ANSWERS
        },
        "training": {"precision": "fp32", "batch_size": 2, "max_length": 128},
    }
    for part, value in changes.items():
        merged = isinstance(value, dict) and isinstance(made.get(part), dict) and part != "adapters"
        made[part] = {**made[part], **value} if merged else value
    return made


def mixture(*weights: float | None) -> dict[str, Any]:
    """The same rows for one adapter, with a weight for each set if any."""
    parts: dict[str, Any] = {
        name: {"train": f"data/{name}/train.jsonl", "test": f"data/{name}/test.jsonl"} for name in ANSWERS
    }
    for part, weight in zip(parts.values(), weights or [None] * len(parts), strict=True):
        part |= {} if weight is None else {"weight": weight}
    return parts


def with_methods(model: Path | str, *methods: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    """The document with a method of its own for each adapter (None: the plan's)."""
    made = document(model, **changes)
    for each, method in zip(made["adapters"].values(), methods, strict=True):
        each |= {"method": method} if method else {}
    return made


def make(folder: Path, made: dict[str, Any]) -> generate.Written:
    """Write plan, lock, rows and scripts into `folder`."""
    for name, answer in ANSWERS.items():
        for split, count in (("train", 16), ("test", 4)):
            rows = [{"prompt": f"question {i} about {name}", "completion": f"{answer} {i}"} for i in range(count)]
            write_rows(folder / "data" / name / f"{split}.jsonl", rows)
    text = plan.dump(plan.validate(made))
    files.write_text(folder / plan.PLAN_FILE, text)
    model = Path(made["base"]["model"])
    base = {"model": str(model), "commit": None, "folder": str(model), "licence": None, "parameters": 0}
    base["config_sha256"] = files.sha256_file(model / "config.json")
    empty: dict[str, Any] = {"data": {}, "versions": {}, "interpreter": None, "estimate": {}, "why": {}, "files": {}}
    lock.save(folder, lock.Lock(peftsmith=__version__, plan_sha256=files.sha256_text(text), base=base, **empty))
    return generate.generate(folder)
