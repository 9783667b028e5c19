"""check_project: what gets a digest, what does not, and that the digest dies with any change."""

from __future__ import annotations

import pytest

from peftsmith import files, lock, plan
from peftsmith.errors import PeftsmithError
from peftsmith.project import check, generate
from tests.project.small_project import edit, make_project, rows, write_rows

pytestmark = pytest.mark.training


@pytest.fixture
def project(tmp_path, tiny_model, training_python):
    return make_project(tmp_path / "project", tiny_model)


def errors(checked):
    return {each.id for each in checked.findings if each.severity == "error"}


def test_a_good_project_gets_a_digest_and_the_same_one_again(project, training_python):
    first = check.check(project)
    assert errors(first) == set()
    locked = lock.load(project)
    assert first.digest is not None
    assert locked.digest == first.digest
    assert lock.changed_since(project, locked, first.digest) == []
    assert locked.interpreter == training_python
    assert {"torch", "transformers", "peft", "trl"} <= locked.versions.keys()
    assert locked.checked.keys() == locked.files.keys()
    assert first.proofs["twin"]["ok"]
    assert len(first.proofs["twin"]["proofs"]) == 14
    again = check.check(project)
    assert again.digest == first.digest
    assert again.proofs["twin"]["cached"]


@pytest.mark.parametrize(
    "changed", ["train.py", "progress.py", "README.md", "plan.yaml", "plan.lock.json", "data/train.jsonl"]
)
def test_any_change_after_the_check_voids_the_digest(project, changed):
    checked = check.check(project, twin=False)
    assert checked.digest is not None
    assert lock.changed_since(project, lock.load(project), checked.digest) == []
    path = project / changed
    if changed == lock.LOCK_FILE:
        locked = lock.load(project)
        lock.save(project, locked.model_copy(update={"estimate": {"likely_gib": 1}}))
    else:
        path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert lock.changed_since(project, lock.load(project), checked.digest) != []


def test_without_the_twin_it_says_that_nothing_was_proven(project):
    checked = check.check(project, twin=False)
    assert checked.digest is not None
    assert ("project.twin.skipped", "unknown") in {(each.id, each.severity) for each in checked.findings}
    assert "twin" not in checked.proofs


def test_an_error_voids_the_digest_of_before(project):
    assert check.check(project, twin=False).digest is not None
    edit(project / "train.py", "    started = time.monotonic()", "    started = 1 / 0")
    checked = check.check(project)
    assert checked.digest is None
    assert "twin.train.failed" in errors(checked)
    locked = lock.load(project)
    assert locked.digest is None
    assert locked.checked == {}


def test_changed_rows_are_taken_over_and_named(project):
    write_rows(project / "data" / "train.jsonl", rows(30))
    checked = check.check(project, twin=False)
    changed = [each for each in checked.findings if each.id == "project.data.changed"]
    assert [(each.severity, each.evidence["split"], each.evidence["rows"]) for each in changed] == [
        ("info", "train", 30)
    ]
    locked = lock.load(project)
    assert locked.data["train"] == lock.DataFile(
        path="data/train.jsonl", sha256=files.sha256_file(project / "data" / "train.jsonl"), rows=30
    )
    assert checked.digest is not None
    assert lock.changed_since(project, locked, checked.digest) == []


def test_missing_rows_are_an_error(project):
    (project / "data" / "test.jsonl").unlink()
    checked = check.check(project, twin=False)
    assert "project.data.missing" in errors(checked)
    assert checked.digest is None


def test_another_base_is_an_error(project, tmp_path):
    locked = lock.load(project)
    lock.save(project, locked.model_copy(update={"base": {**locked.base, "config_sha256": "0" * 64}}))
    checked = check.check(project, twin=False)
    assert "project.base.changed" in errors(checked)
    assert checked.digest is None


def test_files_that_change_meanwhile_are_refused(project, monkeypatch):
    vet = check.vet.vet

    def slow(project, environment):
        (project / "train.py").write_text("changed = True\n", encoding="utf-8")
        return vet(project, environment)

    monkeypatch.setattr(check.vet, "vet", slow)
    with pytest.raises(PeftsmithError, match="changed while they were being checked"):
        check.check(project, twin=False)
    assert lock.load(project).digest is None


def test_a_plan_without_scripts_is_told_to_generate_them(project):
    lock.save(project, lock.load(project).model_copy(update={"files": {}}))
    with pytest.raises(PeftsmithError, match="generate_project"):
        check.check(project)


def test_an_edited_plan_is_drift_until_the_scripts_are_made_again(project):
    files.write_text(project / plan.PLAN_FILE, plan.edit(files.read_text(project / plan.PLAN_FILE), {"method.rank": 8}))
    checked = check.check(project, twin=False)
    assert "plan.drift" in errors(checked)
    assert checked.digest is None


def test_a_plan_of_few_updates_is_told_by_the_rows_that_the_trainer_keeps(project):
    def few(**changes):
        text = files.read_text(project / plan.PLAN_FILE)
        files.write_text(project / plan.PLAN_FILE, plan.edit(text, {f"training.{k}": v for k, v in changes.items()}))
        generate.generate(project)
        return [each for each in check.check(project, twin=False).findings if each.id == "plan.updates.few"]

    found = few(epochs=1.0, batch_size=4, gradient_accumulation=2)
    assert [(each.severity, each.evidence["updates"], each.evidence["rows"]) for each in found] == [("warning", 3, 24)]
    assert few(epochs=4.0, batch_size=2, gradient_accumulation=1) == []


def test_bf16_by_hand_for_a_gpu_without_it_is_refused_before_a_file_is_written(project):
    locked = lock.load(project).model_copy(update={"device": {"kind": "cuda", "capability": [7, 5]}})
    lock.save(project, locked)
    text = files.read_text(project / plan.PLAN_FILE)
    before = (project / "train.py").read_bytes()
    files.write_text(project / plan.PLAN_FILE, plan.edit(text, {"training.precision": "bf16"}))
    written = generate.generate(project)
    assert [(each.id, each.rows) for each in written.findings if each.severity == "error"] == [
        ("plan.precision.device", (23,))
    ]
    assert (written.files, (project / "train.py").read_bytes()) == ([], before)
    checked = check.check(project, twin=False)
    assert checked.digest is None
    assert "plan.precision.device" in errors(checked)
    files.write_text(project / plan.PLAN_FILE, plan.edit(text, {"training.precision": "fp32"}))
    assert "plan.precision.device" not in {each.id for each in generate.generate(project).findings}
