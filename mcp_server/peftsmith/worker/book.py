"""Keeping the book of a proof: which checks passed, what was seen, how long each phase took.

Knows: that a check is proven, disproved or not run, and that a check which cannot be carried out proves nothing.
Does not know: what is checked (jobs/twin.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from peftsmith.worker import scripts
from peftsmith.worker.child import Report, describe


class Disproved(Exception):
    """A proof failed: what was seen instead."""

    def __init__(self, message: str, **evidence: Any) -> None:
        super().__init__(message)
        self.evidence = evidence


@dataclass
class Book:
    """What has been proven so far. A check is {name, ok, evidence}; ok None means that it could not be run."""

    report: Report
    checks: list[dict[str, Any]] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.report(name, {})
        began = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = round(self.phases.get(name, 0.0) + time.monotonic() - began, 2)

    @contextmanager
    def check(self, name: str) -> Iterator[dict[str, Any]]:
        """Run one proof; what it puts into the dict is its evidence. A failure is recorded, never raised."""
        seen: dict[str, Any] = {}
        entry = {"name": name, "ok": False, "evidence": seen}
        self.checks.append(entry)
        try:
            yield seen
            entry["ok"] = True
        except scripts.ScriptFailed as error:
            seen |= {"error": str(error), "where": error.where or error.script, "traceback": error.traceback}
        except Disproved as error:
            seen |= {"error": str(error), **error.evidence}
        except Exception as error:  # a proof that cannot be carried out is no proof
            seen |= {"error": describe(error)}

    def skip(self, because: str, *names: str) -> None:
        self.checks += [{"name": name, "ok": None, "evidence": {"because": because}} for name in names]

    def passed(self, name: str) -> bool:
        return any(check["name"] == name and check["ok"] for check in self.checks)
