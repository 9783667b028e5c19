"""Adapters that begin with a part of the base, in real scripts: what is saved, what a second run goes on from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from peftsmith.project import twin
from peftsmith.worker import client
from tests.project.small_project import edit, make_project


@pytest.fixture(scope="module")
def environment(training_python):
    made = SimpleNamespace(interpreter=training_python, key="starts")
    yield made
    client.stop(made)
    client.stop(made, quantise=True)


def proven(folder, environment, tiny_model, *edits, **method):
    project = make_project(folder, tiny_model, method={"rank": 4, "alpha": 8, **method})
    for script, old, new in edits:
        edit(project / script, old, new)
    verdict = twin.run_twin(project, environment)
    return {each.id: each.message for each in verdict.findings if each.severity == "error"}, verdict


@pytest.mark.training
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_that_changed_its_base_loads_on_the_base_as_it_is(environment, tmp_path, tiny_model, init):
    errors, verdict = proven(tmp_path / init, environment, tiny_model, config={"init_lora_weights": init})
    assert errors == {}
    assert {"reload", "merge", "resume"} <= {each["name"] for each in verdict.seen["proofs"] if each["ok"]}


@pytest.mark.training
def test_without_a_seed_the_second_run_would_meet_another_base(environment, tmp_path, tiny_model):
    unseeded = ("train.py", "seed=SEED", "seed=time.time_ns() % 2**32")
    config = {"init_lora_weights": "pissa_niter_4"}
    errors, _ = proven(tmp_path / "project", environment, tiny_model, unseeded, config=config)
    assert list(errors) == ["twin.resume.failed"]
    assert "another part of the base" in errors["twin.resume.failed"]


@pytest.mark.training
def test_an_adapter_saved_without_conversion_is_found(environment, tmp_path, tiny_model):
    plain = ("train.py", "path_initial_model_for_weight_conversion=str(initial)", "safe_serialization=True")
    config = {"init_lora_weights": "pissa_niter_4"}
    errors, _ = proven(tmp_path / "project", environment, tiny_model, plain, config=config)
    assert "twin.reload.differs" in errors
