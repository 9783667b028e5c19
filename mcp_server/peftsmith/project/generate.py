"""Writing the project's files: all of them or none, and never over what a person has edited.

Knows: which files are as they were generated, how to put a set of files in place in one go, the lock's part of it.
Does not know: what is in the files (render.py), or whether they work (vet.py, twin.py).
"""

from __future__ import annotations

import contextlib
import difflib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peftsmith import files, lock, plan
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding
from peftsmith.project import fitness, render
from peftsmith.secrets import redact

Action = Literal["written", "unchanged", "kept"]
_LONGEST_DIFF = 6000


@dataclass(frozen=True)
class Written:
    """What became of each file, in the order of their names: {"path", "action"}."""

    files: list[dict[str, str]]
    findings: list[Finding]


def generate(project: Path) -> Written:
    """Write the files that plan.yaml and plan.lock.json describe and note their hashes in the lock.

    A file that differs from what was generated last is kept, and the finding `project.file.edited` shows how it
    differs from what it would be now. A method, task, base and quantisation that do not go together are refused: then
    no file is written, and findings say why. If anything changes, the last check's digest is void. Raises
    PeftsmithError for a plan that cannot be rendered, a full disk, or a folder in a file's place; then every file is
    as before.
    """
    plan_text = files.read_text(project / plan.PLAN_FILE)
    wanted_plan = plan.parse(plan_text)
    before = lock.load(project)
    refused = fitness.judge(wanted_plan, fitness.base_config(before))
    if any(each.severity == "error" for each in refused):
        return Written([], refused)
    rendered = render.render(wanted_plan, before)
    actions = {name: _action(project / name, text, before.files.get(name)) for name, text in rendered.items()}
    after = before.model_copy(
        update={
            "plan_sha256": files.sha256_text(plan_text),
            "files": {name: files.sha256_text(text) for name, text in rendered.items()},
        }
    )
    new = {name: rendered[name] for name, action in actions.items() if action == "written"}
    if new or after != before:
        after = after.model_copy(update={"checked": {}, "digest": None})
        _replace_all(project, new, after)
    findings = [_edited(project / name, name, rendered[name]) for name, action in actions.items() if action == "kept"]
    findings += [
        finding("project.file.stale", f"{name} belongs to an earlier plan and was left where it is", file=name)
        for name in sorted(before.files.keys() - rendered.keys())
        if (project / name).exists()
    ]
    if "evaluate.py" not in rendered:
        findings.append(finding("project.evaluate.no_rows"))
    findings += [*refused, *_stale(wanted_plan, before)]
    listed = [{"path": name, "action": str(action)} for name, action in sorted(actions.items())]
    return Written(listed, findings)


def _action(path: Path, text: str, generated: str | None) -> Action:
    if path.is_dir():
        raise PeftsmithError("A folder is in the place of a file", value=str(path), next_step="Move it elsewhere.")
    if not path.exists():
        return "written"
    present = files.sha256_file(path)
    if present == files.sha256_text(text):
        return "unchanged"
    return "written" if present == generated else "kept"


def _replace_all(project: Path, texts: Mapping[str, str], after: lock.Lock) -> None:
    """Put all texts and the lock in place. What needs space on the disk comes first, beside the old files; if
    anything fails after that, the old files are put back."""
    stage = Path(tempfile.mkdtemp(prefix=".peftsmith-", dir=project))
    moved: list[str] = []
    try:
        for name, text in texts.items():
            files.write_text(stage / "new" / name, text)
            if (project / name).exists():
                (stage / "old" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(project / name, stage / "old" / name)
        for name in texts:
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            moved.append(name)
            (stage / "new" / name).replace(project / name)
        lock.save(project, after)
    except BaseException:
        for name in moved:
            if (stage / "old" / name).exists():
                (stage / "old" / name).replace(project / name)
            else:
                (project / name).unlink(missing_ok=True)
        raise
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(stage)


def _edited(path: Path, name: str, text: str) -> Finding:
    try:
        present = files.read_text(path)
    except PeftsmithError as error:
        return finding("project.file.edited", f"{name} was changed by hand and is kept: {error.cause}", file=name)
    difference = "".join(
        difflib.unified_diff(
            text.splitlines(keepends=True), present.splitlines(keepends=True), f"{name} (generated)", f"{name} (kept)"
        )
    )
    return finding(
        "project.file.edited",
        f"{name} was changed by hand and is kept",
        file=name,
        diff=files.clean(redact(difference), _LONGEST_DIFF),
    )


def _stale(wanted: plan.FineTunePlan, locked: lock.Lock) -> list[Finding]:
    """Where plan.yaml was edited so far that what was resolved for it no longer belongs to it."""
    stale = []
    known = {split: each.path for split, each in locked.data.items()}
    for split, path in (("train", wanted.data.train), ("eval", wanted.data.eval), ("test", wanted.data.test)):
        if path is not None and known and known.get(split) != path:
            stale.append(f"data.{split}")
    if locked.base.get("model") not in (None, wanted.base.model, locked.base.get("folder")):
        stale.append("base.model")
    if wanted.base.revision and locked.base.get("commit") not in (None, wanted.base.revision):
        stale.append("base.revision")
    if not stale:
        return []
    message = f"plan.lock.json was resolved for other values of {', '.join(stale)}"
    return [finding("project.lock.stale", message, fields=stale)]
