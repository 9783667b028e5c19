"""Runs as processes: what outlives what, and who says so. The scripts are stand-ins; no training happens here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from peftsmith.diagnose import causes
from peftsmith.errors import PeftsmithError
from peftsmith.run import host, start, store, supervise, watch
from tests.run.fake import make_project

pytestmark = pytest.mark.slow

PACKAGES = Path(start.__file__).resolve().parents[2]
LEASE, STOP = 2.0, 1.0


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setenv("PEFTSMITH_LEASE_SECONDS", str(LEASE))
    monkeypatch.setenv("PEFTSMITH_STOP_SECONDS", str(STOP))
    monkeypatch.setattr(supervise, "LEASE_SECONDS", LEASE)
    monkeypatch.setattr(supervise, "STOP_SECONDS", STOP)


@pytest.fixture
def project(tmp_path, tiny_model):
    return make_project(tmp_path / "project", tiny_model)


@pytest.fixture
def begin(project, monkeypatch):
    """Start a run whose script behaves as named; whatever is left of it at the end is killed by its own pids."""
    runs: list[store.Run] = []

    def run(how: str = "", **changes):
        monkeypatch.setenv("FAKE", how)
        given = {"kind": "train", "digest": project[1], "adapter_run": None, "max_steps": None, **changes}
        runs.append(start.start(project[0], **given))
        return runs[-1]

    yield run
    for each in runs:
        finish_off(each)


def finish_off(run: store.Run) -> None:
    status = status_of(run)
    seen = host.alive(host.probe(), status)
    if seen.supervisor:
        os.kill(status["supervisor_pid"], signal.SIGKILL)
    if seen.script:
        supervise.signal_group(status["pid"], signal.SIGKILL)


def status_of(run: store.Run) -> dict:
    return host.get(host.probe(), run.folder / supervise.STATUS) or {}


def until(condition, seconds: float = 15.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("the awaited state did not come")


def steps_of(run: store.Run) -> int:
    return watch.look(run, closely=False).progress["step"] or 0


def test_a_run_goes_to_its_end_and_keeps_what_it_was_made_of(project, begin, monkeypatch):
    monkeypatch.setenv("MY_OWN", "kept-in-memory-only")
    monkeypatch.setenv("PYTHONPATH", f"{PACKAGES}{os.pathsep}/elsewhere")
    run = begin()
    seen = watch.follow(project[0], run.id, wait_seconds=20)
    assert seen.state == "done", seen.log_tail
    assert seen.metrics == {"loss": 0.5}
    assert seen.progress == {"step": 6, "total": 6, "share": 1.0, "eta_seconds": None}
    assert seen.exit_code == 0
    assert seen.artefacts["adapter"] == str(run.folder / "adapter")
    assert "x" not in seen.artefacts  # it pointed out of the run's folder
    assert (run.folder / "plan.yaml").read_bytes() == (project[0] / "plan.yaml").read_bytes()
    assert sorted(path.name for path in (run.folder / "scripts").iterdir()) == ["evaluate.py", "merge.py", "train.py"]
    expected = ["--base", str(run.argv[run.argv.index("--base") + 1]), "--output", str(run.folder)]
    assert f"argv {expected} cwd {project[0]}" in seen.log_tail
    environment = {
        "PYTHONUNBUFFERED": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONPATH": "/elsewhere",
        "MY_OWN": "kept-in-memory-only",
    }
    assert f"environment {environment}" in seen.log_tail
    written = "".join(p.read_text(encoding="utf-8") for p in run.folder.glob("*.json"))
    assert "kept-in-memory-only" not in written
    json.dumps(seen.to_json(), allow_nan=False)
    until(lambda: not host.alive(host.probe(), status_of(run)).supervisor)


def test_smoke_takes_five_steps(project, begin):
    run = begin(kind="smoke")
    assert run.argv[-2:] == ("--max-steps", "5")
    assert watch.follow(project[0], run.id, wait_seconds=20).progress["total"] == 5


def test_killing_the_starter_changes_nothing(project, monkeypatch):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom peftsmith import files\nfrom peftsmith.run import start\n"
        "run = start.start(Path(sys.argv[1]), kind='train', digest=sys.argv[2], adapter_run=None, max_steps=None)\n"
        "print(run.id, flush=True)\ntime.sleep(60)\n"
    )
    monkeypatch.setenv("FAKE", "slow")
    monkeypatch.setenv("PYTHONPATH", str(PACKAGES))
    argv = [sys.executable, "-c", code, str(project[0]), project[1]]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True) as starter:
        assert starter.stdout is not None
        run = store.open_run(project[0], starter.stdout.readline().strip())
        os.killpg(starter.pid, signal.SIGKILL)
    assert watch.state_of(run) == "running"
    seen = watch.follow(project[0], run.id, wait_seconds=30)
    assert (seen.state, seen.progress["step"]) == ("done", 6), seen.log_tail


def test_killing_the_supervisor_leaves_the_script_running_to_done(project, begin):
    run = begin("slow")
    until(lambda: steps_of(run) >= 1)
    os.kill(status_of(run)["supervisor_pid"], signal.SIGKILL)
    until(lambda: not host.alive(host.probe(), status_of(run)).supervisor)
    time.sleep(LEASE / 2)
    assert watch.state_of(run) == "running"
    seen = watch.follow(project[0], run.id, wait_seconds=30)
    assert (seen.state, seen.progress["step"]) == ("done", 6)


@pytest.mark.parametrize(("how", "state"), [("slow leave", "lost"), ("slow not-ok", "failed")])
def test_a_dead_supervisor_and_a_script_that_did_not_end_well(project, begin, how, state):
    run = begin(how, max_steps=3)
    until(lambda: steps_of(run) >= 1)
    os.kill(status_of(run)["supervisor_pid"], signal.SIGKILL)
    seen = watch.follow(project[0], run.id, wait_seconds=30)
    assert seen.state == state
    assert f"run.process.{state}" in [item.id for item in seen.findings]


@pytest.mark.parametrize(
    ("how", "code", "named"), [("crash", 1, "exit code 1"), ("shot", -9, "SIGKILL"), ("leave", 0, "no done.json")]
)
def test_a_failed_run_says_how_it_ended(project, begin, how, code, named):
    run = begin(how)
    seen = watch.follow(project[0], run.id, wait_seconds=20)
    assert (seen.state, seen.exit_code) == ("failed", code)
    failed = next(item for item in seen.findings if item.id == "run.process.failed")
    assert named in failed.message
    assert failed.evidence["diagnosis"]
    if how == "crash":
        assert failed.evidence["diagnosis"] == ["diagnose.memory.cuda_out_of_memory"]
        assert "KLMNOP" not in json.dumps(seen.to_json()) and "\x1b" not in seen.log_tail


def test_stop_ends_the_whole_process_group(project, begin):
    run = begin("hang children")
    until(lambda: steps_of(run) >= 2)
    child = int((run.folder / "child").read_text(encoding="utf-8"))
    assert supervise.started_at(child) is not None
    with pytest.raises(PeftsmithError, match=r"would end run .* at step 2 of 6.*confirm=true"):
        watch.stop(project[0], run.id, confirm=False)
    assert watch.state_of(run) == "running"
    seen = watch.stop(project[0], run.id, confirm=True)
    assert (seen.state, seen.exit_code) == ("stopped", -signal.SIGTERM)
    assert supervise.started_at(child) is None
    with pytest.raises(PeftsmithError, match="already stopped"):
        watch.stop(project[0], run.id, confirm=True)


def test_stop_kills_what_ignores_the_request(project, begin):
    run = begin("hang ignore-term")
    until(lambda: steps_of(run) >= 2)
    assert (watch.stop(project[0], run.id, confirm=True).state, status_of(run)["exit_code"]) == (
        "stopped",
        -signal.SIGKILL,
    )


def test_workers_do_not_outlive_a_shot_script(project, begin):
    run = begin("shot children")
    assert watch.follow(project[0], run.id, wait_seconds=20).state == "failed"
    child = int((run.folder / "child").read_text(encoding="utf-8"))
    assert supervise.started_at(child) is None


def test_stop_without_a_supervisor_ends_the_script(project, begin):
    run = begin("hang ignore-term")
    until(lambda: steps_of(run) >= 2)
    pid = status_of(run)["pid"]
    os.kill(status_of(run)["supervisor_pid"], signal.SIGKILL)
    until(lambda: not host.alive(host.probe(), status_of(run)).supervisor)
    assert watch.stop(project[0], run.id, confirm=True).state == "stopped"
    assert supervise.started_at(pid) is None


def test_stop_while_starting(project, begin):
    run = begin("slow")
    assert watch.stop(project[0], run.id, confirm=True).state == "stopped"
    status = status_of(run)
    assert status["pid"] is None or supervise.started_at(status["pid"]) is None


def test_the_stop_file_alone_is_enough(project, begin):
    """As from another machine that shares the folder and cannot send a signal."""
    run = begin("hang")
    until(lambda: steps_of(run) >= 2)
    (run.folder / supervise.STOP).write_text("", encoding="utf-8")
    assert watch.follow(project[0], run.id, wait_seconds=15).state == "stopped"


def test_a_stopped_run_has_no_diagnosis(project, begin):
    run = begin("hang")
    until(lambda: steps_of(run) >= 2)
    assert causes.diagnose(project[0], run_id=run.id, log=None).findings == []
    seen = watch.stop(project[0], run.id, confirm=True)
    assert [item.id for item in seen.findings] == []
    assert causes.diagnose(project[0], run_id=run.id, log=None).findings == []


def test_stop_works_without_room_for_the_stop_file(project, begin, monkeypatch):
    run = begin("hang")
    until(lambda: steps_of(run) >= 2)

    def full(*_):
        raise PeftsmithError("The disk is full", next_step="Free some space.")

    monkeypatch.setattr(host, "put", full)
    assert watch.stop(project[0], run.id, confirm=True).state == "stopped"


def test_stop_on_a_finished_run_names_its_state(project, begin):
    run = begin()
    watch.follow(project[0], run.id, wait_seconds=20)
    with pytest.raises(PeftsmithError, match="already done"):
        watch.stop(project[0], run.id, confirm=True)


def test_a_script_that_cannot_start_fails_with_the_reason(project):
    run = store.create(project[0], "environment", ["/no/such/python", "x.py"], project[0])
    start.launch(run)
    seen = watch.follow(project[0], run.id, wait_seconds=10)
    assert seen.state == "failed"
    failed = next(item for item in seen.findings if item.id == "run.process.failed")
    assert "FileNotFoundError" in failed.evidence["error"] and "could not be started" in failed.message


def test_a_full_disk_delays_the_status_but_ends_nothing(project, begin):
    run = begin("slow")
    until(lambda: steps_of(run) >= 1)
    temporary = run.folder / f".{supervise.STATUS}.new"
    until(lambda: not temporary.exists())
    temporary.symlink_to("/dev/full")  # every write to it fails with ENOSPC
    before = status_of(run)["lease_until"]
    until(lambda: (run.folder / "done.json").exists())
    time.sleep(LEASE)
    status = status_of(run)
    assert status["lease_until"] - before < LEASE and status["state"] == "running"
    assert supervise.started_at(status["supervisor_pid"]) == status["supervisor_started"]
    assert watch.state_of(run) == "done"  # by what the script itself has left
    temporary.unlink()
    until(lambda: status_of(run)["state"] == "done")
    assert "No space left" in (run.folder / "supervisor.log").read_text(encoding="utf-8")


def test_readers_during_replacement_always_see_a_whole_status(tmp_path):
    stop, seen = threading.Event(), []

    def read():
        while not stop.is_set():
            seen.append((host.get(host.probe(), tmp_path / supervise.STATUS) or {}).get("state"))

    supervise.write_status(tmp_path, {"state": "running"})
    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(500):
        assert supervise.write_status(tmp_path, {"state": "running", "padding": "x" * 5000})
    stop.set()
    for reader in readers:
        reader.join()
    assert len(seen) > 10 and set(seen) == {"running"}
