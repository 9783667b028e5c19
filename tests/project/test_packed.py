"""Packed rows, the loss at learnt positions and early stopping: what the plan says is what the scripts do."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from peftsmith import plan
from peftsmith.errors import PeftsmithError
from peftsmith.project import mask, render, twin
from peftsmith.worker import client
from tests.project.plans import lock_for, make
from tests.project.small_project import make_project, rows, write_rows

HERE = Path(__file__).parent


def train_script(**changes):
    wanted = make("chat", **changes)
    return render.render(wanted, lock_for(wanted))["train.py"]


def test_silence_means_what_works_for_the_task():
    document = make("chat").model_dump(mode="json")
    document["training"] = {"max_length": 64}
    assert plan.validate(document).training.packing == "none"
    assert plan.validate(document).training.group_by_length is True
    document |= {"task": "continued_pretraining", "data": {**document["data"], "format": "text"}}
    assert plan.validate(document).training.packing == "wrapped"
    assert plan.validate(document).training.group_by_length is False


@pytest.mark.parametrize(
    ("task", "changes", "fault"),
    [
        ("chat", {"training__patience": 2}, "data.eval"),
        ("chat", {"training__threshold": 0.1}, "needs patience"),
        ("chat", {"training__patience": 2, "training__eval_steps": 7, "data__eval": "e.jsonl"}, "eval_steps"),
        ("chat", {"training__packing": "ffd"}, "training.packing"),
        ("sequence_classification", {"training__packing": "bfd"}, "for language models"),
        ("sequence_classification", {"training__loss_path": "labelled"}, "for language models"),
    ],
)
def test_what_makes_no_sense_is_refused(task, changes, fault):
    document = {"data__format": "classification", "data__labels": ["a", "b"]} if task != "chat" else {}
    with pytest.raises(PeftsmithError, match=fault):
        make(task, **document, **changes)


def test_a_script_has_only_the_lines_that_its_plan_needs():
    plain = train_script()
    packed = train_script(training__packing="bfd", training__loss_path="labelled")
    early = train_script(training__patience=2, training__threshold=0.01, data__eval="data/eval.jsonl")
    rare = train_script(training__attention="flash_attention_2", training__compile=True, training__dataloader_workers=2)
    assert not {"packing", "LabelledLossTrainer", "PATIENCE", "ATTENTION", "COMPILE", "DATALOADER_WORKERS"} & set(
        plain.replace("=", " ").replace("(", " ").split()
    )
    assert 'packing_strategy="bfd"' in packed and "train_sampling_strategy" not in packed
    assert "trainer = LabelledLossTrainer(" in packed
    assert "EarlyStoppingCallback(PATIENCE, THRESHOLD)" in early and "load_best_model_at_end=True" in early
    assert 'attn_implementation=ATTENTION if accelerated else "sdpa"' in rare
    assert "torch_compile=COMPILE and accelerated" in rare and "dataloader_num_workers=DATALOADER_WORKERS" in rare


@pytest.mark.parametrize("packing", ["bfd", "bfd_split", "wrapped", "none"])
def test_the_proof_of_the_mask_asks_for_what_the_script_does(tmp_path, packing):
    found = mask.settings_of(tmp_path, make("chat", training__packing=packing))
    assert found.packing is (packing != "none")
    assert packing == "none" or found.packing_strategy == packing
    assert found.flattens is packing.startswith("bfd")


@pytest.fixture(scope="module")
def environment(training_python):
    made = SimpleNamespace(interpreter=training_python, key="packed")
    yield made
    client.stop(made)


@pytest.mark.training
@pytest.mark.parametrize(
    "training",
    [
        {"packing": "bfd", "batch_size": 1, "gradient_accumulation": 2, "loss_path": "labelled", "patience": 1},
        {"packing": "bfd_split", "dataloader_workers": 1},
        {"loss_path": "labelled"},
    ],
    ids=["bfd", "bfd_split", "padded"],
)
def test_the_twin_proves_it(environment, tmp_path, tiny_model, training):
    project = tmp_path / "project"
    write_rows(project / "data" / "eval.jsonl", rows(4))
    make_project(project, tiny_model, data={"eval": "data/eval.jsonl"}, training=training)
    verdict = twin.run_twin(project, environment)
    assert verdict.findings == []
    assert all(proof["ok"] for proof in verdict.seen["proofs"])


@pytest.mark.training
@pytest.mark.parametrize("packing", ["none", "bfd"])
def test_the_loss_at_learnt_positions_is_the_trainers_own(training_python, tmp_path, tiny_model, packing):
    training = {"packing": packing, "loss_path": "labelled", "batch_size": 3, "logging_steps": 1}
    project = make_project(tmp_path / "project", tiny_model, training=training)
    argv = [training_python, HERE / "with_losses.py", project, tiny_model, tmp_path / "output"]
    done = subprocess.run([str(each) for each in argv], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout)
    assert seen["trainer"] == "LabelledLossTrainer"
    assert seen["losses"][:2] == pytest.approx(seen["losses"][2:], rel=1e-5)
    assert max(seen["gradients"]) < 1e-4
    assert seen["logged"][0]["tokens"] > 0


@pytest.mark.training
def test_flash_attention_and_compiling_are_swapped_on_a_processor_and_said(environment, tmp_path, tiny_model):
    training = {"packing": "bfd", "attention": "flash_attention_2", "compile": True}
    verdict = twin.run_twin(make_project(tmp_path / "project", tiny_model, training=training), environment)
    assert [each.id for each in verdict.findings] == ["twin.cpu.swapped"]
    assert any("flash_attention_2" in each for each in verdict.seen["swapped"])
    assert any("compil" in each for each in verdict.seen["swapped"])


@pytest.mark.training
def test_the_mask_of_packed_rows_is_proven_and_they_do_not_see_each_other(environment, tmp_path, tiny_model):
    project = make_project(tmp_path / "project", tiny_model, training={"packing": "bfd", "max_length": 96})
    seen, found = mask.prove(project, plan.load(project), environment)
    assert seen["state"] == "proven"
    assert not {"data.packing.leaks", "data.mask.differs"} & {each.id for each in found}
