"""Packed rows, the loss at learnt positions and early stopping: what the plan says is what the scripts do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from peftsmith.project import twin
from peftsmith.worker import client
from tests.project.small_project import make_project, rows, write_rows


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
