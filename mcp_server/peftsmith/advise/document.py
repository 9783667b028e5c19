"""The plan's document: what was said, found and recommended, put together as plan.yaml holds it.

Knows: names of splits, columns and labels, the instruction of a classification, how a base is named and recorded.
Does not know: how anything was found out (planner.py) or recommended (recommend.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftsmith import files, plan
from peftsmith.advise import measure, recommend
from peftsmith.advise.facts import Intent
from peftsmith.errors import PeftsmithError

if TYPE_CHECKING:
    from peftsmith.data.formats import Detected
    from peftsmith.model.anatomy import Anatomy

_MANY_LABELS = 50
# Fields of a format whose columns the scripts look up under data.columns.
_COLUMNS = {
    "token_classification": ("tokens", "tags"),
    "question_answering": ("question", "context", "answers"),
    "seq2seq": ("source", "target"),
}


@dataclass(frozen=True)
class Wish:
    """What the user said: base model, rows, and what is to be done differently from the recommendation.

    `others` are the rows of further tasks by name, `other_tests` their test rows: each becomes an adapter of its own
    beside that of `data`, or all become one (intent.mix). `task` None: by rows and base. `gpu` is a name of the
    catalogue; without it this machine's device counts.
    """

    model: str
    data: Path
    test: Path | None = None
    eval: Path | None = None
    others: Mapping[str, Path] = field(default_factory=dict)
    other_tests: Mapping[str, Path] = field(default_factory=dict)
    revision: str | None = None
    task: plan.Task | None = None
    intent: Intent = field(default_factory=Intent)
    gpu: str | None = None
    memory_gib: float | None = None
    base_score: float | None = None
    wanted_score: float | None = None
    system_prompt: str | None = None
    text_column: str = "text"
    label_column: str = "label"

    def tasks(self) -> dict[str, tuple[Path, Path | None]]:
        """Adapter's name -> its rows and its test rows; the first is called what its file is, or its folder."""
        if not self.others:
            if self.other_tests or self.intent.mix:
                raise PeftsmithError(
                    "Several tasks need rows of their own: others is missing",
                    value=sorted(self.other_tests),
                    next_step="Give others, a file by name, or leave mix and other_tests out.",
                )
            return {}
        generic = self.data.stem.lower() in ("train", "data", "rows")
        first = re.sub(r"[^a-z0-9]+", "-", (self.data.parent.name if generic else self.data.stem).lower()).strip("-")
        found: dict[str, tuple[Path, Path | None]] = {first[:40]: (self.data, self.test)}
        wrong = [
            *(found.keys() & self.others),
            *(self.other_tests.keys() - self.others),
            *(["eval"] if self.eval else []),
        ]
        if wrong:
            raise PeftsmithError(
                "Each task needs a name of its own, and brings training rows and test rows only",
                value=wrong,
                next_step=f"The first is called {first[:40]}, as its file; name the others otherwise; give no eval.",
            )
        return found | {name: (path, self.other_tests.get(name)) for name, path in self.others.items()}


def plan_of(
    project: Path,
    wish: Wish,
    body: Anatomy,
    detected: Detected,
    intent: Intent,
    advice: recommend.Recommendation,
    labels: Mapping[str, list[str]],
) -> plan.FineTunePlan:
    """The plan; PeftsmithError where its parts do not go together. `labels` are those of several data sets, where they
    have different ones."""
    columns = detected.mapping.columns
    splits = {"train": wish.data, "eval": wish.eval, "test": wish.test}
    named = {name: f"data/{name}{path.suffix.lower()}" if path else None for name, path in splits.items()}
    return plan.validate(
        {
            "schema_version": plan.SCHEMA_VERSION,
            "name": _name(project),
            "task": intent.task,
            "base": {"model": _portable_model(wish.model, body), "revision": body.commit},
            "data": {
                **({} if wish.others else named),
                "format": detected.format,
                "text_column": columns.get("text", wish.text_column),
                "label_column": columns.get("label", wish.label_column),
                "columns": {
                    name: columns[name] for name in _COLUMNS.get(detected.format, ()) if columns.get(name, name) != name
                },
                "labels": sorted({each for some in labels.values() for each in some} or detected.labels)
                if intent.mix or not labels
                else [],
                "system_prompt": system_prompt(wish, detected, intent.task),
                "unanswerable": advice.facts["unanswered"],
            },
            "method": advice.method,
            "mixture" if intent.mix else "adapters": {
                name: {**_places(name, train, test), **_own_labels(labels, name, intent)}
                for name, (train, test) in wish.tasks().items()
            },
            "training": advice.training,
            "serving": intent.serving,
        }
    )


def sources(made: plan.FineTunePlan, wish: Wish) -> dict[str, Path]:
    """File of the project -> the user's file that is copied there."""
    if wish.others:
        return {
            place: {"train": train, "test": test}[split] or train
            for name, (train, test) in wish.tasks().items()
            for split, place in _places(name, train, test).items()
        }
    named = ((made.data.train, wish.data), (made.data.eval, wish.eval), (made.data.test, wish.test))
    return {name: source for name, source in named if name and source}


def _places(name: str, train: Path, test: Path | None) -> dict[str, str]:
    """Where the rows of one of several adapters lie in the project."""
    given = {"train": train, "test": test}
    return {split: f"data/{name}/{split}{path.suffix.lower()}" for split, path in given.items() if path}


def _own_labels(labels: Mapping[str, list[str]], name: str, intent: Intent) -> dict[str, list[str]]:
    return {} if intent.mix or name not in labels else {"labels": labels[name]}


def base(body: Anatomy) -> dict[str, Any]:
    """What the lock keeps of the base model."""
    return {
        "model": body.id,
        "commit": body.commit,
        "folder": str(body.folder) if body.folder else None,
        "config_sha256": files.sha256_file(body.folder / "config.json") if body.folder else None,
        "parameters": body.parameters,
        "model_type": body.model_type,
        "licence": body.licence,
    }


def _portable_model(model: str, body: Anatomy) -> str:
    """A hub id stays one; a local folder becomes absolute, since the project's scripts run from elsewhere."""
    return str(body.folder) if body.folder and not body.commit else model


def system_prompt(wish: Wish, detected: Detected, task: plan.Task) -> str | None:
    """The user's system message, or the one that all rows begin with, or the instruction that names the labels; None
    where rows are no chats."""
    if task not in measure.AS_CHATS:
        return None
    if wish.system_prompt or task != "classification":
        # What all rows say belongs into every prompt after training as well.
        return wish.system_prompt or (None if wish.others else measure.shared_system(wish.data, detected, task))
    labels = sorted(detected.labels)
    if len(labels) > _MANY_LABELS:
        return "Classify the text. Answer with the label only."
    return f"Classify the text as one of: {', '.join(labels)}. Answer with the label only."


def _name(project: Path) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", project.name.lower()).strip("-")[:60]
    return name or "fine-tune"
