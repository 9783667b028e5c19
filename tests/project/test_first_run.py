"""A few cases of the benchmark of first runs, each of another kind: generated, vetted and proven on the twin."""

from __future__ import annotations

import json

import pytest

from benchmarks import first_run

pytestmark = pytest.mark.training
CASES = [
    {"model_type": "bert", "task": "sequence_classification", "method": {"rank": 4, "alpha": 8}},
    {
        "model_type": "t5",
        "task": "seq2seq",
        "method": {"peft_type": "IA3", "target_modules": ["k", "v"], "config": {"feedforward_modules": []}},
    },
    {
        "model_type": "gpt2",
        "task": "text",
        "method": {"peft_type": "PROMPT_TUNING", "config": {"num_virtual_tokens": 4}},
    },
]


def test_cases_of_several_kinds_are_proven(tmp_path, training_python, capsys, monkeypatch):
    (tmp_path / "cases.json").write_text(json.dumps(CASES), encoding="utf-8")
    results = tmp_path / "results.json"
    arguments = ["--cases", str(tmp_path / "cases.json"), "--results", str(results)]
    assert first_run.main(arguments) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.splitlines()[-1] == f"proven {len(CASES)} of {len(CASES)}, refused 0 of 0"
    kept = json.loads(results.read_text(encoding="utf-8"))
    assert [each["outcome"] for each in kept.values()] == ["proven"] * len(CASES)
    # A second call finds its results and runs nothing again.
    monkeypatch.setattr(first_run, "run", lambda *_: pytest.fail("a case was run again"))
    assert first_run.main(arguments) == 0
