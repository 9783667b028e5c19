"""Runs of several adapters: progress, losses and artefacts of each, and which one is evaluated or merged."""

import shutil

import pytest

from peftsmith.errors import PeftsmithError
from peftsmith.run import judge, start, store
from tests.adapter.make import lora, write
from tests.project import several


def row(adapter, part, step, **values):
    return {
        "step": step,
        "max_steps": 10,
        "adapter": adapter,
        "part": part,
        "parts": 2,
        "seconds": 1.0 * step,
        **values,
    }


def test_progress_is_that_of_all_adapters():
    assert judge.progress([row("a", 0, 5)], ended=False)["share"] == 0.25
    at = judge.progress([row("a", 0, 10), row("b", 1, 5)], ended=False)
    assert (at["step"], at["total"], at["share"]) == (5, 10, 0.75)
    assert judge.progress([{**row("a", 0, 5), "part": 7}], ended=False)["share"] == 0.5


def test_a_loss_that_does_not_fall_is_said_of_its_adapter():
    falling = [row("a", 0, step, loss=5.0 / (step + 1)) for step in range(40)]
    flat = [row("b", 1, step, loss=5.0) for step in range(40)]
    found = judge.metrics(falling + flat, kind="train", state="done")
    assert [(each.id, each.evidence["adapter"]) for each in found] == [("run.loss.flat", "b")]
    again = [row("b", 1, step, loss=5.0 / (step + 1)) for step in range(40)]
    assert judge.metrics(falling + again, kind="train", state="done") == []


def test_each_adapter_of_a_run_is_looked_into(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "adapters" / name, lora())
    assert judge.artefacts(tmp_path) == []
    shutil.rmtree(tmp_path / "adapters" / "b")
    (tmp_path / "adapters" / "b").mkdir()
    assert [each.id for each in judge.artefacts(tmp_path)] == ["run.adapter.missing"]


def test_an_evaluation_needs_the_name_of_the_adapter(tmp_path, tiny_model):
    project = tmp_path / "project"
    several.make(project, several.document(tiny_model))
    run = store.create(project, "train", ["python", "train.py"], project)
    write(run.folder / "adapters" / "billing", lora())
    assert start._adapter(project, "evaluate", run.id, "billing") == run.folder / "adapters" / "billing"
    for name in (None, "nobody", "../billing"):
        with pytest.raises(PeftsmithError, match="no adapter of this plan"):
            start._adapter(project, "merge", run.id, name)
    with pytest.raises(PeftsmithError, match="no adapter_config"):
        start._adapter(project, "evaluate", run.id, "delivery")
