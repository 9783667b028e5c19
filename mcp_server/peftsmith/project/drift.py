"""Where the plan and the settings of the generated scripts disagree, with a patch in either direction.

Knows: what each script would say of the plan, and which of the plan's fields a changed setting belongs to.
Does not know: which of the two is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftsmith import files, lock
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding
from peftsmith.plan import FineTunePlan
from peftsmith.project import render, settings


def find(project: Path, plan: FineTunePlan) -> list[Finding]:
    """One finding for each script whose settings differ from the plan's, with a patch in either direction.

    `to_plan` maps dotted fields to the script's values (for plan.edit), `to_script` maps the file's setting names to
    the plan's (for `patch`). Settings that are missing or computed are unknown, not equal.
    """
    locked = lock.load(project)
    findings: list[Finding] = []
    for file, generated in render.render(plan, locked).items():
        path = project / file
        if not file.endswith(".py") or not path.is_file():
            continue
        text = files.read_text(path)
        try:
            found, computed = settings.read(text), settings.unreadable(text)
        except PeftsmithError:
            continue  # vet reports the syntax error itself
        wanted = settings.read(generated)
        differing = {name: value for name, value in wanted.items() if name in found and not _same(found[name], value)}
        if differing:
            to_plan = {
                field: value for name in differing for field, value in _patch(plan, name, found[name], wanted[name])
            }
            findings.append(
                finding(
                    "plan.drift",
                    f"{file} and plan.yaml disagree on {', '.join(to_plan) or ', '.join(differing)}",
                    file=file,
                    to_plan=to_plan,
                    to_script={name: value for name, value in differing.items()},
                )
            )
        lost = sorted(name for name in wanted if name not in found)
        if lost:
            message = (
                f"{file}: {', '.join(lost)} cannot be read as plain values, so they were not compared with the plan"
            )
            findings.append(finding("project.settings.unreadable", message, file=file, names=lost, computed=computed))
    return findings


def _patch(plan: FineTunePlan, name: str, found: Any, wanted: Any) -> Iterator[tuple[str, Any]]:
    """The plan's fields that a script's setting changes. One that holds a value for each adapter, or part of a mixture,
    changes those that the plan has; a new one needs its rows in the plan first."""
    field = settings.fields()[name]
    if plan.mixture:
        field = field.replace("adapters.*", "mixture.*")
    if "*" not in field:
        yield field, found
    elif isinstance(found, dict):
        for adapter, value in wanted.items():
            if adapter in found and not _same(found[adapter], value):
                yield field.replace("*", adapter), found[adapter]


def _same(one: Any, other: Any) -> bool:
    """Equal as the plan would read them: 3 and 3.0 are, True and 1 are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
