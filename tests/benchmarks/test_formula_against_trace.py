"""Formulas against traces where classes differ most from Llama: eager attention, written-out parts, side-by-side."""

from __future__ import annotations

import tomllib

import pytest

from benchmarks import formula_against_trace as against
from peftsmith import files
from peftsmith.machine import environment


@pytest.mark.training
@pytest.mark.parametrize(("kind", "setting"), [("bloom", "lora"), ("gemma2", "full"), ("gptj", "qv"), ("mpt", "qlora")])
def test_formulas_are_within_six_percent_of_a_trace(training_python, kind, setting):
    files.set_roots(["/"])
    entry = tomllib.loads(against.TABLE.read_text(encoding="utf-8"))["causal"][kind]
    found = against.one("causal", kind, entry, (setting,), environment.ask(str(training_python), "test"))
    assert found[setting] == pytest.approx(0, abs=6)
