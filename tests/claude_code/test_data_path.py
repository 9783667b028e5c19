"""From faulty rows to a proven project by the data tools, in the real client: audit, prepare, proof, fix, twin."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.claude_code.harness import PREFIX, converse
from tests.claude_code.messages_api import Conversation, Shown, Talk, use
from tests.tiny import write_tiny_model

pytestmark = [pytest.mark.system, pytest.mark.training]

TOOLS = (
    *("audit_dataset", "prepare_dataset", "show_dataset", "plan_finetune", "generate_project", "check_project"),
    "apply_fix",
)
# Claude Code warns from 10,000 tokens on; JSON has about three characters a token.
LARGEST_RESULT = 30_000
TOO_SHORT = 24


def _sharegpt(number: int) -> dict[str, Any]:
    said = (("system", "Answer briefly."), ("human", f"What is {number} + 1?"), ("gpt", f"It is {number + 1}."))
    return {"conversations": [{"from": role, "value": text} for role, text in said]}


def _ids(shown: Shown, *severities: str) -> set[str]:
    return {each["id"] for each in shown.json()["findings"] if each["severity"] in severities}


def test_from_faulty_rows_to_a_proven_project(claude, tmp_path, training_python):
    project = tmp_path / "project"
    write_tiny_model(project / "model")
    rows = [_sharegpt(number) for number in range(60)]
    rows += [rows[0], {"conversations": [{"from": "human", "value": "Nobody answers."}]}]
    (project / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    reached = []

    def call(name: str, **arguments: Any) -> Any:
        reached.append(name)
        return [use(PREFIX + name, **arguments)]

    def talk() -> Talk:
        [misspelt] = yield call("audit_dataset", data="row.jsonl", model="model")
        assert misspelt.is_error and "Check the spelling" in misspelt.text
        [audit] = yield call("audit_dataset", data="rows.jsonl", model="model")
        assert audit.json()["audit"]["format"] == "sharegpt"
        assert {"data.rows.duplicate", "data.rows.ends_with_user"} & _ids(audit, "error", "warning"), audit.text

        [prepared] = yield call("prepare_dataset", data="rows.jsonl", output="split")
        assert (prepared.json()["prepared"]["read"], prepared.json()["prepared"]["rejected"]) == (62, 2)
        [clean] = yield call("audit_dataset", data="split/train.jsonl", model="model", test="split/test.jsonl")
        assert _ids(clean, "error") == set(), clean.text
        [seen] = yield call("show_dataset", data="split/train.jsonl", model="model", rows=2)
        assert any(piece["trained"] for piece in seen.json()["rows"][0]["pieces"])

        files = {"data": "split/train.jsonl", "eval": "split/eval.jsonl", "test": "split/test.jsonl"}
        [planned] = yield call("plan_finetune", project="sums", model="model", **files)
        assert planned.json()["plan"]["task"] == "chat"
        [again] = yield call("plan_finetune", project="sums", model="model", **files, goal="style")
        assert "goal" not in {each["id"] for each in again.json()["questions"]}, again.text
        plan = project / "sums" / "plan.yaml"
        text = plan.read_text(encoding="utf-8")
        before = next(line for line in text.splitlines() if line.strip().startswith("max_length:"))
        plan.write_text(text.replace(before, f"  max_length: {TOO_SHORT}"), encoding="utf-8")
        yield call("generate_project", project="sums")
        [cut] = yield call("check_project", project="sums")
        assert cut.json()["digest"] is None
        [fault] = [
            each for each in cut.json()["findings"] if "patch" in each["evidence"] and each["severity"] == "error"
        ]

        [offered] = yield call("apply_fix", project="sums", finding_id=fault["id"])
        assert f"max_length: {TOO_SHORT}" in plan.read_text(encoding="utf-8")
        [applied] = yield call("apply_fix", project="sums", finding_id=fault["id"], confirm=True)
        assert not (offered.is_error or applied.is_error), offered.text + applied.text
        yield call("generate_project", project="sums")
        [checked] = yield call("check_project", project="sums")
        result = checked.json()
        assert result["digest"], checked.text
        assert result["proofs"]["mask"]["state"] == "proven"
        assert result["proofs"]["twin"]["ok"] is True

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
    assert reached[-1] == "check_project" and len(reached) == len(conversation.results)
    sizes = {name: len(shown.text) for name, shown in zip(reached, conversation.results, strict=True)}
    assert max(sizes.values()) < LARGEST_RESULT, sizes
