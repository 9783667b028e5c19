"""The benchmark of first runs: its cases, plans of other people, its tables; and a shard of it on the twin."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from benchmarks import first_run
from benchmarks.first_runs import cases, plans, several, support, trying
from peftsmith import plan
from peftsmith.errors import PeftsmithError
from peftsmith.knowledge import methods
from tests.tiny import write_tiny_model

REPOSITORY = Path(__file__).resolve().parents[2]
SHARD = "4/9"  # 29 of the default run's plans, from all of its parts
HEADS = {"sequence_classification", "token_classification", "question_answering"}


def drawn(*arguments):
    return first_run.chosen_cases(first_run.parse(list(arguments)))


def test_the_whole_run_covers_what_it_must():
    wanted = [each for each in drawn() if not each.refused]
    together = [each for each in wanted if each.plan.get("adapters") or each.plan.get("mixture")]
    assert len(wanted) == first_run.COUNT + len(list(several.valid())) >= 200
    assert {each.plan["task"] for each in together} >= {"chat", "seq2seq", *HEADS}
    assert len({each.config["model_type"] for each in together}) >= 12
    assert any(each.plan.get("mixture") for each in together)
    mixed = [
        {each.get("method", {}).get("peft_type") for each in case.plan["adapters"].values()}
        for case in together
        if case.plan.get("adapters")
    ]
    assert sum(len(types) > 1 for types in mixed) >= 3
    assert len({each.name for each in wanted}) == len(wanted)
    types = {each.config["model_type"] for each in wanted}
    assert types == set(cases.kinds()) and len(types) > 20
    assert set(cases.kinds().values()) == {"decoder", "experts", "hybrid", "encoder", "encoder-decoder"}
    assert {each.plan["task"] for each in wanted} == set(plan.TASK_TYPES)
    supported = {name for name in methods.names() if not methods.method(name).unsupported}
    assert {each.plan["method"].get("peft_type", "LORA") for each in wanted} == {*supported, methods.FULL}
    quantised = [each.plan["method"].get("quantization") for each in wanted]
    assert all(quantised.count(each) >= 5 for each in cases.facts()["quantizations"].values())
    assert any(each.config.get("tie_word_embeddings") for each in wanted)
    refused = [each for each in drawn() if each.refused]
    assert len(refused) >= 60 and len({each.refused for each in refused}) >= 8


def test_a_draw_is_the_same_every_time_and_shards_are_its_parts():
    names = [each.name for each in drawn()]
    assert names == [each.name for each in drawn()]
    shards = [[each.name for each in drawn("--shard", f"{place}/5")] for place in range(5)]
    assert sorted(itertools.chain(*shards)) == sorted(names)
    assert {each.name for each in drawn("--seed", "1")} != set(names)


def test_the_shard_of_the_gate_is_spread():
    some = drawn("--shard", SHARD, "--only-valid")
    assert len(some) == 29
    assert len({each.config["model_type"] for each in some}) >= 10
    assert len({each.plan["task"] for each in some}) >= 6
    assert len({each.plan["method"].get("peft_type") for each in some}) >= 12
    assert sum(bool(each.plan["method"].get("quantization")) for each in some) >= 3


NAMES = {
    "Qwen/Qwen2.5-0.5B-Instruct": "qwen2",
    "Qwen/Qwen3-30B-A3B": "qwen3_moe",
    "Qwen/Qwen3-0.6B": "qwen3",
    "meta-llama/Llama-3.2-1B": "llama",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "llama",
    "HuggingFaceTB/SmolLM3-3B": "smollm3",
    "microsoft/deberta-v3-base": "deberta-v2",
    "microsoft/phi-2": "phi",
    "google/gemma-2b": "gemma",
    "google/gemma-2-2b-it": "gemma2",
    "google/flan-t5-base": "t5",
    "distilbert/distilbert-base-uncased": "distilbert",
    "FacebookAI/xlm-roberta-base": "xlm-roberta",
    "EleutherAI/pythia-160m": "gpt_neox",
    "mistralai/Mixtral-8x7B-v0.1": "mixtral",
    "state-spaces/mamba-130m-hf": "mamba",
    "tiiuae/Falcon-H1-0.5B-Base": "falcon_h1",
    "openai-community/gpt2": "gpt2",
    "roberta": "roberta",
    "nobody/nothing": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_the_type_behind_a_name(name):
    assert plans.type_of(name) == NAMES[name]


def document(model, **changes):
    whole = {
        "schema_version": plan.SCHEMA_VERSION,
        "name": "of-others",
        "task": "chat",
        "base": {"model": model},
        "data": {"train": "rows/mine.jsonl", "test": "rows/held-out.jsonl", "format": "messages"},
        "method": {"rank": 8, "alpha": 16},
        "training": {"precision": "fp32", "batch_size": 2, "max_length": 64, "learning_rate": 1e-2},
    }
    return {**whole, **changes}


def of_others(folder):
    """Plans as others write them: every shape of an entry, every kind of base."""
    write_tiny_model(folder / "my-model")
    labelled = {"train": "train.csv", "format": "classification", "labels": ["0", "1"], "text_column": "body"}
    heads = document(
        "FacebookAI/roberta-base", task="sequence_classification", data={**labelled, "label_column": "class"}
    )
    pythia = {"model_type": "gpt_neox", "num_hidden_layers": 3, "hidden_size": 128, "num_attention_heads": 4}
    tokens = {"peft_type": "TRAINABLE_TOKENS", "config": {"token_indices": [7, 450]}}
    return [
        document("my-model"),
        heads,
        {"plan": document("somebody/unnamed", method=tokens), "config": pythia, "refused": None},
        {"plan": document("meta-llama/Llama-3.1-8B", method={"rank": 0}), "refused": True},
        {"plan": document("t5-small"), "refused": "plan.task.architecture"},
        {"model_type": "bert", "task": "seq2seq", "method": {"rank": 4}, "refused": "plan.task.architecture"},
        document("nobody/nothing"),
    ]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".yaml", "folder"])
def test_plans_of_others_are_read_from_any_kind_of_file(tmp_path, suffix):
    entries = of_others(tmp_path)
    place = tmp_path / f"theirs{'' if suffix == 'folder' else suffix}"
    if suffix == "folder":
        place.mkdir()
        for number, entry in enumerate(entries):
            (place / f"{number}.yaml").write_text(json.dumps(entry), encoding="utf-8")
        (tmp_path / "my-model").rename(place / "my-model")
    elif suffix == ".jsonl":
        place.write_text("\n".join(map(json.dumps, entries)) + "\n", encoding="utf-8")
    else:
        place.write_text(json.dumps(entries if suffix == ".yaml" else {"plans": entries}), encoding="utf-8")
    found = plans.read(place)
    assert [each.refused for each in found] == [None, None, None, True, *["plan.task.architecture"] * 2, None]
    types = [each.config.get("model_type") for each in found]
    assert types == ["llama", "roberta", "gpt_neox", "llama", "t5", "bert", None]
    assert "nobody/nothing" in found[-1].untried
    assert len({each.name for each in found}) == len(found)


@pytest.mark.parametrize("text", ["", "[3]", '{"plan": 3}', "[", '[{"plan": {}, "refused": 3}]'])
def test_what_is_no_plan_is_named(tmp_path, text):
    (tmp_path / "wrong.json").write_text(text, encoding="utf-8")
    with pytest.raises(PeftsmithError, match=r"wrong\.json"):
        plans.read(tmp_path / "wrong.json")
    assert first_run.main(["--cases", str(tmp_path / "wrong.json")]) == 2


def test_a_refusal_counts_only_as_the_expected_one_and_without_a_script(tmp_path):
    right, wrong = drawn("--only", "no_such_field")[0], drawn("--only", "no_such_field")[1]
    assert trying.run(right, tmp_path / "a", None)["outcome"] == "refused"
    other = cases.combination("llama", "chat", wrong.plan["method"], refused="plan.task.architecture")
    assert trying.run(other, tmp_path / "b", None)["outcome"] == "not refused"
    good = cases.combination("llama", "chat", {"rank": 4}, refused=True)
    assert trying.run(good, tmp_path / "c", None)["outcome"] == "not refused"


def test_a_plan_that_reads_outside_of_its_project_is_refused_and_nothing_is_written_there(tmp_path):
    outside = {"train": "../outside.jsonl", "format": "messages"}
    (tmp_path / "theirs.json").write_text(json.dumps([document("llama", data=outside)]), encoding="utf-8")
    case = plans.read(tmp_path / "theirs.json")[0]
    result = trying.run(case, tmp_path / "work", None)
    assert result["outcome"] == "refused" and "project's folder" in result["why"][0]
    assert not list(tmp_path.rglob("outside.jsonl"))


def test_the_tables_are_those_of_the_committed_results():
    run = json.loads((REPOSITORY / support.DATA).read_text(encoding="utf-8"))
    assert (REPOSITORY / support.DATA).read_text(encoding="utf-8") == support.text(run)
    assert (REPOSITORY / support.PAGE).read_text(encoding="utf-8") == support.page(run)
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert support.readme(text, run) == text


def test_failures_are_in_the_tables():
    chosen = drawn("--only-valid")[:3]
    results = {
        each.name: {"outcome": outcome, "why": ["it fell over"], "swaps": swaps, "lacks": ["merge"], "commit": "abc"}
        for each, outcome, swaps in zip(
            chosen, ("proven", "failed", "proven with swaps"), ([], [], ["bf16"]), strict=True
        )
    }
    run = support.compact(chosen, results, {"date": "2026-11-26", "seed": 0, "versions": {"torch": "2"}})
    page = support.page(run)
    assert "Proven: 2 of 3" in page and "it fell over" in page and "| bf16 | 1 |" in page
    assert "2 of 3 plans" in support.summary(run)


@pytest.mark.training
def test_plans_of_others_are_tried_and_each_outcome_is_told(tmp_path, training_python, capsys, monkeypatch):
    (tmp_path / "theirs.json").write_text(json.dumps(of_others(tmp_path)), encoding="utf-8")
    results = tmp_path / "results.json"
    arguments = ["--cases", str(tmp_path / "theirs.json"), "--results", str(results)]
    assert first_run.main(arguments) == 1  # one base is of an unknown type, and unknown is no pass
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "proven 3 of 4 (3 without swaps, 75.0%), refused 3 of 3", printed
    kept = json.loads(results.read_text(encoding="utf-8"))
    assert [each["outcome"] for each in kept.values()] == [*["proven"] * 3, *["refused"] * 3, "unknown"]
    # A second call finds its results and runs nothing again.
    monkeypatch.setattr(first_run, "run", lambda *_: pytest.fail("a case was run again"))
    assert first_run.main(arguments) == 1


@pytest.mark.training
def test_a_shard_of_the_whole_run_is_proven(training_python, capsys):
    code = first_run.main(["--shard", SHARD, "--only-valid"])
    printed = capsys.readouterr().out
    assert code == 0 and "proven 29 of 29" in printed.splitlines()[-1], printed
