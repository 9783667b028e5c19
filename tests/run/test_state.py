"""Judging a run by what lies in its folder: pids that were given away, other hosts and boots, lost runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from peftsmith.errors import PeftsmithError
from peftsmith.run import host, judge, store, supervise, watch
from tests.adapter.make import lora, write, zeros


@pytest.fixture
def run(tmp_path):
    return store.create(tmp_path, "train", [sys.executable, "train.py"], tmp_path)


def write_status(run, **changes):
    here = host.probe()
    me = {"pid": os.getpid(), "pid_started": supervise.started_at(os.getpid())}
    status = {
        "state": "running",
        **me,
        "supervisor_pid": None,
        "supervisor_started": None,
        "host": here.name,
        "boot_id": here.boot,
        "lease_until": time.time() - 100,
        **changes,
    }
    (run.folder / supervise.STATUS).write_text(json.dumps(status), encoding="utf-8")


def test_a_living_pid_of_this_boot_is_running_without_a_lease(run):
    write_status(run)
    assert watch.state_of(run) == "running"


def test_a_reused_pid_is_not_the_run(run):
    write_status(run, pid_started="1")
    assert watch.state_of(run) == "lost"


def test_a_zombie_is_not_alive(run):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    try:
        started = supervise.started_at(process.pid)
        assert started is not None
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert supervise.started_at(process.pid) is None
        write_status(run, pid=process.pid, pid_started=started)
        assert watch.state_of(run) == "lost"
    finally:
        process.wait()


@pytest.mark.parametrize("change", [{"host": "another"}, {"boot_id": "another"}])
def test_another_host_or_boot_is_judged_by_its_lease_alone(run, change):
    write_status(run, **change, lease_until=time.time() + 60)
    assert watch.state_of(run) == "running"
    write_status(run, **change)
    assert watch.state_of(run) == "lost"
    (run.folder / "done.json").write_text('{"ok": true}', encoding="utf-8")
    assert watch.state_of(run) == "done"


def test_a_fresh_lease_does_not_revive_dead_processes_of_this_boot(run):
    write_status(run, pid_started="1", lease_until=time.time() + 60)
    assert watch.state_of(run) == "lost"


def test_a_run_that_nobody_launched(run, monkeypatch):
    assert watch.state_of(run) == "starting"
    monkeypatch.setattr(supervise, "LEASE_SECONDS", -1.0)
    assert watch.state_of(run) == "lost"


@pytest.mark.parametrize("text", ["", "{", "[]", '"running"', "\x00"])
def test_damaged_files_are_not_believed(run, text):
    write_status(run, pid_started="1")
    (run.folder / "done.json").write_text(text, encoding="utf-8")
    (run.folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    seen = watch.look(run)
    assert seen.state == "lost"
    assert [item.id for item in seen.findings] == ["run.process.lost"]


@pytest.mark.parametrize("run_id", ["", "../../etc", "20260101-000000-train-0000", "x" * 300, "a\x00b"])
def test_unknown_runs_name_those_there_are(tmp_path, run, run_id):
    with pytest.raises(PeftsmithError, match=run.id):
        watch.follow(tmp_path, run_id, wait_seconds=0)


def test_runs_are_listed_newest_first_and_odd_folders_are_left_out(tmp_path):
    made = [store.create(tmp_path, kind, ["x"], tmp_path) for kind in ("train", "smoke", "merge", "train", "evaluate")]
    (tmp_path / "runs" / ".new-unfinished").mkdir()
    (tmp_path / "runs" / "20260101-000000-train-0000").mkdir()
    broken = tmp_path / "runs" / "20260101-000000-train-0001"
    broken.mkdir()
    (broken / "run.json").write_text('{"kind": "train", "argv": [], "cwd": ".", "made": "yesterday"}', encoding="utf-8")
    assert [seen.run.id for seen in watch.all_runs(tmp_path)] == [each.id for each in reversed(made)]


def test_a_run_that_cannot_be_made_leaves_nothing(tmp_path):
    with pytest.raises(PeftsmithError, match="cannot be made"):
        store.create(tmp_path, "train", ["x"], tmp_path, scripts=[tmp_path / "missing.py"])
    assert list((tmp_path / "runs").iterdir()) == []
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(PeftsmithError, match="cannot be written"):
        store.create(tmp_path / "file", "train", ["x"], tmp_path)


def rows_of(tmp_path, rows):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return judge.read_metrics(host.probe(), path)


def ids(rows, **changes):
    return [item.id for item in judge.metrics(rows, **{"kind": "train", "state": "running", **changes})]


def test_long_metrics_are_read_from_both_ends(tmp_path):
    rows = rows_of(
        tmp_path, [{"step": n, "max_steps": 40_000, "loss": 1.0, "seconds": n / 2} for n in range(1, 20_001)]
    )
    assert rows[0]["step"] == 1 and rows[-1]["step"] == 20_000 and len(rows) < 3000
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    assert judge.progress(rows, ended=False) == {"step": 20_000, "total": 40_000, "share": 0.5, "eta_seconds": 10_000.0}


def test_progress_without_numbers():
    nothing = {"step": None, "total": None, "share": None, "eta_seconds": None}
    assert judge.progress([], ended=False) == nothing
    assert judge.progress([{"step": "x"}, {"step": float("nan")}, {}], ended=False) == nothing
    one = judge.progress([{"step": 5, "max_steps": 10, "seconds": 10.0}], ended=False)
    assert one["eta_seconds"] == 10.0
    assert judge.progress([{"step": 5, "max_steps": 0}], ended=False)["share"] is None


def test_the_newest_value_of_each_measurement_is_shown(tmp_path):
    rows = rows_of(tmp_path, [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 1.5}])
    assert judge.latest(rows) == {"step": 2, "loss": 1.0, "eval_loss": 1.5}


def test_null_stands_for_a_norm_that_was_not_finite(tmp_path):
    dead = [{"step": n, "loss": 0.0, "grad_norm": None} for n in range(2, 5)]
    assert ids(rows_of(tmp_path, [{"step": 1, "loss": 1.0, "grad_norm": 1.0}, *dead])) == ["run.loss.zero"]
    overflow = [{"step": n, "loss": 1.0, "grad_norm": None} for n in range(1, 5)]
    assert ids(rows_of(tmp_path, overflow)) == ["run.loss.not_finite"]


def test_loss_of_zero(tmp_path):
    dead = [{"step": n, "loss": 0.0, "grad_norm": float("nan")} for n in range(1, 4)]
    assert ids(rows_of(tmp_path, dead)) == ["run.loss.zero"]
    assert ids(rows_of(tmp_path, [{"step": 1, "loss": 0, "grad_norm": 0.2}])) == ["run.loss.zero"]
    rounded = [{"step": 1, "loss": 0.4, "grad_norm": 1.0}, {"step": 2, "loss": 0.0, "grad_norm": 0.001}]
    assert ids(rows_of(tmp_path, rounded)) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan", "NaN", "Infinity", "-inf"])
def test_loss_that_is_no_number(tmp_path, value):
    found = judge.metrics(
        rows_of(tmp_path, [{"step": 1, "loss": 1.0}, {"step": 2, "loss": value}]), kind="train", state="running"
    )
    assert [item.id for item in found] == ["run.loss.not_finite"]
    assert "step 2" in found[0].message
    json.dumps(judge.plain({"loss": value, "deep": [{"x": float("nan")}]}), allow_nan=False)


def test_gradient_norms_count_only_when_they_stay_infinite(tmp_path):
    scaling = [{"step": n, "loss": 1.0, "grad_norm": float("inf") if n < 3 else 1.0} for n in range(1, 6)]
    assert ids(rows_of(tmp_path, scaling)) == []
    overflow = [{"step": n, "loss": 1.0, "grad_norm": float("nan")} for n in range(1, 6)]
    assert ids(rows_of(tmp_path, overflow)) == ["run.loss.not_finite"]


def test_flat_loss_only_when_it_is_clear(tmp_path):
    def rows(losses, total=40):
        return rows_of(tmp_path, [{"step": n + 1, "max_steps": total, "loss": loss} for n, loss in enumerate(losses)])

    assert ids(rows([2.3 + 0.001 * (n % 3) for n in range(40)])) == ["run.loss.flat"]
    assert ids(rows([2.3] * 15)) == []
    assert ids(rows([2.3] * 40, total=1000)) == []
    assert ids(rows([2.3 - 0.02 * n for n in range(40)])) == []
    assert ids(rows([0.1] * 40)) == []


def test_a_training_without_any_loss_is_unknown():
    found = judge.metrics([], kind="train", state="done")
    assert [(item.id, item.severity) for item in found] == [("run.metrics.missing", "unknown")]
    assert judge.metrics([], kind="merge", state="done") == []
    assert judge.metrics([], kind="train", state="running") == []


def trained(tmp_path, tensors):
    write(tmp_path / "adapter", tensors)
    return [item.id for item in judge.artefacts(tmp_path)]


def test_artefacts_of_a_training_that_says_it_is_done(tmp_path):
    assert [item.id for item in judge.artefacts(tmp_path)] == ["run.adapter.missing"]
    assert trained(tmp_path, lora()) == []
    assert trained(tmp_path, {n: zeros(t[1]) if "lora_B" in n else t for n, t in lora().items()}) == [
        "run.adapter.untouched"
    ]
    write(tmp_path / "checkpoints" / "checkpoint-1", {**lora(), "model.norm.weight": zeros((4,))})
    assert trained(tmp_path, lora()) == ["adapter.checkpoint.base_weights"]
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    assert "run.adapter.missing" in [item.id for item in judge.artefacts(tmp_path)]
