"""The folder of a run: <project>/runs/<id>/.

Knows: run ids, run.json, what is copied into a run when it is made, which runs a project has.
Does not know: how a run is started (start.py), or how it goes (watch.py).
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peftsmith import files, lock, plan
from peftsmith.errors import PeftsmithError

RUNS = "runs"
RUN_FILE = "run.json"
KINDS = ("smoke", "train", "evaluate", "merge", "environment")
_ID = re.compile(r"\d{8}-\d{6}-[a-z]+-[0-9a-f]{4}")


@dataclass(frozen=True)
class Run:
    """One piece of long work. `made` is ISO 8601 in UTC; `argv` starts with the interpreter.

    `environment` holds the variables that launching adds; it lives in memory only, run.json keeps their names.
    """

    id: str
    kind: str
    project: Path
    folder: Path
    argv: tuple[str, ...]
    cwd: Path
    made: str
    digest: str | None = None
    adapter_run: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.kind,
            "project": str(self.project),
            "folder": str(self.folder),
            "argv": list(self.argv),
            "cwd": str(self.cwd),
            "made": self.made,
            "digest": self.digest,
            "adapter_run": self.adapter_run,
        }


def create(
    project: Path,
    kind: str,
    argv: Sequence[str] | Callable[[Path], Sequence[str]],
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    *,
    digest: str | None = None,
    adapter_run: str | None = None,
    scripts: Iterable[Path] = (),
) -> Run:
    """A new run's folder with run.json and copies of the project's plan, lock and `scripts`; nothing is started.

    `argv` may be a function of the run's folder, for commands that are told where to write. `environment` is what to
    add to the user's own when it is launched. The folder appears whole or not at all.
    """
    if kind not in KINDS:
        raise PeftsmithError("There is no such kind of run", value=kind, next_step=f"Use one of {', '.join(KINDS)}.")
    runs = project / RUNS
    try:
        runs.mkdir(parents=True, exist_ok=True)
        made = datetime.now(UTC)
        building = Path(tempfile.mkdtemp(dir=runs, prefix=".new-"))
    except OSError as error:
        raise PeftsmithError(
            f"The folder for runs cannot be written: {error.strerror}",
            value=str(runs),
            next_step="Check its permissions and the free space.",
        ) from error
    try:
        while True:
            id_ = f"{made:%Y%m%d-%H%M%S}-{kind}-{secrets.token_hex(2)}"
            folder = runs / id_
            if not folder.exists():
                break
        run = Run(
            id=id_,
            kind=kind,
            project=project,
            folder=folder,
            argv=tuple(argv(folder) if callable(argv) else argv),
            cwd=cwd,
            made=made.isoformat(),
            digest=digest,
            adapter_run=adapter_run,
            environment=dict(environment or {}),
        )
        _snapshot(project, building, scripts)
        files.write_json(building / RUN_FILE, {**run.to_json(), "environment_added": sorted(run.environment)})
        building.chmod(0o755)
        building.rename(folder)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise PeftsmithError(
            f"The run's folder cannot be made: {error.strerror}",
            value=str(runs),
            next_step="Check the permissions and the free space of the project.",
        ) from error
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return run


def open_run(project: Path, run_id: str) -> Run:
    """The run of this id; a PeftsmithError names the runs there are when there is none."""
    folder = project / RUNS / run_id
    if not _ID.fullmatch(run_id) or not (folder / RUN_FILE).is_file():
        known = [run.id for run in all_runs(project)[:5]]
        raise PeftsmithError(
            "This project has no such run",
            value=run_id,
            next_step=f"Its latest runs: {', '.join(known)}." if known else "It has no runs yet: use start_run.",
        )
    return _read(project, folder)


def all_runs(project: Path) -> list[Run]:
    """Every run of the project, newest first; folders without a readable run.json are left out."""
    try:
        names = [name for name in os.listdir(project / RUNS) if _ID.fullmatch(name)]
    except OSError:
        return []
    found = []
    for name in names:
        try:
            found.append(_read(project, project / RUNS / name))
        except PeftsmithError:
            continue
    return sorted(found, key=lambda run: (run.made, run.id), reverse=True)


def _read(project: Path, folder: Path) -> Run:
    try:
        document = files.read_json(folder / RUN_FILE, largest=1 << 20)
        datetime.fromisoformat(document["made"])
        return Run(
            id=folder.name,
            kind=str(document["kind"]),
            project=project,
            folder=folder,
            argv=tuple(str(part) for part in document["argv"]),
            cwd=Path(document["cwd"]),
            made=str(document["made"]),
            digest=document.get("digest"),
            adapter_run=document.get("adapter_run"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PeftsmithError(
            "The run's run.json is damaged",
            value=str(folder),
            next_step="Remove this run's folder, or restore the file.",
        ) from error


def _snapshot(project: Path, target: Path, scripts: Iterable[Path]) -> None:
    for name in (plan.PLAN_FILE, lock.LOCK_FILE):
        if (project / name).is_file():
            shutil.copyfile(project / name, target / name)
    for script in scripts:
        (target / "scripts").mkdir(exist_ok=True)
        shutil.copyfile(script, target / "scripts" / script.name)
