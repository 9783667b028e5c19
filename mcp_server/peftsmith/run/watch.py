"""Following runs: state, progress, metrics, the end of the log, and what is wrong with how it goes.

Knows: how to tell a run's state from its files and processes, what it shows of a run, how to stop one.
Does not know: what metrics and artefacts say about it (judge.py), or why a run failed (diagnose/).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding
from peftsmith.run import host as hosts
from peftsmith.run import judge, logs, store, supervise

ENDED = (*supervise.FINAL, "lost")
_TAIL_BYTES = 64 << 10
_TAIL_LINES = 40
_TAIL_CHARACTERS = 6000
_POLL_SECONDS = 0.5
_PEAKS = ("peak_rss_bytes", "peak_gpu_bytes")
_ARTEFACTS = (
    "adapter", "adapters", "combined", "checkpoints", "merged", "evaluation.json", "predictions.jsonl", "metrics.jsonl",
    "log.txt",
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """A run as it stood at one moment. `metrics` is the last row that the script wrote, or done.json's at its end.

    `memory` is the script's own peak in bytes (resident set, GPU reserved), known when it is done.
    """

    run: store.Run
    state: str
    progress: dict[str, Any]
    metrics: dict[str, Any]
    memory: dict[str, int]
    artefacts: dict[str, str]
    exit_code: int | None
    seconds: float | None
    log_tail: str
    findings: list[Finding]

    def to_json(self) -> dict[str, Any]:
        more = {"digest": self.run.digest, "exit_code": self.exit_code, "artefacts": self.artefacts}
        return {**self.summary(), **more, "log_tail": self.log_tail}

    def summary(self) -> dict[str, Any]:
        return {
            "id": self.run.id,
            "kind": self.run.kind,
            "state": self.state,
            "made": self.run.made,
            "folder": str(self.run.folder),
            "seconds": self.seconds,
            "progress": self.progress,
            "metrics": self.metrics,
            "memory": self.memory,
        }


def follow(project: Path, run_id: str, wait_seconds: float) -> Seen:
    """The run as it stands, or as it stands when it ends within `wait_seconds`."""
    run = store.open_run(project, run_id)
    deadline = time.monotonic() + wait_seconds
    while (left := deadline - time.monotonic()) > 0 and state_of(run) not in ENDED:
        time.sleep(min(_POLL_SECONDS, left))
    return look(run)


def all_runs(project: Path) -> list[Seen]:
    """Every run of the project as it stands, newest first, without logs and findings."""
    return [look(run, closely=False) for run in store.all_runs(project)]


def state_of(run: store.Run) -> str:
    """The run's state: starting, running, done, failed, stopped or lost."""
    return _judge(run)[0]


def look(run: store.Run, *, closely: bool = True) -> Seen:
    """The run as it stands now; `closely` also reads the log and makes the findings."""
    here = hosts.probe()
    state, status = _judge(run)
    done = hosts.get(here, run.folder / supervise.DONE) or {}
    rows = judge.read_metrics(here, run.folder / "metrics.jsonl")
    found: list[Finding] = []
    log_tail = ""
    if closely:
        lines = logs.readable(hosts.tail(here, run.folder / supervise.LOG, _TAIL_BYTES))
        log_tail = logs.ending(lines, count=_TAIL_LINES, characters=_TAIL_CHARACTERS)
        found += judge.process(run, state, status, done)
        found += judge.metrics(rows, kind=run.kind, state=state)
        if state == "done" and run.kind in ("smoke", "train"):
            found += judge.artefacts(run.folder)
    return Seen(
        run=run,
        state=state,
        progress=judge.progress(rows, ended=state in ENDED),
        metrics=judge.plain(done["metrics"]) if state == "done" and done.get("metrics") else judge.latest(rows),
        memory={name: done[name] for name in _PEAKS if isinstance(done.get(name), int)},
        artefacts=_artefacts(run, done),
        exit_code=status.get("exit_code"),
        seconds=_seconds(status, state),
        log_tail=log_tail,
        findings=found,
    )


