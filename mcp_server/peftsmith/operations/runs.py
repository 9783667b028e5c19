"""Operations on long work.

Knows: parameters and descriptions of starting, following, stopping and diagnosing runs.
Does not know: how it is done: every body resolves its paths, imports its stage and calls one function.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from peftsmith import files
from peftsmith.operations.parameters import Project, Result, result_of


def start_run(
    project: Project,
    kind: Annotated[Literal["smoke", "train", "evaluate", "merge"], Field(description="smoke: a few real steps.")],
    digest: Annotated[str, Field(description="From check_project; refused when files have changed since.")],
    adapter_run: Annotated[
        str | None, Field(description="For evaluate and merge: the run whose adapter to use.")
    ] = None,
    max_steps: Annotated[int | None, Field(ge=1, description="Stop after this many optimiser steps.")] = None,
    adapter: Annotated[str | None, Field(description="Which one, where the plan has several adapters.")] = None,
) -> Result:
    """Start long work in the background and return its run id at once; it outlives this server. Follow it with
    get_run."""
    from peftsmith.run import start

    run = start.start(
        files.resolve(project),
        kind=kind,
        digest=digest,
        adapter_run=adapter_run,
        max_steps=max_steps,
        adapter=adapter,
    )
    return result_of([], run=run.to_json())


def get_run(
    project: Project,
    run_id: str,
    wait_seconds: Annotated[float, Field(ge=0, le=50, description="Wait up to this long for the run to end.")] = 0,
) -> Result:
    """Where a run stands: state, progress, latest metrics, artefacts, the end of its log."""
    from peftsmith.run import watch

    seen = watch.follow(files.resolve(project), run_id, wait_seconds=wait_seconds)
    return result_of(seen.findings, run=seen.to_json())


def list_runs(project: Project = ".") -> Result:
    """All runs of a project, newest first, with state and last metrics."""
    from peftsmith.run import watch

    return result_of([], runs=[seen.summary() for seen in watch.all_runs(files.resolve(project))])


def stop_run(
    project: Project,
    run_id: str,
    confirm: Annotated[bool, Field(description="Set to true to stop it; what it has saved is kept.")] = False,
) -> Result:
    """Stop a run that is under way. What it has saved so far stays."""
    from peftsmith.run import watch

    seen = watch.stop(files.resolve(project), run_id, confirm=confirm)
    return result_of([], run=seen.to_json())


def diagnose_failure(
    project: Project = ".",
    run_id: Annotated[str | None, Field(description="The run to look at.")] = None,
    log: Annotated[str | None, Field(description="Or: a log file of any training script.")] = None,
) -> Result:
    """From a log to the likely cause, the fix and, where one exists, the change to plan.yaml that makes it."""
    from peftsmith.diagnose import causes

    root = files.resolve(project)
    report = causes.diagnose(root, run_id=run_id, log=files.resolve(log) if log else None)
    return result_of(report.findings, patch=report.patch)
