"""Writing the project's files: all of them or none, and with what a person has edited.

Knows: how to put a set of files in place in one go, the lock's part of it, that one conflict stops everything.
Does not know: what is in the files (render.py, notebook.py), what becomes of an edited one (regenerate.py), or whether
they work (vet.py, twin.py).
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from peftsmith import files, lock, plan
from peftsmith.finding import Finding, finding
from peftsmith.project import notebook, plan_check, regenerate, render
from peftsmith.secrets import allowed, find_in_text, title


@dataclass(frozen=True)
class Written:
    """What became of each file, in the order of their names: {"path", "action"}."""

    files: list[dict[str, str]]
    findings: list[Finding]


def generate(project: Path) -> Written:
    """Write the files that plan.yaml and plan.lock.json describe and note their hashes in the lock.

    A file that a person has edited keeps the edits: lines that the plan changes meanwhile are merged in, and
    `project.file.edited` shows how the file differs from a generated one. Where both change the same lines, no file is
    written at all, and `project.file.conflict` shows the places. A plan that is wrong on its base (plan_check.py) is
    refused: then no file is written, and findings say why. If anything changes, the last check's digest
    is void. Raises PeftsmithError for a plan that cannot be rendered, a full disk, or a folder in a file's place; then
    every file is as before.
    """
    plan_text = files.read_text(project / plan.PLAN_FILE)
    wanted_plan = plan.parse(plan_text)
    before = lock.load(project)
    judged = plan_check.judge(wanted_plan, before)
    refused = [each for each in judged if each.severity == "error"]
    if refused:
        return Written([], refused)
    rendered = render.render(wanted_plan, before)
    leaks = list(_credentials({plan.PLAN_FILE: plan_text, **rendered}))
    if leaks:
        return Written([], leaks)
    kept = regenerate.last(project, before.files)
    fates = {
        name: regenerate.decide(project / name, text, kept.get(name), before.files.get(name))
        for name, text in rendered.items()
    }
    lying = {name: _for_notebook(fates[name].text, text) for name, text in rendered.items()}
    rendered[notebook.FILE] = notebook.build(lying, wanted_plan, before)
    fates[notebook.FILE] = regenerate.decide(
        project / notebook.FILE, rendered[notebook.FILE], kept.get(notebook.FILE), before.files.get(notebook.FILE)
    )
    findings = [fate.finding for _, fate in sorted(fates.items()) if fate.finding is not None]
    if any(fate.action == "refused" for fate in fates.values()):
        return Written([], [each for each in findings if each.severity == "error"])
    _put(project, plan_text, before, rendered, kept, fates)
    findings += [
        finding("project.file.stale", f"{name} belongs to an earlier plan and was left where it is", file=name)
        for name in sorted(before.files.keys() - rendered.keys())
        if (project / name).exists()
    ]
    if "evaluate.py" not in rendered:
        findings.append(finding("project.evaluate.no_rows"))
    # Warnings were given by whoever made the plan, and are given again by whoever checks it.
    unknown = [each for each in judged if each.severity == "unknown"]
    as_planned = before.plan_sha256 == files.sha256_text(plan_text)
    findings += [each for each in unknown if not (as_planned and each.id == "plan.base.unreadable")]
    findings += _stale(wanted_plan, before)
    listed = [{"path": name, "action": str(fate.action)} for name, fate in sorted(fates.items())]
    return Written(listed, findings)


def _credentials(texts: Mapping[str, str]) -> Iterator[Finding]:
    """Credentials in the plan, which every script made from it would spread."""
    for name, text in texts.items():
        for hit in find_in_text(text):
            if not allowed(text, hit):
                message = f"{name} line {hit.line}: {title(hit.kind)}, out of plan.yaml; nothing was written"
                yield finding("project.script.secret", message, file=name, line=hit.line, kind=hit.kind)


def _for_notebook(lying: str | None, generated: str) -> str:
    """The text that the notebook takes of a file: as it lies there, unless it cannot be read or holds a credential,
    which must not be spread any further."""
    return generated if lying is None or find_in_text(lying) else lying


def _put(
    project: Path,
    plan_text: str,
    before: lock.Lock,
    rendered: Mapping[str, str],
    kept: Mapping[str, str],
    fates: Mapping[str, regenerate.Fate],
) -> None:
    """Write what changes; a check's digest is void when anything but the memory of generated texts does."""
    after = before.model_copy(
        update={
            "plan_sha256": files.sha256_text(plan_text),
            "files": {name: files.sha256_text(text) for name, text in rendered.items()},
        }
    )
    new = {
        name: fate.text
        for name, fate in fates.items()
        if fate.action in ("written", "merged") and fate.text is not None
    }
    if new or after != before:
        after = after.model_copy(update={"checked": {}, "digest": None})
    if kept != rendered:
        new[regenerate.GENERATED] = regenerate.to_keep(rendered)
    if new or after != before:
        _replace_all(project, new, after)


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


def _stale(wanted: plan.FineTunePlan, locked: lock.Lock) -> list[Finding]:
    """Where plan.yaml was edited so far that what was resolved for it no longer belongs to it."""
    stale = []
    known = {split: each.path for split, each in locked.data.items()}
    for split, path in wanted.splits().items():
        if known and known.get(split) != path:
            stale.append(f"data.{split}")
    if locked.base.get("model") not in (None, wanted.base.model, locked.base.get("folder")):
        stale.append("base.model")
    if wanted.base.revision and locked.base.get("commit") not in (None, wanted.base.revision):
        stale.append("base.revision")
    if not stale:
        return []
    message = f"plan.lock.json was resolved for other values of {', '.join(stale)}"
    return [finding("project.lock.stale", message, fields=stale)]
