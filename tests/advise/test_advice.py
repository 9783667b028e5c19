"""Tasks, worth, questions and alternatives: what comes with a plan."""

import json
from typing import get_args

import pytest

from peftsmith import plan
from peftsmith.advise import alternatives, questions, recommend, tasks, worth
from peftsmith.advise.recommend import Device, Intent, Rows
from peftsmith.data import formats
from peftsmith.errors import PeftsmithError
from peftsmith.finding import catalogue
from peftsmith.model import speed
from peftsmith.operations import parameters

ROWS = {
    "messages": {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]},
    "prompt_completion": {"prompt": "hello", "completion": "good day"},
    "text": {"text": "the parcel never came"},
    "classification": {"text": "the parcel never came", "label": "late"},
    "token_classification": {"tokens": ["the", "parcel"], "tags": ["O", "B"]},
    "seq2seq": {"source": "the parcel never came", "target": "late"},
    "qa": {"question": "where is it?", "answer": "here"},
    "context": {"question": "where is it?", "context": "It is here.", "answer": "here"},
    "squad": {
        "question": "where is it?",
        "context": "It is here.",
        "answers": {"text": ["here"], "answer_start": [6]},
    },
    "flat": {"question": "where is it?", "context": "It is here.", "answer": "here", "answer_start": 6},
    "translation": {"translation": {"de": "Guten Tag", "en": "Good day"}},
    "sharegpt": {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
}


def detected(tmp_path, name):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROWS[name]) + "\n", encoding="utf-8")
    return formats.detect(file)


@pytest.mark.parametrize(
    ("base", "rows", "goal", "task"),
    [
        ("llama", "messages", None, "chat"),
        ("llama", "prompt_completion", None, "chat"),
        ("plain", "prompt_completion", None, "completion"),
        ("llama", "text", None, "text"),
        ("llama", "text", "knowledge", "continued_pretraining"),
        ("llama", "classification", None, "classification"),
        ("plain", "classification", None, "sequence_classification"),
        ("gpt2", "text", None, "text"),
        ("bert", "classification", None, "sequence_classification"),
        ("bert", "token_classification", None, "token_classification"),
        ("t5", "seq2seq", None, "seq2seq"),
        ("t5", "qa", None, "seq2seq"),
        ("bert", "squad", None, "question_answering"),
        ("llama", "squad", None, "question_answering"),
        ("t5", "squad", None, "question_answering"),
        ("t5", "classification", None, "sequence_classification"),
    ],
)
def test_rows_and_base_choose_the_task(tmp_path, bodies, base, rows, goal, task):
    assert tasks.choose(detected(tmp_path, rows), bodies[base], None, goal) == task


@pytest.mark.parametrize(
    ("base", "rows", "task", "said"),
    [
        ("bert", "messages", None, "do not go with the encoder bert"),
        ("llama", "seq2seq", None, "do not go with the decoder llama"),
        ("llama", "seq2seq", "seq2seq", "no llama model"),
        ("llama", "messages", "classification", "format classification"),
        ("llama", "sharegpt", "chat", "prepare_dataset"),
        ("t5", "translation", None, "do not read the column 'translation.de'"),
        ("bert", "flat", None, "do not read the column 'answer_start'"),
        ("t5", "context", None, "do not read the column 'context'"),
    ],
)
def test_rows_that_do_not_go_with_base_or_task_are_refused(tmp_path, bodies, base, rows, task, said):
    with pytest.raises(PeftsmithError, match=said):
        tasks.choose(detected(tmp_path, rows), bodies[base], task)


@pytest.mark.parametrize(
    ("intent", "rows", "scores", "expected"),
    [
        (Intent(), Rows(5000, 100, 10**6), {}, []),
        (Intent(), Rows(9, 100, 900), {}, ["advise.data.far_too_small"]),
        (Intent(), Rows(49, 100, 900), {}, ["advise.data.too_small"]),
        (Intent(goal="changing_facts"), Rows(5000, 100, 10**6), {}, ["advise.goal.changing_facts"]),
        (Intent(goal="knowledge"), Rows(5000, 100, 10**5), {}, ["advise.goal.little_knowledge"]),
        (Intent(goal="knowledge"), Rows(5000, 100, 10**7), {}, []),
        (Intent(), Rows(5000, 100, 10), {"base_score": 0.9, "wanted_score": 0.8}, ["advise.base.good_enough"]),
        (Intent(), Rows(5000, 100, 10), {"base_score": 0.7, "wanted_score": 0.8}, []),
        (Intent(serving="ollama", adapters=3), Rows(5000, 100, 10), {}, ["advise.serving.several"]),
        (Intent(serving="vllm", adapters=3), Rows(5000, 100, 10), {}, []),
        (Intent(serving="vllm", adapters=3, method="ia3"), Rows(5000, 100, 10), {}, ["advise.serving.several"]),
    ],
)
def test_reasons_not_to_train(intent, rows, scores, expected):
    found = worth.judge(intent, rows, **scores)
    assert [each.id for each in found] == expected
    assert all(each.fix and each.source for each in found)


