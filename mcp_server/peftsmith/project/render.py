"""From plan and lock to the text of every file of a training project.

Knows: which template makes which file, and that only filtered values are printed.
Does not know: what the templates are told (facts.py), the disk (generate.py), or whether the result works (vet.py,
twin.py).
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from peftsmith import assets, files
from peftsmith.errors import PeftsmithError
from peftsmith.lock import Lock
from peftsmith.plan import FineTunePlan
from peftsmith.project import facts, literal, requirements

_PLAIN_FILES = {
    "progress.py": "progress.py.j2",
    ".env.example": "env.example.j2",
    ".gitignore": "gitignore.j2",
    "README.md": "README.md.j2",
}
_VERSION = re.compile(r"[0-9]+(\.[0-9]+){1,3}([a-z0-9.+]*)?")
_BLANK_LINES = re.compile(r"\n{4,}")


def render(plan: FineTunePlan, lock: Lock) -> dict[str, str]:
    """Relative path -> text for each file of the project; the same plan and lock always give the same text.

    There is an evaluate.py only where the plan names test or eval rows, and a merge.py only where the method merges.
    Raises PeftsmithError for a plan whose values cannot be written down safely, or whose data files have no reader.
    """
    stated = facts.facts_of(plan, lock)
    environment = _environment()
    kind = facts.KINDS[plan.task]
    trains = "bottleneck" if stated["bottleneck"] else kind
    infer = "adapters" if plan.adapters else kind
    templates = {**_PLAIN_FILES, "train.py": f"train_{trains}.py.j2", "infer.py": f"infer_{infer}.py.j2"}
    if stated["has_test"]:
        templates["evaluate.py"] = f"evaluate_{'classification' if plan.task == 'classification' else kind}.py.j2"
    if stated["merges"]:
        templates["merge.py"] = "merge.py.j2"
    rendered = {name: environment.get_template(template).render(stated) for name, template in sorted(templates.items())}
    rendered["requirements.txt"] = requirements.for_plan(plan)
    return {name: _BLANK_LINES.sub("\n\n\n", text) for name, text in sorted(rendered.items())}


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
        "word": literal.word,
        "plain": literal.plain,
        "imports": literal.imports,
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
