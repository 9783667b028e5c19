"""From model and rows to a plan: values with reasons, refusals that leave nothing behind."""

import json
import shutil
from pathlib import Path

import pytest

from peftsmith import files, lock, plan
from peftsmith.advise import planner, recommend, rules
from peftsmith.advise.facts import Intent
from peftsmith.errors import PeftsmithError
from peftsmith.model import anatomy
from peftsmith.project import generate
from tests.advise import models
from tests.test_plan import good
from tests.tiny import write_tiny_model

TEXTS = ["the parcel never came", "the app closes by itself", "please send it back", "open the settings page"]


@pytest.fixture
def rows(tmp_path) -> Path:
    lines = [{"text": f"{text} {number}", "label": "ab"[number % 2]} for number in range(30) for text in TEXTS]
    return write_rows(tmp_path / "rows.jsonl", lines)


def write_rows(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_plan_carries_a_reason_with_a_source_for_each_recommended_value(tmp_path, tiny_model, rows):
    made = planner.make(tmp_path / "My project", planner.Wish(model=str(tiny_model), data=rows))
    assert made.plan == plan.load(tmp_path / "My project")
    assert made.plan.name == "my-project"
    assert made.plan.task == "classification"
    assert made.plan.data.labels == ["a", "b"]
    assert "a, b" in made.plan.data.system_prompt
    flat = plan.flatten(made.plan)
    for field, reason in made.why.items():
        assert flat[field] == reason["value"], field
        assert reason["reason"] and reason["source"] and reason["would_change"]
        assert reason["strength"] in {"measured", "practice", "arithmetic"}
    locked = lock.load(tmp_path / "My project")
    assert locked.digest is None
    assert locked.data["train"].rows == 120
    assert locked.data["train"].sha256 == files.sha256_file(rows)
    assert made.alternatives[0]["name"] == "recommended"
    assert "goal" in {each["id"] for each in made.questions}


@pytest.mark.parametrize("other", [None, "Be rude.", ""])
def test_a_system_message_of_all_rows_is_kept_for_the_time_after_training(other, tmp_path, tiny_model):
    said = ["Be kind."] * 11 + ["Be kind." if other is None else other]
    lines = [
        {
            "messages": [
                *([{"role": "system", "content": system}] if system else []),
                {"role": "user", "content": f"{TEXTS[number % 4]} {number}"},
                {"role": "assistant", "content": f"thank you for number {number}"},
            ]
        }
        for number, system in enumerate(said)
    ]
    made = planner.make(
        tmp_path / "p", planner.Wish(model=str(tiny_model), data=write_rows(tmp_path / "chats.jsonl", lines))
    )
    assert made.plan.data.system_prompt == ("Be kind." if other is None else None)


def test_the_instruction_counts_into_the_length(tmp_path, tiny_model, rows):
    short = planner.make(tmp_path / "a", planner.Wish(model=str(tiny_model), data=rows, system_prompt="Say a or b."))
    long = planner.make(
        tmp_path / "b", planner.Wish(model=str(tiny_model), data=rows, system_prompt="Say a or b. " * 20)
    )

    def longest(made):
        return int(made.why["training.max_length"]["reason"].split("longest row has ")[1].split()[0])

    assert longest(long) > longest(short)


def test_chat_rows_make_a_chat_plan(tmp_path, tiny_model):
    chats = [
        {"messages": [{"role": "user", "content": f"hello {n}"}, {"role": "assistant", "content": "good day"}]}
        for n in range(60)
    ]
    made = planner.make(
        tmp_path / "p", planner.Wish(model=str(tiny_model), data=write_rows(tmp_path / "c.jsonl", chats))
    )
    assert (made.plan.task, made.plan.data.format, made.plan.data.labels) == ("chat", "messages", [])


def test_little_memory_means_qlora_and_too_little_an_error(tmp_path, tiny_model, rows):
    body = anatomy.inspect(str(tiny_model))
    facts = recommend.Rows(count=500, longest=512, loss_tokens=1000)
    roomy = recommend.recommend(body, facts, recommend.Device("cuda", 80.0, (9, 0)))
    assert (roomy.method["quantization"], roomy.training["precision"]) == (None, "bf16")
    none = recommend.recommend(body, facts, recommend.Device("cuda", 0.001, (7, 5)))
    assert [each.id for each in none.findings] == ["advise.memory.does_not_fit"]
    assert none.method["quantization"]["bits"] == 4
    assert none.training["precision"] == "fp16"


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"model": "/no/such/model"}, "model"),
        ({"data": "empty"}, "row"),
        ({"data": "half"}, "prepare_dataset"),
    ],
)
def test_what_cannot_be_planned_leaves_nothing_behind(tmp_path, tiny_model, rows, wish, said):
    (tmp_path / "empty").write_text("", encoding="utf-8")
    write_rows(tmp_path / "half", [{"text": "x", "label": "a"}, {"text": "y"}] * 30)
    arguments = {"model": str(tiny_model), "data": rows, **wish}
    arguments["data"] = tmp_path / arguments["data"]
    with pytest.raises(PeftsmithError, match=said):
        planner.make(tmp_path / "project", planner.Wish(**arguments))
    assert not (tmp_path / "project").exists()


