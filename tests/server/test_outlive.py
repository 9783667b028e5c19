"""The server may die while it trains: training goes on, and the next server follows the run to its end."""

import json
import os
import signal
import sys

import pytest

from peftsmith import files, operations, plan
from tests.wire import Wire

pytestmark = pytest.mark.training

TEXTS = ["the parcel never came", "the app closes by itself", "please send it back", "open the settings page"]


@pytest.fixture
def checked_project(tmp_path, tiny_model, training_python):
    rows = [{"text": f"{text} {number}", "label": "ab"[number % 2]} for number in range(40) for text in TEXTS]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    project = tmp_path / "project"
    operations.plan_finetune(str(project), str(tiny_model), str(data))
    text = files.read_text(project / plan.PLAN_FILE)
    files.write_text(project / plan.PLAN_FILE, plan.edit(text, {"training.epochs": 40.0, "method.rank": 2}))
    operations.generate_project(str(project))
    checked = operations.check_project(str(project))
    assert checked["digest"], checked["findings"]
    return project, checked["digest"]


def test_training_outlives_a_killed_server(checked_project):
    project, digest = checked_project
    server = [sys.executable, "-P", "-m", "peftsmith.server"]
    settings = {
        "PEFTSMITH_HOME": os.environ["PEFTSMITH_HOME"],
        "PEFTSMITH_TRAIN_PYTHON": os.environ["PEFTSMITH_TRAIN_PYTHON"],
    }
    with Wire(server, cwd=project.parent, **settings) as first:
        first.shake_hands()
        text, failed = first.call("start_run", {"project": "project", "kind": "train", "digest": digest})
        assert not failed, text
        run_id = json.loads(text)["run"]["id"]
        text, failed = first.call("get_run", {"project": "project", "run_id": run_id, "wait_seconds": 1})
        assert json.loads(text)["run"]["state"] in ("starting", "running"), text
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait(10)
    with Wire(server, cwd=project.parent, **settings) as second:
        second.shake_hands()
        for _ in range(10):
            text, failed = second.call("get_run", {"project": "project", "run_id": run_id, "wait_seconds": 30})
            assert not failed, text
            run = json.loads(text)["run"]
            if run["state"] not in ("starting", "running"):
                break
    assert run["state"] == "done", text
    assert run["metrics"]["steps"] == run["progress"]["total"]
    assert (project / "runs" / run_id / "adapter" / "adapter_model.safetensors").exists()
