"""Methods that are told the task of every row: the data sets of a mixture are the tasks, in the plan's order."""

from __future__ import annotations

import ast
import json
import subprocess
from types import SimpleNamespace

import pytest

from peftsmith import plan
from peftsmith.knowledge import methods
from peftsmith.project import fitness, twin
from peftsmith.worker import client
from tests.project import several
from tests.project.plans import make
from tests.project.small_project import edit

POLY = {"peft_type": "POLY", "rank": 4, "alpha": None, "config": {"n_skills": 2}}
PROMPT = {"peft_type": "MULTITASK_PROMPT_TUNING", "rank": None, "alpha": None, "config": {"num_virtual_tokens": 4}}
LLAMA = {"model_type": "llama"}
BY_TASK = {"POLY": POLY, "MULTITASK_PROMPT_TUNING": PROMPT}


@pytest.fixture(scope="module")
def environment(training_python):
    made = SimpleNamespace(interpreter=training_python, key="tasks")
    yield made
    client.stop(made)
    client.stop(made, quantise=True)


def project_of(folder, model, method, *weights):
    several.make(folder, several.document(model, adapters={}, mixture=several.mixture(*weights), method=method))
    return folder


def test_every_method_that_tells_tasks_apart_is_known():
    assert [name for name in methods.names() if methods.method(name).by_task] == sorted(BY_TASK)
    for name in BY_TASK:
        assert methods.method(name).by_task in methods.method(name).fields


@pytest.mark.parametrize("name", sorted(BY_TASK))
def test_without_a_mixture_there_are_no_tasks_to_tell_apart(name):
    (found,) = fitness.judge(make("chat", method=BY_TASK[name]), LLAMA)
    assert found.id == "plan.method.tasks" and found.severity == "error"


@pytest.mark.parametrize(("name", "field"), [("POLY", "n_tasks"), ("MULTITASK_PROMPT_TUNING", "num_tasks")])
def test_the_number_of_tasks_is_counted_and_not_stated(name, field):
    method = {**BY_TASK[name], "config": {**BY_TASK[name]["config"], field: 3}}
    wanted = plan.validate(several.document("m", adapters={}, mixture=several.mixture(), method=method))
    assert [each.id for each in fitness.judge(wanted, LLAMA)] == ["plan.method.option"]


@pytest.mark.parametrize("name", sorted(BY_TASK))
def test_every_script_knows_the_tasks_in_one_order(tmp_path, tiny_model, name):
    project = project_of(tmp_path / "project", tiny_model, BY_TASK[name])
    order = []
    for script, setting in (("train", "TRAIN_FILES"), ("evaluate", "TEST_FILES"), ("infer", "TASKS")):
        tree = ast.parse((project / f"{script}.py").read_text(encoding="utf-8"))
        [value] = [each.value for each in tree.body if isinstance(each, ast.Assign) and each.targets[0].id == setting]
        order.append(list(ast.literal_eval(value)))
    assert order == [["billing", "delivery"]] * 3
    assert not (project / "merge.py").exists()


@pytest.mark.training
@pytest.mark.parametrize("name", sorted(BY_TASK))
@pytest.mark.parametrize("weights", [(), (1.0, 3.0)])
def test_a_method_of_several_tasks_is_proven(environment, tmp_path, tiny_model, name, weights):
    verdict = twin.run_twin(project_of(tmp_path / "project", tiny_model, BY_TASK[name], *weights), environment)
    assert [each.message for each in verdict.findings] == []
    assert {each["name"] for each in verdict.seen["proofs"] if not each["ok"]} == {"merge"}


@pytest.mark.training
def test_rows_without_their_task_are_found(environment, tmp_path, tiny_model):
    project = project_of(tmp_path / "project", tiny_model, POLY)
    edit(project / "train.py", '"task_ids": tasks', '"task_idx": tasks')
    verdict = twin.run_twin(project, environment)
    assert {each.id for each in verdict.findings if each.severity == "error"} == {"twin.train.failed"}


@pytest.mark.training
def test_each_row_has_the_number_of_its_own_data_set(training_python, tmp_path, tiny_model):
    project = project_of(tmp_path / "project", tiny_model, POLY, 1.0, 3.0)
    code = "import json, train; print(json.dumps([[each['task'], str(each)] for each in train.mixed_examples(None)]))"
    done = subprocess.run([training_python, "-c", code], cwd=project, check=True, capture_output=True, encoding="utf-8")
    rows = json.loads(done.stdout.splitlines()[-1])
    assert {number for number, _ in rows} == {0, 1}
    assert all(("billing", "delivery")[number] in text for number, text in rows)