def test_answers_to_the_questions_go_into_the_same_folder(tmp_path, tiny_model, rows):
    """The plan asks, the user answers, it is planned again: while nobody has edited it or generated from it."""
    folder = tmp_path / "p"
    first = planner.make(folder, planner.Wish(model=str(tiny_model), data=rows, test=rows))
    assert "goal" in {each["id"] for each in first.questions}
    wish = planner.Wish(model=str(tiny_model), data=rows, intent=Intent(forgetting="little"))
    again = planner.make(folder, wish)
    assert again.plan.training.learning_rate < first.plan.training.learning_rate
    assert plan.load(folder) == again.plan
    assert set(lock.load(folder).data) == {"train"}
    other = write_rows(tmp_path / "other.jsonl", [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(60)])
    planner.make(folder, planner.Wish(model=str(tiny_model), data=other))
    assert lock.load(folder).data["train"].rows == 60
    assert (folder / "data" / "train.jsonl").read_bytes() == other.read_bytes()
    planner.make(folder, planner.Wish(model=str(tiny_model), data=folder / "data" / "train.jsonl"))
    assert (folder / "data" / "train.jsonl").read_bytes() == other.read_bytes()


def test_rows_of_ones_own_in_the_way_are_not_replaced(tmp_path, tiny_model, rows):
    folder = tmp_path / "p"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.jsonl").write_text("mine", encoding="utf-8")
    with pytest.raises(PeftsmithError, match="in the way"):
        planner.make(folder, planner.Wish(model=str(tiny_model), data=rows))
    assert (folder / "data" / "train.jsonl").read_text(encoding="utf-8") == "mine"


def test_a_folder_with_a_plan_that_was_edited_or_used_and_a_file_are_refused(tmp_path, tiny_model, rows):
    planner.make(tmp_path / "used", planner.Wish(model=str(tiny_model), data=rows))
    generate.generate(tmp_path / "used")
    with pytest.raises(PeftsmithError, match="holds a plan"):
        planner.make(tmp_path / "used", planner.Wish(model=str(tiny_model), data=rows))
    planner.make(tmp_path / "p", planner.Wish(model=str(tiny_model), data=rows))
    with (tmp_path / "p" / plan.PLAN_FILE).open("a", encoding="utf-8") as stream:
        stream.write("# mine\n")
    before = sorted(path.name for path in (tmp_path / "p").rglob("*"))
    for folder in (tmp_path / "p", rows):
        with pytest.raises(PeftsmithError):
            planner.make(folder, planner.Wish(model=str(tiny_model), data=rows))
    assert sorted(path.name for path in (tmp_path / "p").rglob("*")) == before


