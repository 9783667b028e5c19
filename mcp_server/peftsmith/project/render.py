"""From plan and lock to the text of every file of a training project.

Knows: which template makes which file, the facts that templates ask for, and that only filtered values are printed.
Does not know: the disk (generate.py), or whether the result works (vet.py, twin.py).
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from peftsmith import assets, files
from peftsmith.errors import PeftsmithError
from peftsmith.lock import Lock
from peftsmith.plan import FineTunePlan
from peftsmith.project import literal, requirements

_PLAIN_FILES = {
    "infer.py": "infer.py.j2",
    "merge.py": "merge.py.j2",
    "progress.py": "progress.py.j2",
    "train.py": "train.py.j2",
    ".env.example": "env.example.j2",
    ".gitignore": "gitignore.j2",
    "README.md": "README.md.j2",
}
_READERS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv"}
_VERSION = re.compile(r"[0-9]+(\.[0-9]+){1,3}([a-z0-9.+]*)?")
_BLANK_LINES = re.compile(r"\n{4,}")


def render(plan: FineTunePlan, lock: Lock) -> dict[str, str]:
    """Relative path -> text for each file of the project; the same plan and lock always give the same text.

    There is an evaluate.py only where the plan names test or eval rows. Raises PeftsmithError for a plan whose values
    cannot be written down safely, or whose data files have no reader.
    """
    facts = _facts(plan, lock)
    environment = _environment()
    templates = dict(_PLAIN_FILES)
    if facts["has_test"]:
        templates["evaluate.py"] = f"evaluate_{plan.task}.py.j2"
    rendered = {name: environment.get_template(template).render(facts) for name, template in sorted(templates.items())}
    rendered["requirements.txt"] = requirements.for_plan(plan)
    return {name: _BLANK_LINES.sub("\n\n\n", text) for name, text in sorted(rendered.items())}


def _facts(plan: FineTunePlan, lock: Lock) -> dict[str, Any]:
    """What templates may ask for. `plan` is plain data; nothing of it is printed without a filter."""
    data = plan.data
    named = [name for name in (data.train, data.eval, data.test) if name]
    readers = {_reader(name) for name in named}
    if len(readers) > 1:
        raise PeftsmithError(
            "The data files are of different kinds",
            value=named,
            next_step="Use one kind for all of them: prepare_dataset writes them all as JSON lines.",
        )
    targets = plan.method.target_modules
    return {
        "plan": plan.model_dump(mode="json"),
        "base_model": plan.base.model,
        "base_revision": plan.base.revision or lock.base.get("commit"),
        "hub": not lock.base.get("folder") or bool(lock.base.get("commit")),
        "classification": plan.task == "classification",
        "quantization": plan.method.quantization.model_dump() if plan.method.quantization else None,
        "reader": readers.pop(),
        "has_test": bool(data.test or data.eval),
        "targets": targets if isinstance(targets, str) else ", ".join(targets),
        "effective_batch": plan.training.batch_size * plan.training.gradient_accumulation,
        "torch_version": requirements.torch_version(),
    }


def _reader(name: str) -> str:
    path = PurePosixPath(name)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise PeftsmithError(
            "No reader exists for this kind of data file",
            value=name,
            next_step=f"Use one of {', '.join(_READERS)}.",
        )
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise PeftsmithError(
            "A data file must lie in the project's folder",
            value=name,
            next_step="Copy it there; name it relative to it.",
        )
    return reader


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(assets.folder("templates")),
        undefined=StrictUndefined,
        finalize=_only_filtered,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # these are scripts and Markdown; the filters are the escape
    )
    environment.filters = {
        "literal": literal.literal,
        "setting": literal.setting,
        "inert": literal.inert,
        "name": literal.name,
        "version": _version,
    }
    environment.globals = {}
    return environment


def _only_filtered(value: Any) -> str:
    """Jinja calls this on every printed expression: what no filter has passed stops the rendering."""
    if not isinstance(value, literal.Safe):
        raise TypeError(f"a template prints an unfiltered value of type {type(value).__name__}")
    return value


def _version(value: Any) -> literal.Safe:
    if not isinstance(value, str) or not _VERSION.fullmatch(value):
        raise PeftsmithError("This is not a version", value=files.clean(str(value), 80), next_step="Repair the pins.")
    return literal.Safe(value)
