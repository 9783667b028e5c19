"""From a log to the likely cause, its fix and, where that is certain, the change to plan.yaml.

Knows: the table knowledge/causes.toml, the ends of a long log, how to halve a plan's memory without changing its batch.
Does not know: what made the log; its text is untrusted, and is only ever shown cleaned and without secrets.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from peftsmith import plan
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding
from peftsmith.run import host as hosts
from peftsmith.run import logs, store, supervise, watch

_HEAD_BYTES, _TAIL_BYTES = 64 << 10, 512 << 10
_ERROR_LINE = re.compile(
    r"(?:[A-Za-z_][A-Za-z0-9_.]{0,100})?(?:Error|Exception|Interrupt|Exit)\b(?::|$)|error:|fatal:", re.I
)

Flat = Mapping[str, Any]


@dataclass(frozen=True)
class Cause:
    """One row of the table: known by `pattern` in the log or by the exit code."""

    finding: str
    pattern: re.Pattern[str]
    exit_codes: tuple[int, ...] = ()
    when: Mapping[str, Any] = field(default_factory=dict)
    patch: Mapping[str, Any] = field(default_factory=dict)
    computed: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Findings, and the dotted plan fields to change to the values that mend it (empty when that is not certain)."""

    findings: list[Finding]
    patch: dict[str, Any]


@cache
def causes() -> tuple[Cause, ...]:
    """The table, in the order in which causes are looked for."""
    text = resources.files("peftsmith").joinpath("knowledge", "causes.toml").read_text(encoding="utf-8")
    return tuple(
        Cause(**{**row, "pattern": re.compile(row["pattern"]), "exit_codes": tuple(row.get("exit_codes", ()))})
        for row in tomllib.loads(text)["cause"]
    )


def diagnose(root: Path, *, run_id: str | None, log: Path | None) -> Diagnosis:
    """Why a run of the project `root`, or the training script that wrote `log`, failed.

    With neither, the project's newest run is looked at. Raises PeftsmithError when there is nothing to look at.
    """
    if run_id is not None and log is not None:
        raise PeftsmithError("Give a run or a log, not both", value=run_id, next_step="Leave one of them out.")
    if log is not None:
        if log.is_dir():
            raise PeftsmithError("This is a folder, not a log", value=str(log), next_step="Give the log file itself.")
        return diagnose_text(_read(log), exit_code=None, flat=_flat(root))
    if run_id is None:
        known = store.all_runs(root)
        if not known:
            raise PeftsmithError(
                "There is no run to diagnose in this project",
                value=str(root),
                next_step="Pass the log of a training script.",
            )
        run_id = known[0].id
    run = store.open_run(root, run_id)
    failed = watch.state_of(run) in ("failed", "lost")
    status = hosts.get(hosts.probe(), run.folder / supervise.STATUS) or {}
    text = _read(run.folder / supervise.LOG) + f"\n{status.get('error') or ''}"
    code = status.get("exit_code") if failed else None
    return diagnose_text(text, exit_code=code, flat=_flat(run.folder), failed=failed)


def diagnose_text(text: str, *, exit_code: int | None, flat: Flat | None, failed: bool = True) -> Diagnosis:
    """The causes that a log's text and exit code name. `flat` is the plan as dotted fields, None when there is none;
    `failed` False leaves out that nothing is known."""
    lines = logs.readable(text)
    joined = "\n".join(lines)
    found: dict[str, Finding] = {}
    patch: dict[str, Any] = {}
    for cause in causes():
        match = cause.pattern.search(joined)
        killed = exit_code in cause.exit_codes and not found
        if cause.finding in found or not (match or killed):
            continue
        change = _patch(cause, flat) if flat else {}
        evidence: dict[str, Any] = {"line": _line_of(joined, match)} if match else {"exit_code": exit_code}
        if change:
            evidence["patch"] = change
            patch = {**change, **patch}
        found[cause.finding] = finding(cause.finding, **evidence)
    if not found and failed:
        found["unknown"] = finding("diagnose.cause.unknown", exit_code=exit_code, lines=last_errors(lines))
    return Diagnosis(list(found.values()), patch)


def last_errors(lines: list[str]) -> list[str]:
    """The last lines that look like errors, else the very last lines: at most five, cleaned."""
    errors = [line for line in lines if _ERROR_LINE.search(line[:300])]
    return [logs.show(line, 300) for line in (errors or lines)[-5:]]


def less_memory(flat: Flat) -> dict[str, Any]:
    """Less memory with the same effective batch: gradient checkpointing first, then smaller batches, more often."""
    if not flat["training.gradient_checkpointing"]:
        return {"training.gradient_checkpointing": True}
    batch = flat["training.batch_size"]
    if batch == 1:
        return {}
    factor = next(each for each in range(2, batch + 1) if batch % each == 0)
    return {
        "training.batch_size": batch // factor,
        "training.gradient_accumulation": flat["training.gradient_accumulation"] * factor,
    }


_COMPUTED: dict[str, Callable[[Flat], dict[str, Any]]] = {"less_memory": less_memory}


def _patch(cause: Cause, flat: Flat) -> dict[str, Any]:
    if any(flat.get(name) != value for name, value in cause.when.items()):
        return {}
    change = _COMPUTED[cause.computed](flat) if cause.computed else dict(cause.patch)
    return {name: value for name, value in change.items() if flat.get(name) != value}


def _line_of(text: str, match: re.Match[str]) -> str:
    begin = max(text.rfind("\n", 0, match.start()) + 1, match.start() - 100)
    end = text.find("\n", match.end())
    return logs.show(text[begin : end if end >= 0 else None], 300)


def _read(path: Path) -> str:
    """The log's text, of a long one only its two ends."""
    here = hosts.probe()
    if path.is_file() and path.stat().st_size > _HEAD_BYTES + _TAIL_BYTES:
        return hosts.head(here, path, _HEAD_BYTES) + "\n" + hosts.tail(here, path, _TAIL_BYTES)
    return hosts.tail(here, path, _HEAD_BYTES + _TAIL_BYTES)


def _flat(folder: Path) -> Flat | None:
    if not (folder / plan.PLAN_FILE).is_file():
        return None
    try:
        return plan.flatten(plan.load(folder))
    except PeftsmithError:
        return None