def test_a_failed_write_takes_back_what_it_wrote(tmp_path, tiny_model, rows, monkeypatch):
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    whole = files.write_text

    def full(path, text):
        if path.name == plan.PLAN_FILE:
            raise PeftsmithError("The disk is full", next_step="Free some space.")
        whole(path, text)

    monkeypatch.setattr(files, "write_text", full)
    with pytest.raises(PeftsmithError, match="disk is full"):
        planner.make(folder, planner.Wish(model=str(tiny_model), data=rows))
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


PLAN_MISTAKES = [
    ({"training": {"learning_rate": 2e-5}}, "plan.learning_rate.full_tuning"),
    ({"training": {"learning_rate": 0.1}}, "plan.learning_rate.too_high"),
    ({"training": {"max_length": 4096}}, "plan.max_length.above_model"),
    ({"training": {"precision": "fp16"}}, "plan.precision.fp16_trainables"),
    ({"training": {"epochs": 50.0}}, "plan.epochs.many"),
    ({"method": {"rank": 64}}, "model.targets.share_too_high"),
    ({"method": {"rank": 2, "alpha": 64}}, "plan.alpha.scale_extreme"),
    ({"method": {"target_modules": ["query_key_value"]}}, "model.targets.no_match"),
    ({"method": {"target_modules": ["q_proj", "W_pack"]}}, "model.targets.unmatched"),
    ({"method": {"config": {"use_rslora": True}}, "serving": "sglang"}, "plan.scale.lost_at_serving"),
    (
        {"method": {"config": {"init_lora_weights": "olora"}, "quantization": {"bits": 4}}, "serving": "vllm"},
        "plan.method.unserved",
    ),
    ({"method": {"rank": 512, "config": {"init_lora_weights": "pissa"}}, "serving": "vllm"}, "plan.rank.above_server"),
    ({"method": {"peft_type": "LOKR"}, "serving": "ollama"}, "plan.method.unserved"),
    ({"method": {"peft_type": "POLY"}}, "plan.method.tasks"),
    ({"method": {"rank": 1024}, "serving": "vllm"}, "plan.rank.above_server"),
    ({"base": {"model": "a/b", "revision": "a" * 40, "trust_remote_code": True}}, "plan.remote_code.allowed"),
    ({}, "advise.test.missing"),
]


@pytest.mark.parametrize(("changes", "expected"), PLAN_MISTAKES)
def test_planted_mistakes_are_found(tiny_model, changes, expected):
    body = anatomy.inspect(str(tiny_model))
    assert expected in {each.id for each in rules.check(good(**changes), body)}


def test_a_quantised_base_is_not_quantised_again(tmp_path):
    body = anatomy.inspect(
        str(write_tiny_model(tmp_path / "q", quantization_config={"quant_method": "gptq", "bits": 4}))
    )
    wanted = good(method={"quantization": {"bits": 4}})
    assert "plan.quantization.doubled" in {each.id for each in rules.check(wanted, body)}


def test_without_the_model_the_check_is_unknown_and_a_good_plan_is_clean(tiny_model):
    sound = good(
        data={
            "train": "t.jsonl",
            "test": "u.jsonl",
            "format": "classification",
            "labels": ["a", "b"],
            "system_prompt": "Say a or b.",
        },
        method={"rank": 1, "alpha": 2, "target_modules": ["q_proj"]},
        training={"max_length": 256},
    )
    assert [each.id for each in rules.check(sound, None)] == ["plan.base.unreadable"]
    assert [each.id for each in rules.check(sound, anatomy.inspect(str(tiny_model)))] == ["plan.targets.attention_only"]


TASKS = {
    "text": [{"text": f"{text} {number}"} for number in range(20) for text in TEXTS],
    "tags": [{"tokens": ["the", "parcel"], "tags": ["O", "B"]} for _ in range(60)],
    "pairs": [{"source": f"{text} {number}", "target": text} for number in range(20) for text in TEXTS],
    "answers": [
        {
            "question": f"what is in row {number}?",
            "context": f"{text} {number}",
            "answers": {"text": [text] if number % 2 else [], "answer_start": [0] if number % 2 else []},
        }
        for number in range(20)
        for text in TEXTS
    ],
    "labels": [{"sentence": f"{text} {number}", "label": "ab"[number % 2]} for number in range(20) for text in TEXTS],
}


