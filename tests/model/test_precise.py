"""Traces of the real classes, by the worker: against parameters counted by hand, against the formulas, and cached."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.machine import environment
from peftsmith.model import anatomy, memory, precise
from tests.model.test_anatomy import LLAMA_3_2_3B

SMALL = {**LLAMA_3_2_3B, "num_hidden_layers": 4, "hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 32000,
         "num_attention_heads": 8, "num_key_value_heads": 4}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    files.set_roots(["/"])
    folder = tmp_path_factory.mktemp("small")
    (folder / "config.json").write_text(json.dumps(SMALL), encoding="utf-8")
    return anatomy.inspect(str(folder))


@pytest.fixture(scope="module")
def python(training_python):
    found = environment.ask(str(training_python), "test")
    assert found is not None
    return found


@pytest.mark.training
@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "stock", "gradient_checkpointing": False, "autocast": False},
        {"loss": "stock", "attention": "flash", "batch_size": 2},
        {"method": "qlora", "loss": "stock", "gradient_checkpointing": False},
        {"method": "full", "optimizer": "adamw_torch", "loss": "stock", "gradient_checkpointing": False},
        {"method": "ia3", "targets": ["k_proj", "v_proj", "down_proj"],
         "options": {"feedforward_modules": ["down_proj"]}, "loss": "stock", "gradient_checkpointing": False},
    ],
)  # fmt: skip
def test_trace_and_formulas_agree(small, python, changes):
    """Two ways to the same number, which share no code: within 6 %, and the same trainable parameters."""
    request = replace(memory.Request(batch_size=4, sequence_length=512), **changes)
    traced, about = precise.estimate(small, request, python)
    formulas = memory.estimate(small, request)
    assert about["how"] == "traced"
    assert traced.trainable == formulas.trainable
    assert traced.allocated.likely == pytest.approx(formulas.allocated.likely, rel=0.06)
    assert traced.allocated.likely <= traced.reserved.likely <= traced.device.likely


@pytest.mark.training
def test_a_second_answer_comes_from_the_cache(small, python):
    request = memory.Request(batch_size=1, sequence_length=256)
    first, _ = precise.estimate(small, request, python)
    began = time.process_time()
    again, _ = precise.estimate(small, request, python)
    assert time.process_time() - began < 0.1 and again.reserved == first.reserved


@pytest.mark.training
def test_more_layers_than_are_traced_lie_on_the_line(small, python):
    """48 layers are extended from 16 and 32; 32 are traced as they are."""
    asked = precise.arguments_of(small, memory.Request(batch_size=1, sequence_length=128, loss="stock"))
    found = {
        layers: precise.trace({**asked, "config": {**SMALL, "num_hidden_layers": layers}}, python)["allocated"]
        for layers in (24, 32, 48)
    }
    assert found[48] - found[32] == pytest.approx(2 * (found[32] - found[24]), rel=0.01)


@pytest.mark.parametrize("changes", [{"task": "grpo"}, {"device": "cpu"}, {"attention": "eager"}])
def test_what_has_no_trace_is_refused(small, changes):
    with pytest.raises(PeftsmithError, match="no trace") as caught:
        precise.arguments_of(small, replace(memory.Request(), **changes))
    assert caught.value.next_step
