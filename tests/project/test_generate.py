"""All files or none, nobody's edits lost, and a lock that says what was written."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from peftsmith import files, lock, plan
from peftsmith.errors import PeftsmithError
from peftsmith.project import generate, regenerate, render
from tests.project.plans import lock_for, make, write_project

NAMES = {
    ".env.example",
    ".gitignore",
    "README.md",
    "evaluate.py",
    "infer.py",
    "merge.py",
    "progress.py",
    "requirements.txt",
    "train.ipynb",
    "train.py",
}


@pytest.fixture
def project(tmp_path):
    return write_project(tmp_path / "project", make())


def _edit_plan(project: Path, **changes: object) -> None:
    text = files.read_text(project / plan.PLAN_FILE)
    files.write_text(project / plan.PLAN_FILE, plan.edit(text, changes))


def _snapshot(project: Path) -> dict[str, bytes]:
    return {path.relative_to(project).as_posix(): path.read_bytes() for path in project.rglob("*") if path.is_file()}


def test_first_generation_writes_everything_and_locks_it(project):
    written = generate.generate(project)
    assert {each["path"] for each in written.files} == NAMES
    assert {each["action"] for each in written.files} == {"written"} and written.findings == []
    locked = lock.load(project)
    assert set(locked.files) == NAMES
    assert all(files.sha256_file(project / name) == value for name, value in locked.files.items())
    assert locked.plan_sha256 == files.sha256_file(project / plan.PLAN_FILE)
    assert not list(project.glob(".peftsmith-*"))


def test_generating_again_changes_nothing_not_even_the_digest(project):
    generate.generate(project)
    locked = lock.load(project)
    checked = locked.model_copy(update={"checked": dict(locked.files), "proofs": {"vet": 1}})
    lock.save(project, checked.model_copy(update={"digest": lock.compute_digest(project, checked)}))
    before = _snapshot(project)
    assert {each["action"] for each in generate.generate(project).files} == {"unchanged"}
    assert _snapshot(project) == before


def test_a_changed_plan_voids_the_digest_and_writes_only_what_differs(project):
    generate.generate(project)
    locked = lock.load(project).model_copy(update={"checked": {"train.py": "x"}, "digest": "d"})
    lock.save(project, locked)
    _edit_plan(project, **{"method.rank": 64})
    actions = {each["path"]: each["action"] for each in generate.generate(project).files}
    assert {name for name, action in actions.items() if action == "written"} == {"train.py", "README.md", "train.ipynb"}
    after = lock.load(project)
    assert after.digest is None and after.checked == {}
    assert "RANK = 64" in (project / "train.py").read_text(encoding="utf-8")


def test_a_changed_plan_that_changes_no_file_voids_the_digest_too(project):
    generate.generate(project)
    lock.save(project, lock.load(project).model_copy(update={"digest": "d"}))
    _edit_plan(project, serving="vllm")
    assert {each["action"] for each in generate.generate(project).files} == {"unchanged"}
    assert lock.load(project).digest is None


def test_edits_and_the_plans_change_are_merged_and_shown_until_the_file_is_deleted(project):
    generate.generate(project)
    script = project / "train.py"
    token = "hf_" + "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA1c"
    mine = script.read_text(encoding="utf-8") + f'\nprint("mine")\nTOKEN = "{token}"\n'
    script.write_text(mine, encoding="utf-8")
    _edit_plan(project, **{"method.rank": 64})
    for action in ("merged", "kept"):
        written = generate.generate(project)
        assert {"path": "train.py", "action": action} in written.files
        assert script.read_text(encoding="utf-8") == mine.replace("RANK = 4", "RANK = 64")
        found = next(each for each in written.findings if each.severity != "unknown")
        assert found.id == "project.file.edited" and found.evidence["file"] == "train.py"
        assert '+print("mine")' in found.evidence["diff"] and "RANK" not in found.evidence["diff"]
        assert token not in found.evidence["diff"]
    assert token not in (project / "train.ipynb").read_text(encoding="utf-8")  # a credential is not spread
    assert token not in (project / regenerate.GENERATED).read_text(encoding="utf-8")
    script.unlink()
    assert {"path": "train.py", "action": "written"} in generate.generate(project).files


def test_a_conflict_is_shown_and_nothing_at_all_is_written(project):
    generate.generate(project)
    script = project / "train.py"
    mine = script.read_text(encoding="utf-8").replace("RANK = 4", "RANK = 32  # mine")
    script.write_text(mine, encoding="utf-8")
    _edit_plan(project, **{"method.rank": 64, "training.seed": 5})
    before = _snapshot(project)
    written = generate.generate(project)
    [found] = written.findings
    assert written.files == [] and (found.id, found.severity) == ("project.file.conflict", "error")
    [clash] = found.evidence["clashes"]
    assert (clash["generated_last"], clash["yours"], clash["generated_now"]) == (
        "RANK = 4\n",
        "RANK = 32  # mine\n",
        "RANK = 64\n",
    )
    assert _snapshot(project) == before
    script.write_text(mine.replace("RANK = 32  # mine", "RANK = 64"), encoding="utf-8")  # what the finding advises
    assert {"path": "train.py", "action": "written"} not in generate.generate(project).files
    assert "SEED = 5" in script.read_text(encoding="utf-8")


def test_edits_of_before_the_texts_were_kept_are_refused_and_not_lost(project):
    generate.generate(project)
    (project / regenerate.GENERATED).unlink()
    script = project / "train.py"
    script.write_text(script.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    assert {"path": "train.py", "action": "kept"} in generate.generate(project).files  # nothing new to bring in
    (project / regenerate.GENERATED).write_text('{"train.py": "something else"}', encoding="utf-8")
    _edit_plan(project, **{"method.rank": 64})
    [found] = generate.generate(project).findings
    assert found.id == "project.file.conflict" and "+# mine" in found.evidence["diff"]
    assert "# mine" in script.read_text(encoding="utf-8")


def test_a_merge_that_does_not_parse_is_refused(project):
    generate.generate(project)
    kept = files.read_json(project / regenerate.GENERATED)
    base = "a = [\n    1,\n    2,\n]\nb = 1\n"
    locked = lock.load(project)
    lock.save(project, locked.model_copy(update={"files": {**locked.files, "train.py": files.sha256_text(base)}}))
    files.write_json(project / regenerate.GENERATED, {**kept, "train.py": base})
    fate = regenerate.decide(_file(project, base.replace("a = [\n", "a = (\n").replace("]\n", ")\n")), "x", base, "h")
    assert fate.action == "refused"
    mine = base.replace("    2,\n]\n", "    2,\n] + [3]\n").replace("b = 1", "b = 2")
    fate = regenerate.decide(_file(project, mine), base.replace("a = [\n    1,\n", "a = (\n    1,\n"), base, "h")
    assert fate.action == "refused" and fate.finding is not None and "do not parse" in fate.finding.message


def _file(project: Path, text: str) -> Path:
    (project / "train.py").write_text(text, encoding="utf-8")
    return project / "train.py"


def test_a_file_that_was_there_before_is_kept(project):
    (project / "README.md").write_text("mine\n", encoding="utf-8")
    written = generate.generate(project)
    assert {"path": "README.md", "action": "kept"} in written.files
    assert (project / "README.md").read_text(encoding="utf-8") == "mine\n"


def test_an_edit_that_equals_the_new_text_is_unchanged(project):
    generate.generate(project)
    _edit_plan(project, **{"method.rank": 64})
    text = (project / "train.py").read_text(encoding="utf-8").replace("RANK = 4", "RANK = 64")
    (project / "train.py").write_text(text, encoding="utf-8")
    written = generate.generate(project)
    assert {"path": "train.py", "action": "unchanged"} in written.files
    # The base is not here, and nobody has looked at the edited plan before.
    assert [each.id for each in written.findings] == ["plan.base.unreadable"]


@pytest.mark.parametrize(("step", "survives"), [("stage", 0), ("stage", 3), ("move", 0), ("move", 4), ("lock", 7)])
def test_a_full_disk_leaves_everything_as_it_was(project, monkeypatch, step, survives):
    generate.generate(project)
    _edit_plan(project, **{"base.model": "other/model", "training.seed": 5})
    (project / "infer.py").unlink()
    before = _snapshot(project)
    original, write, done = Path.replace, files.write_text, iter(range(100))

    def move(self, target):
        if target.parent == project and "new" in self.parts and next(done) == survives:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, target)

    def full(path, text):
        if next(done) == survives:
            assert (path.name == lock.LOCK_FILE) == (step == "lock"), path
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    with monkeypatch.context() as patch:
        if step == "move":
            patch.setattr(Path, "replace", move)
        else:
            patch.setattr(files, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            generate.generate(project)
    assert _snapshot(project) == before
    assert not list(project.glob(".peftsmith-*"))
    assert {"path": "infer.py", "action": "written"} in generate.generate(project).files


def test_a_plan_that_cannot_be_rendered_writes_nothing(project):
    _edit_plan(project, **{"data.train": "../rows.jsonl"})
    before = _snapshot(project)
    with pytest.raises(PeftsmithError, match="project's folder"):
        generate.generate(project)
    assert _snapshot(project) == before


def test_a_folder_in_the_way_is_an_error_and_writes_nothing(project):
    (project / "train.py").mkdir()
    with pytest.raises(PeftsmithError, match="folder is in the place"):
        generate.generate(project)
    assert not (project / "merge.py").exists()


def test_a_missing_plan_or_lock_is_an_error(project, tmp_path):
    with pytest.raises(PeftsmithError, match="missing"):
        generate.generate(tmp_path)
    (project / lock.LOCK_FILE).unlink()
    with pytest.raises(PeftsmithError, match=r"plan\.lock\.json"):
        generate.generate(project)


def test_a_plan_without_test_rows_says_so_and_its_old_evaluation_stays(project):
    generate.generate(project)
    _edit_plan(project, **{"data.test": None})
    written = generate.generate(project)
    assert {each.id for each in written.findings} == {
        "project.file.stale",
        "project.evaluate.no_rows",
        "plan.base.unreadable",
    }
    assert "evaluate.py" not in lock.load(project).files and (project / "evaluate.py").exists()


def test_a_plan_edited_away_from_its_lock_is_an_error_finding(project):
    rows = {"train": lock.DataFile(path="data/train.jsonl", sha256="0" * 64, rows=1)}
    rows["test"] = rows["train"].model_copy(update={"path": "data/test.jsonl"})
    lock.save(project, lock.load(project).model_copy(update={"data": rows}))
    assert generate.generate(project).findings == []
    _edit_plan(project, **{"base.model": "other/model", "data.train": "data/other.jsonl"})
    found, unread = generate.generate(project).findings[::-1]
    assert unread.id == "plan.base.unreadable" and found.id == "project.lock.stale" and found.severity == "error"
    assert found.evidence["fields"] == ["data.train", "base.model"]


def test_rendering_is_a_pure_function_of_plan_and_lock():
    wanted = make()
    assert render.render(wanted, lock_for(wanted)) == render.render(wanted, lock_for(wanted))
