"""Combinations that do not exist are refused with their finding, and then no file is written."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.first_runs import cases, trying
from peftsmith import plan
from peftsmith.project import fitness, generate
from tests.project.plans import make, write_project

INVALID = list(cases.invalid())
PROMPT = {"peft_type": "PROMPT_TUNING", "config": {"num_virtual_tokens": 4}}
ALORA = {"alora_invocation_tokens": [5, 6]}
EARLY = {"training__patience": 2, "data__eval": "data/eval.jsonl"}


def test_there_are_many_invalid_combinations_of_every_kind():
    kinds = {case.refused for case in INVALID}
    assert len(INVALID) > 100
    assert kinds >= {
        "plan",
        "plan.method.task",
        "plan.method.architecture",
        "plan.method.quantised",
        "plan.task.architecture",
    }


@pytest.mark.parametrize("refused", sorted({str(case.refused) for case in INVALID}))
def test_each_is_refused_with_its_own_finding(refused, tmp_path):
    for number, case in enumerate(each for each in INVALID if each.refused == refused):
        # What depends on the base's modules is judged where the base lies.
        found = cases.refusals(case) or trying.run(case, tmp_path / str(number), None)["findings"]
        # A target that is no layer is also a name that matches no layer.
        assert set(found) - {"model.targets.unmatched"} <= {refused} and refused in found, case.name


@pytest.mark.parametrize("place", range(0, len(INVALID), 29))
def test_nothing_is_written_for_a_refused_plan(place, tmp_path):
    case = INVALID[place]
    assert trying.run(case, tmp_path, None)["outcome"] == "refused", case.name


def test_a_base_that_cannot_be_read_is_said_to_be_unknown_where_it_matters():
    prompt = make("chat", method={"peft_type": "PREFIX_TUNING", "config": {"num_virtual_tokens": 4}})
    assert [(each.id, each.severity) for each in fitness.judge(prompt, None)] == [("plan.method.unchecked", "unknown")]
    assert fitness.judge(make("chat"), None) == []


def test_a_good_combination_is_not_refused(tmp_path):
    for case in itertools.islice(cases.valid(0), 120):
        assert fitness.judge(plan.validate(case.plan), case.config) == [], case.name


def test_a_method_that_does_not_merge_gets_no_merge_script_and_the_readme_says_so(tmp_path):
    wanted = make("chat", method={"peft_type": "PROMPT_TUNING", "config": {"num_virtual_tokens": 4}})
    project = write_project(tmp_path / "p", wanted)
    written = generate.generate(project)
    assert "merge.py" not in {each["path"] for each in written.files}
    assert "There is no merge.py" in (project / "README.md").read_text(encoding="utf-8")
    assert "--merged" not in (project / "infer.py").read_text(encoding="utf-8")


def test_methods_that_cannot_train_with_checkpointing_have_it_off_unless_it_is_asked_for():
    document = make("chat").model_dump(mode="json")
    del document["training"]
    document["method"] = {"peft_type": "PREFIX_TUNING", "config": {"num_virtual_tokens": 4}}
    assert plan.validate(document).training.gradient_checkpointing is False
    document["training"] = {"gradient_checkpointing": True}
    assert [each.id for each in fitness.judge(plan.validate(document), None) if each.severity == "error"] == [
        "plan.method.checkpointing"
    ]


@pytest.mark.parametrize(
    ("model_type", "changes", "expected"),
    [
        ("llama", {"training__packing": "bfd", "training__loss_path": "labelled"}, []),
        ("mamba", {"training__packing": "bfd", "method__target_modules": ["in_proj"]}, ["plan.packing.architecture"]),
        ("qwen3_next", {"training__packing": "bfd"}, ["plan.packing.kernel"]),
        ("a_new_type", {"training__packing": "bfd_split"}, ["plan.task.architecture", "plan.packing.untried"]),
        ("a_new_type", {"base__trust_remote_code": True}, []),
        ("llama", {"training__packing": "bfd", "method": PROMPT}, ["plan.packing.method"]),
        ("llama", {"training__packing": "bfd", "method": {"peft_type": "LILY", "rank": 4}}, ["plan.packing.method"]),
        ("llama", {"training__packing": "bfd", "method__config": ALORA}, ["plan.packing.method"]),
        ("llama", {"training__loss_path": "labelled", "method": PROMPT}, ["plan.loss.labelled"]),
        ("mixtral", {"training__loss_path": "labelled"}, ["plan.loss.labelled"]),
        (
            "llama",
            {**EARLY, "method": {"peft_type": "ADALORA", "rank": 12, "config": {"target_r": 4}}},
            ["plan.patience.method"],
        ),
        ("llama", EARLY, []),
    ],
)
def test_what_a_step_cannot_do_with_a_base_or_method(model_type, changes, expected):
    found = fitness.judge(make("chat", **changes), {"model_type": model_type})
    assert [each.id for each in found] == expected
