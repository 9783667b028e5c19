"""From a written project to the digest that start_run demands: is it what it was planned from, vetted, and proven?
A script or notebook of one's own is looked at as well, and gets no digest.

Knows: the order of the checks, which of them close the way to a digest, and what the lock remembers of them.
Does not know: how scripts are vetted (vet.py) or run (twin.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftsmith import __version__, files, lock, plan
from peftsmith.data import formats
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding
from peftsmith.machine import environment as environments
from peftsmith.model import source
from peftsmith.project import mask, plan_check, requirements, vet
from peftsmith.project import twin as twins
from peftsmith.project.foreign import check as foreign

if TYPE_CHECKING:
    from peftsmith.machine.environment import Environment


@dataclass(frozen=True)
class Checked:
    """`digest` is None when any finding is an error; `proofs` says what was looked at and what was seen."""

    findings: list[Finding]
    digest: str | None
    proofs: dict[str, Any]


def check(project: Path, *, twin: bool = True) -> Checked:
    """Check everything that can be known before spending (vetting, loss mask, twin), and keep it in plan.lock.json.

    `project` may also be a training script or notebook that peftsmith did not write: it is read, not run, nothing is
    kept, and `proofs["script"]` says what was seen (project/foreign/check.py).

    The lock's data hashes, versions and interpreter become those that were checked; a changed data file is named. With
    an error the lock's digest is None. Raises PeftsmithError for a folder without plan, lock or scripts, without a
    training environment, and when files change while they are being checked.
    """
    if project.is_file():
        usable = [each for each in environments.find(project.parent) if each.usable]
        looked = foreign.look(project, environments.best(usable) if usable else None)
        return Checked(looked.findings, None, {"script": looked.seen})
    wanted, locked = plan.load(project), lock.load(project)
    if not locked.files:
        raise PeftsmithError(
            "The project has a plan but no scripts", value=str(project), next_step="Run generate_project first."
        )
    environment = environments.require(project, library=requirements.library(wanted))
    before = _state(project, locked, wanted)
    data, findings = _data(project, wanted, locked)
    findings += _base(wanted, locked)
    vetted = vet.vet(project, environment)
    findings += vetted
    proofs: dict[str, Any] = {"vet": {"ok": not _errors(vetted), "findings": sorted({each.id for each in vetted})}}
    timing: dict[str, Any] = {}
    sound = not _errors(findings)
    seen_masks, found = mask.prove_all(project, wanted, environment)
    proofs |= seen_masks
    findings += [*found, *mask.updates(wanted, seen_masks)]
    if not twin:
        findings.append(finding("project.twin.skipped"))
    elif sound:
        seen = twins.run_twin(project, environment)
        findings += seen.findings
        proofs["twin"] = {"ok": seen.proven, **{name: value for name, value in seen.seen.items() if name != "phases"}}
        timing = {"cached": seen.cached, "seconds": seen.seconds, "phases": seen.seen.get("phases", {})}
    if _state(project, locked, wanted) != before:
        raise PeftsmithError(
            "Files of the project changed while they were being checked", value=str(project), next_step="Check again."
        )
    digest = _keep(project, locked, environment, data, before, proofs, passed=not _errors(findings))
    if "twin" in proofs:
        proofs = {**proofs, "twin": {**proofs["twin"], **timing}}
    return Checked(findings, digest, proofs)


def _keep(
    project: Path,
    locked: lock.Lock,
    environment: Environment,
    data: dict[str, lock.DataFile],
    state: dict[str, str | None],
    proofs: dict[str, Any],
    *,
    passed: bool,
) -> str | None:
    """Write what was checked into the lock; the digest comes last, over everything else. No times: the same state
    checked again gives the same digest."""
    kept = locked.model_copy(
        update={
            "peftsmith": __version__,
            "plan_sha256": state[plan.PLAN_FILE],
            "data": data,
            "versions": {name: version for name, version in environment.versions.items() if version},
            "interpreter": environment.interpreter,
            "checked": {name: state[name] or "missing" for name in locked.files} if passed else {},
            "proofs": proofs,
            "digest": None,
        }
    )
    digest = lock.compute_digest(project, kept) if passed else None
    lock.save(project, kept.model_copy(update={"digest": digest}))
    return digest


def _state(project: Path, locked: lock.Lock, wanted: plan.FineTunePlan) -> dict[str, str | None]:
    """Hashes of everything that a check depends on inside the project, None for what is missing."""
    names = {plan.PLAN_FILE, *locked.files, *wanted.splits().values()}
    return {name: files.sha256_file(project / name) if (project / name).is_file() else None for name in sorted(names)}


def _data(
    project: Path, wanted: plan.FineTunePlan, locked: lock.Lock
) -> tuple[dict[str, lock.DataFile], list[Finding]]:
    """The data files as they are now, and what is different from the lock."""
    found: dict[str, lock.DataFile] = {}
    findings = []
    for split, name in wanted.splits().items():
        path = project / name
        if not path.is_file():
            findings.append(finding("project.data.missing", split=split, path=files.clean(name, 200)))
            continue
        digest, old = files.sha256_file(path), locked.data.get(split)
        if old is not None and (old.path, old.sha256) == (name, digest):
            found[split] = old
            continue
        rows = sum(1 for row in formats.read_rows(path) if row.value is not None)
        found[split] = lock.DataFile(path=name, sha256=digest, rows=rows)
        findings.append(finding("project.data.changed", split=split, path=files.clean(name, 200), rows=rows))
    return found, findings


def _base(wanted: plan.FineTunePlan, locked: lock.Lock) -> list[Finding]:
    """Is the base that plan.yaml names the one that the estimates and targets were worked out for, and does the plan's
    method fit it?"""
    opened = source.open_model(wanted.base.model, wanted.base.revision)
    changed: dict[str, Any] = {}
    if opened.id != locked.base.get("model"):
        changed["model"] = [locked.base.get("model"), opened.id]
    if opened.commit != locked.base.get("commit"):
        changed["commit"] = [locked.base.get("commit"), opened.commit]
    was = locked.base.get("config_sha256")
    now = files.sha256_file(opened.small / "config.json") if (opened.small / "config.json").is_file() else None
    if was is not None and was != now:
        changed["config.json"] = [was, now]
    found = plan_check.judge_on(wanted, locked, opened)
    if changed:
        message = f"The base has changed since planning: {', '.join(changed)}"
        found.append(finding("project.base.changed", message, **changed))
    return found


def _errors(findings: Iterable[Finding]) -> bool:
    return any(each.severity == "error" for each in findings)
