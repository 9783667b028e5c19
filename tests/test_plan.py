"""plan.yaml: strict fields, YAML 1.2, comments kept, migrations, helpful faults."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftsmith import plan
from peftsmith.errors import PeftsmithError

KEPT_PLANS = Path(__file__).parent / "plans"


def good(**changes) -> plan.FineTunePlan:
    document = {
        "schema_version": plan.SCHEMA_VERSION,
        "name": "tickets",
        "task": "classification",
        "base": {"model": "owner/name", "revision": "a" * 40},
        "data": {"train": "data/train.jsonl", "format": "classification", "labels": ["a", "b"]},
        **changes,
    }
    return plan.validate(document)


def test_dump_and_parse_are_inverse_and_comments_stand_beside_their_field():
    text = plan.dump(good(), {"method.rank": "capacity\nrule # 1"})
    assert plan.parse(text) == good()
    assert "rank: 16  # capacity rule # 1" in text


def test_question_answering_reads_in_windows():
    data = {"train": "t.jsonl", "format": "question_answering"}
    made = good(task="question_answering", data=data)
    assert (made.training.stride, made.training.max_answer_tokens) == (made.training.max_length // 4, 30)
    assert made.task_type == "QUESTION_ANS"
    for wrong, said in (
        ({"training": {"stride": None}}, "leave them out"),
        ({"training": {"max_length": 64, "stride": 40}}, "at most half"),
        ({"data": {**data, "format": "seq2seq"}}, "goes with data.format question_answering"),
        (
            {"task": "chat", "data": {"train": "t.jsonl", "format": "messages", "unanswerable": True}},
            "not for task chat",
        ),
    ):
        with pytest.raises(PeftsmithError, match=said):
            good(**{"task": "question_answering", "data": data, **wrong})


def test_yaml_is_1_2():
    text = (
        plan.dump(good()).replace("learning_rate: 0.0002", "learning_rate: 2e-4").replace("name: tickets", "name: off")
    )
    parsed = plan.parse(text)
    assert parsed.training.learning_rate == 2e-4
    assert parsed.name == "off"


def test_edit_keeps_comments_and_refuses_what_is_not_a_plan():
    text = plan.dump(good(), {"training.seed": "any number"})
    edited = plan.edit(text, {"training.learning_rate": 1e-3, "method.rank": 8})
    assert "# any number" in edited
    assert plan.parse(edited).method.rank == 8
    with pytest.raises(PeftsmithError, match=r"method\.rank"):
        plan.edit(text, {"method.rank": 0})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("rank: 16", "unknown key 'method.rnak', did you mean 'rank'"),
        ("seed: 0", "training.seed"),
        ("schema_version: 2", "newer schema"),
        ("name: tickets", "name"),
        ("peft_type: LORA", "no such method, did you mean LOHA"),
        ("revision: " + "a" * 40, "base.revision"),
    ],
)
def test_faults_are_named(change, said):
    wrong = {
        "rank: 16": "rnak: 16",
        "seed: 0": "seed: off",
        "schema_version: 2": "schema_version: 99",
        "name: tickets": 'name: "a; import os"',
        "peft_type: LORA": "peft_type: LOHAA",
        "revision: " + "a" * 40: "revision: main",
    }[change]
    text = plan.dump(good())
    assert change in text
    with pytest.raises(PeftsmithError) as caught:
        plan.parse(text.replace(change, wrong))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "- 1", "a: &x 1\nb: *x", "a: [", "!!python/object:os.system {}", "\x00", "[" * 1200]
)
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(PeftsmithError):
        plan.parse(text)


def test_remote_code_needs_a_pinned_commit():
    with pytest.raises(PeftsmithError, match="pinned commit"):
        good(base={"model": "owner/name", "trust_remote_code": True})


@pytest.mark.parametrize("separator", ["\x85", "\u2028", "\u2029", "\ufeff"])
def test_separators_that_yaml_would_fold_are_refused(separator):
    with pytest.raises(PeftsmithError, match="control characters"):
        good(data={"train": "t", "format": "classification", "labels": ["a", "b"], "system_prompt": f"a{separator}b"})


@given(st.text(max_size=60))
def test_any_text_survives_or_is_refused(text):
    try:
        written = good(
            data={"train": "t.jsonl", "format": "classification", "labels": ["a", "b"], "system_prompt": text}
        )
    except PeftsmithError as error:
        assert "control characters" in str(error)
    else:
        assert plan.parse(plan.dump(written)).data.system_prompt == text


def test_a_document_migrates_one_version_at_a_time(monkeypatch):
    monkeypatch.setitem(
        plan.MIGRATIONS, 0, lambda old: {**{k: v for k, v in old.items() if k != "title"}, "name": old["title"]}
    )
    document = json.loads(json.dumps(good().model_dump(mode="json")))
    old = {**{k: v for k, v in document.items() if k != "name"}, "schema_version": 0, "title": "tickets"}
    monkeypatch.setitem(plan.MIGRATIONS, 1, lambda document: document)
    assert plan.validate(plan.migrate(old)) == good()
    monkeypatch.delitem(plan.MIGRATIONS, 0)
    with pytest.raises(PeftsmithError, match="No migration"):
        plan.migrate(old)


@pytest.mark.parametrize("kept", sorted(KEPT_PLANS.glob("v*.yaml")), ids=lambda path: path.stem)
def test_plans_of_every_version_still_load(kept):
    assert plan.load(kept).schema_version == plan.SCHEMA_VERSION


def test_version_1_becomes_version_2_with_the_same_meaning():
    kept = plan.load(KEPT_PLANS / "v1.yaml")
    assert (kept.method.peft_type, kept.method.rank, kept.method.config) == ("LORA", 16, {})
    old = {
        **good().model_dump(mode="json"),
        "schema_version": 1,
        "method": {"kind": "qlora", "rank": 8, "rslora": True, "quantization": {"bits": 4}},
    }
    new = plan.validate(plan.migrate(old)).method
    assert (new.peft_type, new.rank, new.alpha, new.config) == ("LORA", 8, 32, {"use_rslora": True})
    assert new.quantization is not None and new.quantization.bits == 4
    for method in ({"kind": "qlora"}, {"kind": "lora", "quantization": {"bits": 4}}, {"kind": "dora"}):
        with pytest.raises(PeftsmithError, match=r"method\.kind"):
            plan.validate(plan.migrate({**old, "method": method}))


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"peft_type": "lora"}, "did you mean LORA"),
        ({"peft_type": "IA3", "rank": 8}, "IA3 has no rank"),
        ({"config": {"use_dorra": True}}, "did you mean 'use_dora'"),
        ({"config": {"r": 8}}, "method.rank"),
        ({"peft_type": "FULL"}, "method.reason"),
        ({"peft_type": "FULL", "reason": "r", "quantization": {"bits": 8}}, "no quantization"),
        ({"peft_type": "FULL", "reason": "r", "config": {"use_dora": True}}, "has no use_dora"),
        ({"peft_type": "PROMPT_TUNING"}, "needs method.config.num_virtual_tokens"),
        ({"config": {"rank_pattern": {"a\x00": 3}}}, "control characters"),
    ],
)
def test_a_wrong_method_is_named(method, said):
    with pytest.raises(PeftsmithError) as caught:
        good(method=method)
    assert said in str(caught.value)


def test_a_method_keeps_its_own_defaults_and_null_leaves_them_to_peft():
    assert good(method={}).method.options() == {
        "r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear",
    }  # fmt: skip
    bare = good(method={"target_modules": None, "config": {"target_parameters": ["mlp.experts.down_proj"]}}).method
    assert "target_modules" not in bare.options()
    assert plan.parse(plan.dump(good(method=bare.model_dump()))).method == bare
    assert good(method={"peft_type": "LOKR", "rank": 4}).method.options() == {"r": 4, "target_modules": "all-linear"}


def test_tasks_go_with_their_formats_and_labels():
    with pytest.raises(PeftsmithError, match=r"data\.format seq2seq"):
        good(task="seq2seq")
    with pytest.raises(PeftsmithError, match=r"two different data\.labels"):
        good(task="token_classification", data={"train": "t.jsonl", "format": "token_classification"})
    assert good(task="sequence_classification").task_type == "SEQ_CLS"


def test_the_published_schema_lists_every_method():
    listed = plan.json_schema()["$defs"]["Method"]["properties"]["peft_type"]["enum"]
    assert {"LORA", "VERA", "FULL"} <= set(listed)


def test_a_plan_of_the_present_version_is_kept():
    assert (KEPT_PLANS / f"v{plan.SCHEMA_VERSION}.yaml").exists()


def test_field_names_include_nested_parts():
    names = plan.flatten_fields(plan.FineTunePlan)
    assert {"method.rank", "method.quantization.bits", "training.learning_rate"} <= set(names)
    assert set(plan.flatten(good())) <= set(names)
    tuned = good(method={"config": {"use_dora": True, "rank_pattern": {"q_proj": 2}}})
    flat = plan.flatten(tuned)
    assert (flat["method.config.use_dora"], flat["method.config.rank_pattern"]) == (True, {"q_proj": 2})


def test_operations_name_the_same_formats():
    from typing import get_args

    from peftsmith import plan
    from peftsmith.operations import parameters

    assert get_args(parameters.DataFormat) == get_args(plan.DataFormat)
