"""A plan that was edited by hand is held against its base and every rule before a file is written, and when checked."""

from __future__ import annotations

import pytest

from peftsmith import files, lock, plan
from peftsmith.project import generate, plan_check
from tests.project.small_project import make_project


@pytest.fixture
def project(tmp_path, tiny_model):
    return make_project(tmp_path / "project", tiny_model)


def edited(project, **changes):
    text = plan.edit(files.read_text(project / plan.PLAN_FILE), {k.replace("__", "."): v for k, v in changes.items()})
    files.write_text(project / plan.PLAN_FILE, text)
    return generate.generate(project)


WRONG = {
    "model.targets.no_match": {"method__target_modules": ["c_attn"]},
    "model.targets.unmatched": {"method__target_modules": ["q_proj", "v_prj"]},
    "plan.learning_rate.too_high": {"training__learning_rate": 0.9},
    "plan.max_length.above_model": {"training__max_length": 100_000},
    "plan.data.same_file": {"data__test": "data/train.jsonl"},
    "plan.method.unserved": {
        "serving": "vllm",
        "method": {"peft_type": "PROMPT_TUNING", "config": {"num_virtual_tokens": 4}},
        "training__gradient_checkpointing": False,
    },
}


@pytest.mark.parametrize("refused", WRONG)
def test_a_plan_that_is_wrong_on_its_base_writes_no_file(refused, project):
    before = (project / "train.py").read_bytes()
    written = edited(project, **WRONG[refused])
    assert {each.id for each in written.findings} == {refused}
    assert written.files == [] and (project / "train.py").read_bytes() == before


def test_warnings_are_left_to_the_check(project):
    written = edited(project, training__learning_rate=0.02)
    assert written.files and written.findings == []
    judged = plan_check.judge(plan.load(project), lock.load(project))
    assert ("plan.learning_rate.too_high", "warning") in {(each.id, each.severity) for each in judged}


def test_what_needs_a_base_that_is_not_here_is_unknown(project):
    away = lock.load(project).model_copy(update={"base": {"model": "owner/model", "model_type": "llama"}})
    judged = plan_check.judge(plan.load(project), away)
    assert ("plan.base.unreadable", "unknown") in {(each.id, each.severity) for each in judged}
    assert not [each for each in judged if each.severity == "error"]


def test_a_share_that_stands_in_the_plan_is_no_reason_to_refuse_it(project):
    written = edited(project, method__rank=64)
    assert written.files and not [each for each in written.findings if each.severity == "error"]
    judged = plan_check.judge(plan.load(project), lock.load(project))
    assert ("model.targets.share_too_high", "warning") in {(each.id, each.severity) for each in judged}
