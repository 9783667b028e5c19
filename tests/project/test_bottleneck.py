"""Bottleneck adapters out of the library adapters: checked options, refusals, scripts; in the system tier the twin."""

from __future__ import annotations

import ast
import json
import subprocess

import pytest
import ruff

from benchmarks.first_runs import cases, trying
from peftsmith import plan
from peftsmith.advise import planner
from peftsmith.advise.document import Wish
from peftsmith.advise.facts import Intent
from peftsmith.errors import PeftsmithError
from peftsmith.knowledge import methods
from peftsmith.machine import environment
from peftsmith.project import fitness, generate, render
from tests.project.plans import lock_for, make

HOULSBY = {"peft_type": "BOTTLENECK_HOULSBY"}
GPT2 = {"model_type": "gpt2"}


def test_they_are_no_peft_types_and_are_known_by_name():
    assert methods.bottlenecks() == ("BOTTLENECK_HOULSBY", "BOTTLENECK_PARALLEL", "BOTTLENECK_PFEIFFER")
    assert not set(methods.bottlenecks()) & set(methods.names())
    assert {methods.method(each).config for each in methods.bottlenecks()} == {
        "DoubleSeqBnConfig", "ParBnConfig", "SeqBnConfig",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config": {"reduction_facto": 8}}, "did you mean 'reduction_factor'"),
        ({"config": {"non_linearity": 3}}, "non_linearity takes text"),
        ({"rank": 8}, "has no rank"),
    ],
)
def test_options_are_held_against_the_library(changes, said):
    with pytest.raises(PeftsmithError, match=said):
        make("chat", method={**HOULSBY, **changes})


@pytest.mark.parametrize(
    ("changes", "config", "expected"),
    [
        ({}, GPT2, []),
        ({}, {"model_type": "llama", "rope_theta": 10000.0}, []),
        ({}, {"model_type": "llama", "rope_parameters": {"rope_theta": 1e4}}, ["plan.method.architecture"]),
        ({}, {"model_type": "qwen2"}, ["plan.method.architecture"]),
        ({"method__quantization": {"bits": 4}}, GPT2, ["plan.method.quantised"]),
        ({"training__packing": "bfd"}, GPT2, ["plan.method.library"]),
        ({"training__optimizer": "adamw_8bit"}, GPT2, ["plan.method.library"]),
        ({"training__gradient_checkpointing": True}, GPT2, ["plan.method.checkpointing"]),
        ({"training__loss_path": "labelled"}, GPT2, ["plan.loss.labelled"]),
    ],
)
def test_what_the_scripts_do_not_do_is_refused(changes, config, expected):
    found = fitness.judge(make("chat", method={**HOULSBY}, **changes), config)
    assert [each.id for each in found if each.severity == "error"] == expected


def test_classification_by_generation_and_several_adapters_are_refused():
    found = fitness.judge(make("classification", method={**HOULSBY}), GPT2)
    assert [each.id for each in found] == ["plan.method.library"]
    document = make("chat", method={**HOULSBY}).model_dump(mode="json")
    for split in ("train", "eval", "test"):
        document["data"].pop(split)
    document["adapters"] = {name: {"train": f"data/{name}.jsonl"} for name in ("a", "b")}
    found = fitness.judge(plan.validate(document), GPT2)
    assert "plan.adapters.method" in [each.id for each in found]


@pytest.mark.parametrize("name", methods.bottlenecks())
@pytest.mark.parametrize("changes", [{}, {"data__eval": "data/eval.jsonl", "training__patience": 2}])
def test_scripts_are_formatted_and_of_the_older_transformers(name, changes):
    wanted = make("chat", method={"peft_type": name, "config": {"reduction_factor": 8}}, **changes)
    written = render.render(wanted, lock_for(wanted))
    assert "merge.py" not in written and "REDUCTION_FACTOR = 8" in written["train.py"]
    assert "transformers==4.57.6" in written["requirements.txt"] and "adapters==1.3.0" in written["requirements.txt"]
    assert "import adapters" in written["README.md"] and "PeftModel" not in "".join(written.values())
    for script, text in written.items():
        if script.endswith(".py"):
            ast.parse(text)
            argv = [ruff.find_ruff_bin(), "format", "--isolated", "--no-cache", "--stdin-filename", script, "-"]
            done = subprocess.run(argv, input=text, capture_output=True, encoding="utf-8", check=True)
            assert done.stdout == text, script


def test_an_environment_without_the_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PEFTSMITH_ADAPTERS_PYTHON", str(tmp_path / "python"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PeftsmithError, match="library adapters"):
        environment.require(tmp_path, library="adapters")


@pytest.mark.system
@pytest.mark.parametrize("name", methods.bottlenecks())
@pytest.mark.parametrize(
    ("model_type", "task", "training"),
    [
        ("gpt2", "chat", {"patience": 2}),
        ("llama", "text", {"precision": "bf16"}),
        ("llama", "chat", {"gradient_accumulation": 2}),
        ("mistral", "completion", {"eval_steps": 1}),
    ],
)
def test_the_twin_trains_saves_reloads_and_resumes(name, model_type, task, training, tmp_path):
    case = cases.combination(model_type, task, {"peft_type": name, "config": {"reduction_factor": 4}}, training)
    found = environment.require(trying.REPOSITORY, library="adapters")
    result = trying.run(case, tmp_path, found)
    assert result["outcome"] == "proven", result
    assert result["lacks"] == ["merge"]


def test_planning_says_how_to_get_there(tmp_path, tiny_model):
    """As a user goes: plan with LORA, write the method into plan.yaml without LORA's fields, generate."""
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]}
        for n in range(40)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    wish = Wish(str(tiny_model), data, intent=Intent(method="bottleneck_houlsby"))
    with pytest.raises(PeftsmithError, match="No memory is estimated"):
        planner.make(tmp_path / "p", wish)
    planner.make(tmp_path / "p", Wish(str(tiny_model), data))
    document = plan.load(tmp_path / "p").model_dump(mode="json")
    document["method"] = dict(HOULSBY)
    document["training"] |= {"packing": "none", "loss_path": "fused"}
    (tmp_path / "p" / plan.PLAN_FILE).write_text(plan.dump(plan.validate(document), {}), encoding="utf-8")
    written = generate.generate(tmp_path / "p")
    assert {each["path"] for each in written.files} >= {"train.py", "infer.py"}
    assert "DoubleSeqBnConfig" in (tmp_path / "p" / "train.py").read_text(encoding="utf-8")
