"""The twin as the control plane sees it: what goes in, what its proofs mean, and when an old verdict still holds.

Knows: which files and values a verdict depends on, how a failed proof becomes a finding, where verdicts are kept.
Does not know: how the scripts are run (worker/jobs/twin.py, in the training plane).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftsmith import __version__, files, lock, plan
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding
from peftsmith.model import source
from peftsmith.project import proof_facts, requirements, together
from peftsmith.worker import client, skeleton

if TYPE_CHECKING:
    from peftsmith.machine.environment import Environment

TIMEOUT_SECONDS = 900.0  # a minute on a quiet machine; the limit is for one that hangs
_SEED = 0
_VERDICT_VERSION = 1
_WORKER = Path(client.__file__).resolve().parent
# proof -> the finding that says it failed
FINDINGS = {
    "build": "twin.build.failed",
    "train": "twin.train.failed",
    "loss": "twin.loss.bad",
    "metrics": "twin.metrics.missing",
    "adapter": "twin.adapter.bad",
    "adapter_nonzero": "twin.adapter.zero",
    "checkpoint": "twin.checkpoint.bad",
    "trainable": "twin.trainable.differs",
    "reload": "twin.reload.differs",
    "frozen": "twin.base.changed",
    "switch": "twin.switch.differs",
    "resume": "twin.resume.failed",
    "evaluate": "twin.evaluate.failed",
    "merge": "twin.merge.differs",
    "combine": "twin.combine.differs",
    "generate": "twin.infer.failed",
    "untouched": "twin.project.touched",
}


@dataclass(frozen=True)
class Twin:
    """`seen` holds the proofs ({name, ok, evidence}; ok None: not run), the seconds per phase and what the twin is.

    `seconds` is this call's wall-clock time; `cached` says that the verdict is of an earlier, identical check.
    """

    findings: list[Finding]
    seen: dict[str, Any]
    seconds: float
    cached: bool

    @property
    def proven(self) -> bool:
        return not any(each.severity == "error" for each in self.findings)


def run_twin(project: Path, environment: Environment) -> Twin:
    """Prove the project's scripts on a cut-down model, or return the verdict of an identical earlier proof.

    Raises PeftsmithError when the base's config or tokenizer cannot be read or no worker can be started; everything
    that the scripts themselves do wrong is a finding.
    """
    began = time.monotonic()
    wanted, locked = plan.load(project), lock.load(project)
    if wanted.base.trust_remote_code:
        return Twin([finding("twin.remote_code.unproven", model=wanted.base.model)], {"proofs": []}, 0.0, False)
    opened = source.open_model(wanted.base.model, wanted.base.revision)
    tokenizer = source.tokenizer_folder(opened)
    place = files.cache_folder("twins") / f"{_key(project, wanted, locked, opened, tokenizer, environment)}.json"
    cached = _cached(place)
    if cached is not None:
        return Twin(_findings(cached), cached, round(time.monotonic() - began, 2), True)
    work, model_type = Path(tempfile.mkdtemp(prefix="peftsmith-twin-")).resolve(), str(opened.config.get("model_type"))
    try:
        answer = client.call(
            environment,
            _job(wanted),
            {
                "project": str(project.resolve()),
                "work": str(work),
                "config": opened.config,
                "tokenizer": str(tokenizer),
                "plan": wanted.model_dump(mode="json"),
                "scripts": proof_facts.facts_of(wanted, model_type),
                "adapters": {
                    name: {"plan": one.model_dump(mode="json"), "scripts": proof_facts.facts_of(one, model_type)}
                    for name, one in (wanted.alone().items() if wanted.adapters else ())
                },
                "combines": together.combines(wanted),
                "seed": _SEED,
            },
            timeout=TIMEOUT_SECONDS,
            quantise=requirements.quantises(wanted),
        )
    except client.JobFailed as error:
        failed = finding("twin.job.failed", error.cause, traceback=error.traceback, log=error.log)
        return Twin([failed], {"proofs": []}, round(time.monotonic() - began, 2), False)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    seen = {
        "proofs": [_cleaned(check) for check in answer["checks"]],
        "phases": answer["phases"],
        "model": answer["model"],
        "swapped": [files.clean(str(each), 200) for each in answer["swapped"]],
    }
    verdict = Twin(_findings(seen), seen, round(time.monotonic() - began, 2), False)
    if verdict.proven:
        files.write_json(place, {"version": _VERDICT_VERSION, "seen": seen})
    return verdict


def _job(wanted: plan.FineTunePlan) -> str:
    if wanted.adapters:
        return "twin_adapters"
    return "twin_bottleneck" if requirements.library(wanted) == "adapters" else "twin"


def _key(
    project: Path,
    wanted: plan.FineTunePlan,
    locked: lock.Lock,
    opened: source.ModelFiles,
    tokenizer: Path,
    environment: Environment,
) -> str:
    """Everything a verdict depends on: values, scripts, rows, model files, libraries and this checker's own code."""
    names = {name for name in locked.files if name.endswith(".py")} | {path.name for path in project.glob("*.py")}
    return files.sha256_json(
        {
            "plan": wanted.model_dump(mode="json"),
            "scripts": {name: _hash(project / name) for name in sorted(names)},
            "data": {name: _hash(project / name) for name in wanted.splits().values()},
            "config": opened.config,
            "tokenizer": {name: _hash(tokenizer / name) for name in skeleton.TOKENIZER_FILES},
            "environment": environment.key,
            "peftsmith": __version__,
            "checker": {str(path.relative_to(_WORKER)): _hash(path) for path in sorted(_WORKER.rglob("*.py"))},
        }
    )[:40]


def _hash(path: Path) -> str | None:
    return files.sha256_file(path) if path.is_file() else None


def _cached(place: Path) -> dict[str, Any] | None:
    """A kept verdict; a damaged or older one counts as none."""
    if not place.exists():
        return None
    try:
        kept = files.read_json(place)
    except PeftsmithError:
        return None
    if not isinstance(kept, dict) or kept.get("version") != _VERDICT_VERSION or not isinstance(kept.get("seen"), dict):
        return None
    seen: dict[str, Any] = kept["seen"]
    return seen


def _findings(seen: Mapping[str, Any]) -> list[Finding]:
    found = []
    for check in seen["proofs"]:
        if check["ok"] is not False:
            continue
        evidence = check["evidence"]
        where = f" ({evidence['where']})" if evidence.get("where") else ""
        message = f"{check['name']}{where}: {evidence.get('error', 'failed')}"
        name, _, adapter = check["name"].partition(":")
        whose = {"adapter": adapter} if adapter else {}
        found.append(finding(FINDINGS[name], message, **evidence, **whose))
    if seen["swapped"]:
        swapped = list(seen["swapped"])
        found.append(finding("twin.cpu.swapped", f"Not proven without a GPU: {'; '.join(swapped)}", swapped=swapped))
    return found


def _cleaned(check: dict[str, Any]) -> dict[str, Any]:
    """A proof as it may be shown: every text out of the scripts' world without control characters and secrets."""

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return client.shown(value)
        if isinstance(value, dict):
            return {files.clean(str(key), 200): walk(item) for key, item in value.items()}
        return [walk(item) for item in value] if isinstance(value, list) else value

    return {"name": check["name"], "ok": check["ok"], "evidence": walk(check["evidence"])}
