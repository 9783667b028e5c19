"""From a folder with a model and rows to a merged model, by nothing but the plugin's tools in the real client."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from tests.claude_code.harness import PREFIX, converse
from tests.claude_code.messages_api import Conversation, Shown, Talk, say, use
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.system, pytest.mark.training]

TOOLS = (
    *("inspect_machine", "inspect_model", "audit_dataset", "plan_finetune", "generate_project", "check_project"),
    *("start_run", "get_run", "inspect_adapter"),
)


# so small a model has few parameters to compare the adapter's with
EXPECTED = {"model.targets.share_too_high"}


def _errors(result: dict[str, Any]) -> list[str]:
    found = result["findings"]
    return [f["message"] for f in found if f["severity"] == "error" and f["id"] not in EXPECTED]


def test_from_rows_to_a_merged_model(claude, tmp_path, tiny_model, training_python):
    project = tmp_path / "project"
    shutil.copytree(tiny_model, project / "model")
    for split, rows in (("train", 48), ("test", 12)):
        source = (REPOSITORY / "examples" / "support-tickets" / f"{split}.jsonl").read_text(encoding="utf-8")
        (project / f"{split}.jsonl").write_text("\n".join(source.splitlines()[:rows]) + "\n", encoding="utf-8")
    seen: dict[str, Any] = {}

    def call(name: str, **arguments: Any) -> list[dict[str, Any]]:
        return [use(PREFIX + name, **arguments)]

    def until_it_ends(run_id: str) -> Talk:
        for _ in range(40):
            [shown] = yield call("get_run", project="tickets", run_id=run_id, wait_seconds=30)
            run = shown.json()["run"]
            if run["state"] not in ("starting", "running"):
                break
        seen[run_id] = run

    def talk() -> Talk:
        shown: list[Shown] = yield call("inspect_model", model="model")
        model = shown[0].json()["model"]
        assert (model["layers"], model["hidden"]) == (2, 64)

        shown = yield call("audit_dataset", data="train.jsonl", model="model", test="test.jsonl")
        audit = shown[0].json()["audit"]
        assert (audit["rows"], audit["format"]) == (48, "classification")

        shown = yield call("plan_finetune", project="tickets", model="model", data="train.jsonl", test="test.jsonl")
        assert _errors(shown[0].json()) == [], shown[0].text
        assert shown[0].json()["plan"]["method"]["peft_type"] == "LORA"

        shown = yield call("generate_project", project="tickets")
        assert "train.py" in {entry["path"] for entry in shown[0].json()["written"]}

        shown = yield call("check_project", project="tickets")
        assert _errors(shown[0].json()) == [], shown[0].text
        digest = shown[0].json()["digest"]
        assert digest

        shown = yield call("start_run", project="tickets", kind="train", digest=digest, max_steps=3)
        training = shown[0].json()["run"]["id"]
        yield from until_it_ends(training)
        assert seen[training]["state"] == "done", seen[training]

        shown = yield call("start_run", project="tickets", kind="merge", digest=digest, adapter_run=training)
        merging = shown[0].json()["run"]["id"]
        yield from until_it_ends(merging)
        assert seen[merging]["state"] == "done", seen[merging]
        seen["end"] = (training, merging)
        yield [say(f"Trained in {training}, merged in {merging}.")]

    conversation = Conversation(talk)
    outcome = converse(
        claude,
        tmp_path,
        [conversation],
        allowed=tuple(PREFIX + name for name in TOOLS),
        PEFTSMITH_TRAIN_PYTHON=training_python,
        PEFTSMITH_WORKER_IDLE_SECONDS="60",
    )
    assert outcome.code == 0, outcome.stderr
    assert "Trained in" in outcome.stdout
    training, merging = seen["end"]
    runs = project / "tickets" / "runs"
    assert (runs / training / "adapter" / "adapter_model.safetensors").stat().st_size > 1000
    assert list((runs / merging / "merged").glob("*.safetensors"))
    done = json.loads((runs / training / "done.json").read_text(encoding="utf-8"))
    assert (done["ok"], done["kind"]) == (True, "train")
