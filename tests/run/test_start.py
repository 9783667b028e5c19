"""What start_run refuses, and what it says then."""

from __future__ import annotations

import os
import shutil
import threading
import time

import pytest

from peftsmith import lock
from peftsmith.errors import PeftsmithError
from peftsmith.run import host, start, store, supervise, watch
from tests.run.fake import make_project


@pytest.fixture
def project(tmp_path, tiny_model):
    return make_project(tmp_path / "project", tiny_model)


def attempt(project, **changes):
    return start.start(
        project[0], **{"kind": "train", "digest": project[1], "adapter_run": None, "max_steps": None, **changes}
    )


def refused(project, match, **changes):
    with pytest.raises(PeftsmithError, match=match):
        attempt(project, **changes)
    assert store.all_runs(project[0]) == []


def test_digest_missing_or_wrong(project):
    refused(project, "needs the digest", digest="")
    refused(project, "not that of the last check", digest="0" * 64)


@pytest.mark.parametrize("name", ["train.py", "plan.yaml", "train.jsonl"])
def test_changed_files_are_named(project, name):
    with (project[0] / name).open("a", encoding="utf-8") as stream:
        stream.write("\n")
    refused(project, f"changed since its check: .*{name}")


def test_a_project_that_was_never_checked(project):
    lock.save(project[0], lock.load(project[0]).model_copy(update={"digest": None}))
    refused(project, "has not passed check_project")


def rechecked(project, **changes):
    changed = lock.load(project[0]).model_copy(update=changes)
    digest = lock.compute_digest(project[0], changed)
    lock.save(project[0], changed.model_copy(update={"digest": digest}))
    return project[0], digest


def test_only_a_smoke_run_goes_without_the_twin(project):
    for proofs in ({}, {"twin": {"ok": False}}):
        unproven = rechecked(project, proofs=proofs)
        refused(unproven, "without its twin")
        run = attempt(unproven, kind="smoke")
        watch.stop(project[0], run.id, confirm=True)
        for each in store.all_runs(project[0]):
            shutil.rmtree(each.folder)


def test_the_interpreter_is_gone(project, tmp_path):
    refused(
        rechecked(project, interpreter=str(tmp_path / "gone")), "training environment .* is gone .*make_environment"
    )
    refused(rechecked(project, interpreter=None), "training environment .* is gone")


def test_the_base_model_is_gone(project, tmp_path):
    refused(rechecked(project, base={"model": "x", "folder": str(tmp_path / "gone")}), "base model's folder is gone")


def test_adapter_run_must_fit(project):
    refused(project, "needs the run whose adapter", kind="evaluate")
    refused(project, "no such run", kind="merge", adapter_run="20260101-000000-train-0000")
    refused(project, "takes none", kind="train", adapter_run="20260101-000000-train-0000")


def with_adapter(project, kind="train"):
    run = store.create(project[0], kind, ["x"], project[0])
    (run.folder / "stop").write_text("", encoding="utf-8")
    (run.folder / "adapter").mkdir()
    return run


def test_a_merge_has_no_steps(project):
    refused(project, "has no steps", kind="merge", max_steps=3)


@pytest.mark.parametrize(
    ("kind", "present", "match"), [("train", False, "no adapter_config.json"), ("merge", True, "is a merge run")]
)
def test_adapter_run_without_an_adapter(project, kind, present, match):
    run = with_adapter(project, kind)
    if present:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (run.folder / "adapter" / name).write_text("{}", encoding="utf-8")
    with pytest.raises(PeftsmithError, match=match):
        attempt(project, kind="evaluate", adapter_run=run.id)


def test_only_one_run_of_a_project_at_a_time(project, monkeypatch):
    monkeypatch.setenv("FAKE", "hang")
    started, errors = [], []

    def go():
        try:
            started.append(attempt(project))
        except PeftsmithError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=go) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == 1 and len(errors) == 2
    assert all(f"Run {started[0].id} (train)" in error for error in errors)
    monkeypatch.setattr(supervise, "STOP_SECONDS", 1.0)
    assert watch.stop(project[0], started[0].id, confirm=True).state == "stopped"


def test_a_finished_run_gives_its_adapter_to_the_next(project):
    run = with_adapter(project)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (run.folder / "adapter" / name).write_text("{}", encoding="utf-8")
    (run.folder / "done.json").write_text('{"ok": true}', encoding="utf-8")
    here = host.probe()
    supervise.write_status(run.folder, {"state": "done", "host": here.name, "boot_id": here.boot})
    made = attempt(project, kind="evaluate", adapter_run=run.id, max_steps=7)
    assert made.argv[1:] == (
        *("-u", "evaluate.py", "--base", made.argv[4], "--adapter", str(run.folder / "adapter")),
        *("--output", str(made.folder), "--max-steps", "7"),
    )
    assert made.to_json()["adapter_run"] == run.id
    assert watch.follow(project[0], made.id, wait_seconds=20).state == "done"


def test_a_supervisor_that_cannot_start_leaves_nothing(project, monkeypatch):
    monkeypatch.setattr("sys.executable", str(project[0] / "no-python"))
    refused(project, "supervisor could not be started")


def test_runs_that_cannot_be_written(project):
    (project[0] / "runs").write_text("in the way", encoding="utf-8")
    with pytest.raises(PeftsmithError, match="folder for runs cannot be written"):
        attempt(project)


def test_windows_is_told_about_wsl(project, monkeypatch):
    run = store.create(project[0], "train", ["x"], project[0])
    monkeypatch.setattr(os, "name", "nt")
    with pytest.raises(PeftsmithError, match="WSL2"):
        host.start(host.Host("local", "here", "now"), run.folder, {})


def test_starting_takes_no_time(project):
    began = time.monotonic()
    run = attempt(project)
    assert time.monotonic() - began < 5
    assert run.id in [seen.run.id for seen in watch.all_runs(project[0])]
    watch.follow(project[0], run.id, wait_seconds=20)
