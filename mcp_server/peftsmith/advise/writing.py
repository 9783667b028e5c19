"""How a new project folder comes to be without half-written files.

Knows: which folders are free, in which order plan, lock and data are written, how a failure is taken back.
Does not know: what is in the plan (planner.py), or scripts (project/).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from peftsmith import files, lock, plan
from peftsmith.errors import PeftsmithError


def refuse_used(project: Path) -> None:
    """Raises PeftsmithError for a file, and for a folder with a plan that was edited or generated from."""
    if project.exists() and not project.is_dir():
        raise PeftsmithError("The project must be a folder", value=str(project), next_step="Take another name.")
    if (project / plan.PLAN_FILE).exists() and _fresh(project) is None:
        raise PeftsmithError(
            "This folder already holds a plan that was edited or generated from",
            value=str(project),
            next_step="Edit its plan.yaml and generate again, or take a new folder.",
        )


def _fresh(project: Path) -> lock.Lock | None:
    """The lock of a plan that lies there as it was planned, so that planning again takes nothing from anybody."""
    try:
        locked = lock.load(project)
    except PeftsmithError:
        return None
    planned = files.sha256_file(project / plan.PLAN_FILE) == locked.plan_sha256
    return locked if planned and not locked.files else None


def write(project: Path, text: str, locked: lock.Lock, sources: dict[str, Path]) -> None:
    """Data first, plan.yaml last: a folder without plan.yaml is no project, and a failure leaves nothing of ours."""
    copies = _copies(project, sources)
    folders = {(project / name).parent for name in sources}
    new_folders = [each for each in (*sorted(folders), project / "data", project) if not each.exists()]
    written: list[Path] = []
    try:
        for target, source in copies.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            written.append(target)
            files.copy(source, target)
        written.append(project / lock.LOCK_FILE)
        lock.save(project, locked)
        written.append(project / plan.PLAN_FILE)
        files.write_text(project / plan.PLAN_FILE, text)
    except BaseException:
        for each in written:
            each.unlink(missing_ok=True)
        for folder in new_folders:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _copies(project: Path, sources: dict[str, Path]) -> dict[Path, Path]:
    """What has to be copied where. Raises PeftsmithError for a file in the way that is not an earlier plan's copy."""
    before = _fresh(project) if (project / plan.PLAN_FILE).exists() else None
    ours = {each.path: each.sha256 for each in before.data.values()} if before else {}
    copies = {}
    for name, source in sources.items():
        target = project / name
        there = files.sha256_file(target) if target.exists() else None
        if there == files.sha256_file(source):
            continue
        if there not in (None, ours.get(name)):
            raise PeftsmithError(
                "A data file is in the way", value=str(target), next_step="Move it or take a new folder."
            )
        copies[target] = source
    return copies


def data_files(made: plan.FineTunePlan, sources: dict[str, Path]) -> dict[str, lock.DataFile]:
    """Hash and number of rows of every split, for the lock."""
    from peftsmith.data import formats

    return {
        split: lock.DataFile(
            path=path,
            sha256=files.sha256_file(sources[path]),
            rows=sum(1 for _ in formats.read_rows(sources[path])),
        )
        for split, path in made.splits().items()
    }


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that there is."""
    while not folder.exists():
        folder = folder.parent
    return folder