def stop(project: Path, run_id: str, confirm: bool) -> Seen:
    """End a run that is under way; raises PeftsmithError for one that has ended, and without `confirm`."""
    run = store.open_run(project, run_id)
    state, status = _judge(run)
    if state in ENDED:
        raise PeftsmithError(
            f"Run {run.id} cannot be stopped: it is already {state}",
            value=run.id,
            next_step="get_run shows how it ended.",
        )
    if not confirm:
        at = look(run, closely=False).progress
        step = f" at step {at['step']} of {at['total']}" if at["total"] else ""
        raise PeftsmithError(
            f"This would end run {run.id} ({run.kind}, {state}{step}): its processes get SIGTERM, and SIGKILL after "
            f"{supervise.STOP_SECONDS:g} s; checkpoints that it has saved stay in {run.folder}",
            value=run.id,
            next_step="Call stop_run with confirm=true to do so.",
        )
    here = hosts.probe()
    try:
        hosts.put(here, run.folder / supervise.STOP, "")  # a supervisor on another host looks for this file
    except PeftsmithError:
        if not hosts.alive(here, status).here:  # here the signal alone will do, for example on a full disk
            raise
    began = time.monotonic()
    told: str | None = None
    while state_of(run) not in ENDED:
        status = _status(run)
        alive = hosts.alive(here, status)
        target = "supervisor" if alive.supervisor else "script" if alive.script else None
        waited = time.monotonic() - began
        late = waited > supervise.STOP_SECONDS + 3
        if late or target != told:
            hosts.stop(here, status, kill=late)
            told = target
        if waited > supervise.STOP_SECONDS + supervise.LEASE_SECONDS + 5:
            raise PeftsmithError(
                f"Run {run.id} was told to stop and has not ended after {waited:.0f} s",
                value=run.id,
                next_step=f"It runs on {files.clean(str(status.get('host')), 100)}; look at its processes there.",
            )
        time.sleep(0.1)
    return look(run)


def _status(run: store.Run) -> dict[str, Any]:
    return hosts.get(hosts.probe(), run.folder / supervise.STATUS) or {}


def _judge(run: store.Run) -> tuple[str, dict[str, Any]]:
    """State and status. The processes decide here, the lease elsewhere; what is dead is judged by what it left."""
    here = hosts.probe()
    status = _status(run)
    if status.get("state") in supervise.FINAL:
        return str(status["state"]), status
    if not status:
        age = time.time() - datetime.fromisoformat(run.made).timestamp()
        return ("starting" if age < supervise.LEASE_SECONDS else "lost"), status
    alive = hosts.alive(here, status)
    leased = (judge.number(status.get("lease_until")) or 0.0) > time.time()
    if alive.script or (leased and (alive.supervisor or not alive.here)):
        return ("running" if status.get("pid") else "starting"), status
    # A supervisor writes how it ended before it goes: what is read after its death is the last word.
    status = _status(run) or status
    if status.get("state") in supervise.FINAL:
        return str(status["state"]), status
    done = hosts.get(here, run.folder / supervise.DONE)
    if done is not None:
        return ("done" if done.get("ok") is True else "failed"), status
    return ("stopped" if (run.folder / supervise.STOP).exists() else "lost"), status


def _seconds(status: Mapping[str, Any], state: str) -> float | None:
    """How long the run took, or has taken so far; after a lost supervisor up to its last sign of life."""
    started = judge.number(status.get("started"))
    last = judge.number(status.get("ended"))
    if last is None:
        lease = judge.number(status.get("lease_until")) or 0.0
        last = lease - supervise.LEASE_SECONDS if state in ENDED else time.time()
    return None if started is None else round(max(0.0, last - started), 1)


def _artefacts(run: store.Run, done: Mapping[str, Any]) -> dict[str, str]:
    """What the run has left so far, as paths inside its folder; what done.json names outside of it is not passed on."""
    found = {Path(name).stem: str(run.folder / name) for name in _ARTEFACTS if (run.folder / name).exists()}
    named = done.get("artefacts")
    for name, path in (named if isinstance(named, dict) else {}).items():
        target = run.folder / str(path)
        if target.resolve().is_relative_to(run.folder.resolve()) and target.exists():
            found[files.clean(str(name), 100)] = str(target)
    return found