@pytest.mark.parametrize(
    ("config", "rows", "task", "data"),
    [
        (models.LLAMA_8B, "text", "text", {}),
        (models.BERT, "tags", "token_classification", {"labels": ["B", "O"]}),
        (models.BERT, "labels", "sequence_classification", {"text_column": "sentence", "system_prompt": None}),
        (models.BERT, "answers", "question_answering", {"unanswerable": True, "columns": {}}),
        (models.T5, "pairs", "seq2seq", {"columns": {}}),
    ],
)
def test_plans_for_other_tasks_count_rows_as_their_scripts_read_them(tmp_path, config, rows, task, data):
    base = models.write(tmp_path / "base", config)
    file = write_rows(tmp_path / "rows.jsonl", TASKS[rows])
    made = planner.make(tmp_path / "p", planner.Wish(model=str(base), data=file, gpu="L4"))
    assert (made.plan.task, made.plan.data.format in plan.TASK_FORMATS[task]) == (task, True)
    for name, value in data.items():
        assert getattr(made.plan.data, name) == value
    windows = (16, 30) if task == "question_answering" else (None, None)
    assert (made.plan.training.stride, made.plan.training.max_answer_tokens) == windows
    assert {f"training.{name}" in made.why for name in ("stride", "max_answer_tokens")} == {windows[0] is not None}
    # Forty short texts would fill a sequence or two: they are not packed.
    assert (made.plan.training.packing, made.plan.training.max_length) == ("none", 64)
    assert made.why["training.packing"]["rule"] == ("packing.few_updates" if task == "text" else "packing.none")
    assert made.plan.training.group_by_length
    assert not [each for each in made.findings if each.severity == "error"]
    assert not [each for each in made.findings if each.id in ("model.architecture.not_causal", "data.rows.unsupported")]
    assert "gpu" not in {each["id"] for each in made.questions}
    assert made.alternatives[0]["seconds"]["likely"] > 0


def test_words_of_a_plan_for_another_server_gpu_and_method(tmp_path, tiny_model, rows):
    intent = Intent(method="ia3", serving="vllm", goal="changing_facts", adapters=2)
    wish = planner.Wish(
        model=str(tiny_model), data=rows, eval=rows, intent=intent, gpu="T4", base_score=0.9, wanted_score=0.8
    )
    made = planner.make(tmp_path / "p", wish)
    assert (made.plan.method.peft_type, made.plan.serving, made.plan.training.precision) == ("IA3", "vllm", "fp16")
    assert made.plan.data.eval == "data/eval.jsonl"
    assert lock.load(tmp_path / "p").data["eval"].rows == 120
    ids = {each.id for each in made.findings}
    assert {"advise.goal.changing_facts", "advise.base.good_enough", "plan.method.unserved"} <= ids
    assert "advise.serving.several" in ids
    assert not {"goal", "serving", "adapters", "gpu"} & {each["id"] for each in made.questions}


def test_a_method_that_cannot_work_leaves_nothing_behind(tmp_path, tiny_model, rows):
    for method, said in (("poly", "several tasks at once"), ("xlora", "does not save"), ("full", "reason")):
        with pytest.raises(PeftsmithError, match=said):
            planner.make(tmp_path / "p", planner.Wish(model=str(tiny_model), data=rows, intent=Intent(method=method)))
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("model_type", ["mamba", "falcon_h1"])
def test_what_is_recommended_is_not_refused_on_state_space_models(tmp_path, tiny_model, rows, model_type):
    """Layers that no adapter works on are left out of the targets."""
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    (base / "model.safetensors").unlink()
    (base / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    made = planner.make(tmp_path / "p", planner.Wish(model=str(base), data=rows))
    assert made.plan.method.target_modules
    assert "dt_proj" not in made.plan.method.target_modules and "out_proj" not in made.plan.method.target_modules