def test_only_questions_whose_answers_change_something_are_asked():
    now = questions.Outcome({"method.rank": 16, "serving": "transformers"}, frozenset({"old"}))

    def outcome_of(sets):
        if sets.get("serving") == "vllm":
            return questions.Outcome({"method.rank": 16, "serving": "vllm"}, frozenset({"old"}))
        if sets.get("gpu") == "T4":
            raise PeftsmithError("Too small", next_step="Take another.")
        if sets.get("goal") == "style":
            return questions.Outcome({"method.rank": 8, "serving": "transformers"}, frozenset({"old"}))
        if sets.get("goal") == "changing_facts":
            return questions.Outcome(now.fields, frozenset({"new"}))
        return now

    asked = {each["id"]: each["answers"] for each in questions.ask(now, {"forgetting"}, outcome_of)}
    assert set(asked) == {"gpu", "goal"}
    assert [each["refused"] for each in asked["gpu"]] == ["Too small"]
    style, facts = asked["goal"]
    assert style["changes"] == {"method.rank": [16, 8]}
    assert (facts["adds"], facts["removes"]) == (["new"], ["old"])
    assert questions.ask(now, {"gpu", "goal"}, outcome_of) == []


def test_answers_of_the_catalogue_are_things_that_can_be_said():
    for id_, entry in questions.catalogue().items():
        assert entry["question"].endswith("?")
        assert entry["why"]
        for sets in entry["answers"].values():
            assert set(sets) == {id_}
            if id_ == "gpu":
                speed.gpu(sets["gpu"])
            else:
                Intent(**sets)


def test_alternatives_have_memory_share_time_and_a_serving_verdict(bodies):
    body, rows, device = bodies["llama"], Rows(5000, 300, 10**6, 2 * 10**6), Device("cuda", 72.0, (8, 0))
    advice = recommend.recommend(body, rows, device)
    found = alternatives.compare(body, advice, rows, device, serving="vllm", gpu=speed.gpu("A100-80GB"))
    assert 3 <= len(found) <= 4
    assert found[0]["name"] == "recommended"
    assert (found[0]["method"], found[0]["rank"]) == ("LORA", advice.method["rank"])
    by_bits = {(each["method"], each["bits"]): each for each in found}
    assert by_bits["LORA", 4]["plan_with_gib"] < found[0]["plan_with_gib"] < by_bits["FULL", None]["plan_with_gib"]
    for each in found:
        assert 0 < each["share"] <= 1
        assert each["seconds"]["low"] <= each["seconds"]["likely"] <= each["seconds"]["high"]
        assert each["fits"] is (each["plan_with_gib"] <= device.memory_gib)
        assert each["serving"].startswith(("ok", "merge", "convert", "no", "unknown"))
    without = alternatives.compare(body, advice, rows, device, serving="vllm")
    assert all("seconds" not in each for each in without)


def test_an_option_that_the_server_refuses_is_in_the_verdict(bodies):
    body, rows, device = bodies["llama"], Rows(5000, 300, 10**6), Device("cuda", 72.0, (8, 0))
    advice = recommend.recommend(body, rows, device, Intent(serving="vllm", config={"use_dora": True}))
    found = alternatives.compare(body, advice, rows, device, serving="vllm")
    assert found[0]["serving"] == "merge: vllm refuses an adapter with use_dora"


def test_operations_know_the_tasks_and_servers_of_the_plan():
    assert get_args(parameters.Task) == get_args(plan.Task)
    assert get_args(parameters.ServingTarget) == get_args(plan.ServingTarget)


def test_every_finding_of_advice_is_in_the_catalogue_with_an_action():
    own = [entry for entry in catalogue().values() if entry.id.startswith(("advise.", "plan."))]
    assert len(own) > 40
    assert all(entry.fix and entry.source for entry in own)
