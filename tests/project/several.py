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


# Of each task with a head, or that writes one text from another: its data, and a row of one adapter.
OTHERS: dict[str, dict[str, Any]] = {
    "sequence_classification": {"format": "classification"},
    "token_classification": {"format": "token_classification"},
    "question_answering": {"format": "question_answering"},
    "seq2seq": {"format": "seq2seq"},
}
LABELS = {"billing": ["paid", "unpaid"], "delivery": ["early", "late"]}


def other(model: Path | str, task: str, labels: dict[str, list[str]] | None = None, **changes: Any) -> dict[str, Any]:
    """Two adapters for such a task; each has labels of its own, unless all are to have the first's."""
    made = document(model, task=task, data=OTHERS[task], **changes)
    labelled = task.endswith("_classification")
    for name, each in made["adapters"].items():
        each.pop("system_prompt")
        each |= {"labels": (labels or LABELS)[name]} if labelled else {}
    return made


def row(task: str, name: str, number: int, labels: list[str]) -> dict[str, Any]:
    text = f"question {number} about {name}"
    if task == "sequence_classification":
        return {"text": text, "label": labels[number % len(labels)]}
    if task == "token_classification":
        words = text.split()
        return {"tokens": words, "tags": [labels[(place + number) % len(labels)] for place in range(len(words))]}
    if task == "question_answering":
        context = f"The {name} came on day {number}, in a box."
        answer = f"day {number}"
        given = {"text": [answer], "answer_start": [context.index(answer)]}
        return {"question": f"When came the {name}?", "context": context, "answers": given}
    if task == "seq2seq":
        return {"source": text, "target": f"{ANSWERS[name]} {number}"}
    return {"prompt": text, "completion": f"{ANSWERS[name]} {number}"}


def make(folder: Path, made: dict[str, Any]) -> generate.Written:
    """Write plan, lock, rows and scripts into `folder`."""
    several = made.get("adapters") or made["mixture"]
    for name in ANSWERS:
        labels = several[name].get("labels") or made["data"].get("labels") or []
        for split, count in (("train", 16), ("test", 4)):
            rows = [row(made["task"], name, i, labels) for i in range(count)]
            write_rows(folder / "data" / name / f"{split}.jsonl", rows)
    text = plan.dump(plan.validate(made))
    files.write_text(folder / plan.PLAN_FILE, text)
    model = Path(made["base"]["model"])
    base = {"model": str(model), "commit": None, "folder": str(model), "licence": None, "parameters": 0}
    base["config_sha256"] = files.sha256_file(model / "config.json")
    base["model_type"] = files.read_json(model / "config.json")["model_type"]
    empty: dict[str, Any] = {"data": {}, "versions": {}, "interpreter": None, "estimate": {}, "why": {}, "files": {}}
    lock.save(folder, lock.Lock(peftsmith=__version__, plan_sha256=files.sha256_text(text), base=base, **empty))
    return generate.generate(folder)
