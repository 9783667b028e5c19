"""Trying a case: generate, vet, twin; what became of it, and what the twin has proven.

Knows: which proofs a first run needs, and which of them a method may lack because it cannot do it at all.
Does not know: which cases there are, or where results are kept (first_run.py).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.first_runs import project as projects
from benchmarks.first_runs.cases import Case
from peftsmith import plan
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding
from peftsmith.machine import environment as environments
from peftsmith.machine.environment import Environment
from peftsmith.project import generate, proof_facts, requirements, twin, vet

REPOSITORY = Path(__file__).resolve().parents[2]
PROVEN, SWAPPED, REFUSED = "proven", "proven with swaps", "refused"
# What the twin must have seen. The last three may be missing, each for one reason only.
PROOFS = ("build", "train", "loss", "metrics", "adapter", "adapter_nonzero", "checkpoint", "trainable", "reload",
          "generate", "untouched", "evaluate", "merge", "resume")  # fmt: skip
OF_SEVERAL = ("frozen", "switch")  # what it must have seen of several adapters on one base besides


def run(case: Case, work: Path, environment: Environment | None) -> dict[str, Any]:
    """What became of a case: outcome, why, swaps, lacks (proofs that the method cannot give), seconds.

    The outcome is proven, proven with swaps (something a processor does otherwise than the plan says), refused (before
    a file was written), failed, not refused, or unknown. `work` is an empty folder.
    """
    began = time.monotonic()
    seen: dict[str, Any] = {"swaps": [], "lacks": []}
    project = work / "project"
    if case.untried:
        seen |= {"outcome": "unknown", "why": [case.untried]}
    else:
        try:
            seen |= _try(case, project, work / "base", environment)
        except PeftsmithError as error:
            seen |= {"outcome": "failed", "why": [f"{error.cause} {error.value or ''}".strip()]}
        except Exception as error:  # a fault of ours in one case must not end the run of all the others
            seen |= {"outcome": "failed", "why": [f"{type(error).__name__}: {error}"]}
    if case.refused and seen["outcome"] != "unknown":
        seen["outcome"] = _judged(case, seen, project)
    return {**seen, "seconds": round(time.monotonic() - began, 1)}


def as_it_should(case: Case, result: dict[str, Any]) -> bool:
    return result["outcome"] == REFUSED if case.refused else result["outcome"] in (PROVEN, SWAPPED)


def _judged(case: Case, seen: dict[str, Any], project: Path) -> str:
    """A refusal counts when it is the expected one, and when no script has been written."""
    right = seen["outcome"] == REFUSED and (case.refused is True or case.refused in seen["findings"])
    return REFUSED if right and not list(project.glob("*.py")) else "not refused"


def _try(case: Case, project: Path, base: Path, environment: Environment | None) -> dict[str, Any]:
    try:
        wanted = projects.write(project, base, case)
    except PeftsmithError as error:
        return {"outcome": REFUSED, "findings": ["plan"], "why": [_said(error)]}
    try:
        written = generate.generate(project)
    except PeftsmithError as error:
        return {"outcome": REFUSED, "findings": [], "why": [_said(error)]}
    errors = _errors(written.findings)
    if errors and not written.files:
        return {"outcome": REFUSED, "findings": [each.id for each in errors], "why": [each.message for each in errors]}
    if case.refused:
        return {"outcome": "not refused", "why": [each.id for each in written.findings]}
    if environment is None:
        raise PeftsmithError("There is no training environment", next_step="Run make train-env.")
    if requirements.library(wanted) == "adapters":
        environment = environments.require(REPOSITORY, library="adapters")
    errors = _errors(vet.vet(project, environment))
    if errors:
        return {"outcome": "failed", "why": [f"{each.id}: {each.message}" for each in errors]}
    stated = proof_facts.facts_of(wanted, str(case.config.get("model_type")))
    return _proven(wanted, stated, twin.run_twin(project, environment))


def _proven(wanted: plan.FineTunePlan, stated: dict[str, Any], verdict: twin.Twin) -> dict[str, Any]:
    errors = _errors(verdict.findings)
    if errors:
        return {"outcome": "failed", "why": [f"{each.id}: {each.message[:500]}{_figures(each)}" for each in errors]}
    unknown = [each.message for each in verdict.findings if each.severity == "unknown"]
    proven = {each["name"] for each in verdict.seen["proofs"] if each["ok"]}
    if not proven:
        return {"outcome": "unknown", "why": unknown}
    cannot = {
        "merge": not stated["merges"],
        "resume": not stated["resumes"],
        "evaluate": not any(one.data.test or one.data.eval for one in wanted.alone().values()),
    }
    needed = PROOFS + (OF_SEVERAL if wanted.adapters else ())
    lacks = [name for name in needed if not _has(proven, name, wanted)]
    unproven = [name for name in lacks if not cannot.get(name)]
    if unproven:
        return {"outcome": "failed", "why": [f"the twin has not proven {', '.join(unproven)}"]}
    swaps = list(verdict.seen["swapped"])
    return {"outcome": SWAPPED if swaps else PROVEN, "why": [], "swaps": swaps, "lacks": lacks}


def _has(proven: set[str], name: str, wanted: plan.FineTunePlan) -> bool:
    """Is it proven, or of several adapters for each?"""
    return name in proven or bool(wanted.adapters and all(f"{name}:{each}" in proven for each in wanted.adapters))


def _figures(found: Finding) -> str:
    shown = ("foreign", "frozen", "unmatched", "found")
    seen = {name: value for name, value in found.evidence.items() if isinstance(value, (int, float)) or name in shown}
    return f" {seen}" if seen else ""


def _said(error: PeftsmithError) -> str:
    return f"{error.cause} {error.value or ''}".strip()


def _errors(findings: list[Finding]) -> list[Finding]:
    return [each for each in findings if each.severity == "error"]
