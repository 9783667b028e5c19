"""Findings: the one way to say that something is right, wrong or unknown.

Knows: the catalogue under knowledge/findings/*.toml, severities, exit codes, the shape that every tool returns.
Does not know: how any finding is detected.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

from peftsmith.files import clean

Severity = Literal["error", "warning", "info", "unknown"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

# stage.object.fault; the object is left out where the stage's own document is the object (plan.drift).
ID_RULE = re.compile(r"[a-z]+(\.[a-z0-9_]+)?\.[a-z0-9_]+")
EXIT_CLEAN, EXIT_FINDINGS, EXIT_USAGE, EXIT_UNKNOWN = 0, 1, 2, 3


@dataclass(frozen=True)
class Entry:
    """What the catalogue says about one kind of finding. `rows` are row numbers of docs/findings.md's failure table."""

    id: str
    severity: Severity
    title: str
    fix: str
    source: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Finding:
    """One statement about a model, data set, plan, project, run or adapter.

    `evidence` holds what was seen (numbers, names, row numbers): JSON values only. Text in it that comes from
    users' files has been passed through `files.clean`.
    """

    id: str
    severity: Severity
    message: str
    fix: str
    source: str
    rows: tuple[int, ...]
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "severity": self.severity,
            "message": self.message,
            "fix": self.fix,
            "source": self.source,
            "rows": list(self.rows),
            "evidence": dict(self.evidence),
        }


@cache
def catalogue() -> Mapping[str, Entry]:
    """Every finding peftsmith can make, by id. Raises ValueError when an entry breaks the id rule or is incomplete."""
    entries: dict[str, Entry] = {}
    folder = resources.files("peftsmith").joinpath("knowledge", "findings")
    for file in sorted(folder.iterdir(), key=lambda item: item.name):
        if not file.name.endswith(".toml"):
            continue
        for id_, body in tomllib.loads(file.read_text(encoding="utf-8")).items():
            if not ID_RULE.fullmatch(id_) or id_ in entries or body["severity"] not in SEVERITIES:
                raise ValueError(f"bad or doubled finding {id_!r} in {file.name}")
            entries[id_] = Entry(
                id_, body["severity"], body["title"], body["fix"], body["source"], tuple(body.get("rows", ()))
            )
    return entries


def finding(
    id_: str,
    message: str | None = None,
    *,
    severity: Severity | None = None,
    fix: str | None = None,
    **evidence: Any,
) -> Finding:
    """A finding of the catalogue's kind `id_`; message, severity and fix may be made more exact than the entry's."""
    entry = catalogue()[id_]
    return Finding(
        id=id_,
        severity=severity or entry.severity,
        message=clean(message or entry.title, 1000),
        fix=fix or entry.fix,
        source=entry.source,
        rows=entry.rows,
        evidence=evidence,
    )


def exit_code(findings: Iterable[Finding | Mapping[str, Any]]) -> int:
    """0 clean, 1 errors or warnings, 3 nothing wrong but something unknown. Info does not count; usage errors are 2."""
    severities = {f.severity if isinstance(f, Finding) else f["severity"] for f in findings}
    if severities & {"error", "warning"}:
        return EXIT_FINDINGS
    return EXIT_UNKNOWN if "unknown" in severities else EXIT_CLEAN


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    order = {"error": 0, "unknown": 1, "warning": 2, "info": 3}
    return sorted(findings, key=lambda f: (order[f.severity], f.id))
