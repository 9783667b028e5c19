"""The loss-mask proof of a project: in the lock, and void as soon as data, settings or tokenizer change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from peftsmith import files, lock, plan
from peftsmith.errors import PeftsmithError
from peftsmith.machine import environment
from peftsmith.project import check, generate, mask
from peftsmith.run import start
from tests.project.small_project import make_project, write_rows

pytestmark = pytest.mark.training


@pytest.fixture
def project(tmp_path, tiny_model, training_python):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    return make_project(tmp_path / "project", model)


def test_the_proof_is_in_the_lock_and_start_run_holds_on_to_it(project, tmp_path):
    checked = check.check(project, twin=False)
    kept = lock.load(project).proofs["mask"]
    assert kept["state"] == "proven"
    assert kept["counts"]["rows"] == kept["counts"]["kept"] == 24
    assert kept["shown"][0]["trained"] == ["billing<|im_end|>\n"]
    assert checked.proofs["mask"]["digest"] == kept["digest"]
    assert mask.changed_since(project, lock.load(project)) == []

    template = tmp_path / "model" / "chat_template.jinja"
    before = template.read_text(encoding="utf-8")
    template.write_text(before.replace("<|im_end|>", ""), encoding="utf-8")
    with pytest.raises(PeftsmithError, match=r"chat_template\.jinja"):
        start.start(project, kind="smoke", digest=checked.digest, adapter_run=None, max_steps=1)
    template.write_text(before, encoding="utf-8")
    assert mask.changed_since(project, lock.load(project)) == []

    path = project / plan.PLAN_FILE
    text = path.read_text(encoding="utf-8")
    path.write_text(plan.edit(text, {"training.max_length": 64}), encoding="utf-8")
    assert mask.changed_since(project, lock.load(project)) == ["the settings that decide about labels"]
    path.write_text(text, encoding="utf-8")
    (project / "data" / "train.jsonl").write_text(
        json.dumps({"text": "a", "label": "billing"}) + "\n", encoding="utf-8"
    )
    assert mask.changed_since(project, lock.load(project)) == ["data.train (data/train.jsonl)"]


def test_a_template_that_never_ends_a_turn_takes_the_digest(project, tmp_path):
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8").replace("<|im_end|>", ""), encoding="utf-8")
    checked = check.check(project, twin=False)
    assert checked.digest is None
    assert "data.tokens.end_untrained" in {each.id for each in checked.findings}
    assert checked.proofs["mask"]["state"] == "proven", "the fast path agrees with the trainer that nothing ends"


def test_remote_code_is_not_proven(project):
    text = (project / plan.PLAN_FILE).read_text(encoding="utf-8")
    wanted = plan.parse(plan.edit(text, {"base.trust_remote_code": True, "base.revision": "0" * 40}))
    kept, findings = mask.prove(project, wanted, None)
    assert kept["state"] == "unknown"
    assert [each.severity for each in findings] == ["unknown"]


def test_an_offered_fix_is_applied_only_when_asked_and_mends_the_finding(tmp_path, tiny_model, training_python):
    """Qwen3's own template drops reasoning from earlier turns; TRL's training template for it does not."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    place = next(Path(training_python).parent.parent.glob("lib/python*/site-packages/trl/chat_templates/qwen3.jinja"))
    shutil.copy(place, model / "chat_template.jinja")
    project = make_project(tmp_path / "project", model)
    turns = [
        {"role": "user", "content": "where is it"},
        {"role": "assistant", "content": "here", "reasoning_content": "the parcel came"},
        {"role": "user", "content": "and the money"},
        {"role": "assistant", "content": "back", "reasoning_content": "it was taken twice"},
    ]
    write_rows(project / "data" / "train.jsonl", [{"messages": turns}] * 6)
    write_rows(project / "data" / "test.jsonl", [{"messages": turns}])
    text = (project / plan.PLAN_FILE).read_text(encoding="utf-8")
    chat = {"task": "chat", "data.format": "messages", "data.labels": [], "data.system_prompt": None}
    files.write_text(project / plan.PLAN_FILE, plan.edit(text, chat))
    generate.generate(project)

    first = {each.id: each for each in check.check(project, twin=False).findings}
    assert first["data.template.reasoning_stripped"].evidence["patch"] == {
        "training.chat_template": "training_template.jinja"
    }
    with pytest.raises(PeftsmithError, match="no fix"):
        mask.apply(project, "data.tokens.double_bos", confirm=True)
    before = (project / plan.PLAN_FILE).read_text(encoding="utf-8")
    shown = mask.apply(project, "data.template.reasoning_stripped", confirm=False)
    assert shown["files"] == ["training_template.jinja"] and not shown["applied"]
    assert (project / plan.PLAN_FILE).read_text(encoding="utf-8") == before
    assert mask.apply(project, "data.template.reasoning_stripped", confirm=True)["applied"]
    generate.generate(project)
    again = check.check(project, twin=False)
    assert "data.template.reasoning_stripped" not in {each.id for each in again.findings}
    assert again.proofs["mask"]["state"] == "proven"
    assert "chat_template_path" in (project / "train.py").read_text(encoding="utf-8")
    (project / "training_template.jinja").write_text("{{ 1 }}", encoding="utf-8")
    assert "the settings that decide about labels" in mask.changed_since(project, lock.load(project))


def test_every_task_of_the_scripts_is_proven(project):
    found = environment.require(project)
    document = plan.load(project).model_dump(mode="json")
    document["training"] = {name: value for name, value in document["training"].items() if value is not None}
    kinds = {
        "text": ("text", [{"text": f"the parcel {number}"} for number in range(9)]),
        "continued_pretraining": ("text", [{"text": f"the parcel {number}"} for number in range(9)]),
        "completion": ("prompt_completion", [{"prompt": "where", "completion": f"here {n}"} for n in range(9)]),
        "sequence_classification": ("classification", [{"text": f"t {n}", "label": "ab"[n % 2]} for n in range(9)]),
        "token_classification": ("token_classification", [{"tokens": ["x", "yy"], "tags": ["a", "b"]}] * 9),
        "question_answering": (
            "question_answering",
            [
                {"question": "where", "context": f"here {n}", "answers": {"text": ["here"], "answer_start": [0]}}
                for n in range(9)
            ],
        ),
        "seq2seq": ("seq2seq", [{"source": f"read {number}", "target": "write"} for number in range(9)]),
    }
    for task, (form, rows) in kinds.items():
        write_rows(project / "data" / "train.jsonl", rows)
        labels = ["a", "b"] if task.endswith("_classification") else []
        data = {**document["data"], "format": form, "labels": labels, "system_prompt": None}
        kept, _ = mask.prove(project, plan.validate({**document, "task": task, "data": data}), found)
        assert kept["state"] == "proven", task
