"""The generated scripts, run as a user runs them: train, go on, evaluate, merge, answer. No peftsmith on their path."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from peftsmith.project import generate
from tests.project.plans import LABELS, make, write_project

pytestmark = pytest.mark.training

NF4 = {"bits": 4, "type": "nf4", "double": True}
CASES = {
    "classification": ("classification", {}),
    "chat": ("chat", {"data__eval": "data/eval.jsonl", "training__group_by_length": False}),
    "qlora": ("chat", {"method__kind": "qlora", "method__quantization": NF4, "data__format": "prompt_completion"}),
}
# Runs in the project's folder under the training environment. What the shared prefix and batches save must not change
# what comes out: every row alone and whole is the reference.
PARITY = """
import json, sys, evaluate
evaluate.LABELS = [*evaluate.LABELS, "other thing"]
model, tokenizer = evaluate.load(sys.argv[1], evaluate.Path(sys.argv[2]))
torch = evaluate.torch
for name, parameter in model.named_parameters():
    if "lora_B" in name:
        parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
chats = [each["prompt"] for each in evaluate.read_examples(evaluate.FOLDER / evaluate.TEST_FILE)]
tokenizer.batch_decode = lambda rows, **_: [str(row.tolist()) for row in rows]
def both():
    with torch.inference_mode():
        texts = evaluate.answers(model, tokenizer, chats, lambda n: None)
        scores = []
        original = evaluate.np.zeros
        evaluate.np.zeros = lambda shape: scores.append(original(shape)) or scores[-1]
        evaluate.most_likely_labels(model, tokenizer, chats, lambda n: None)
        evaluate.np.zeros = original
    return texts, scores[0]
fast = both()
evaluate.shared_prefix = lambda prompts: []
evaluate.ROWS_AT_ONCE = evaluate.LABELS_AT_ONCE = 1
slow = both()
reference = []
for chat in chats:
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    row = []
    for ending in evaluate.label_tokens(tokenizer):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + ending])).logits[0].log_softmax(-1)
        row.append(sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(ending)))
    reference.append(row)
print(json.dumps({
    "same_texts": fast[0] == slow[0],
    "distinct_texts": len(set(fast[0])),
    "difference": float(abs(fast[1] - slow[1]).max()),
    "from_reference": float(abs(fast[1] - evaluate.np.array(reference)).max()),
    "spread": float(fast[1].max() - fast[1].min()),
}))
"""


def _run(python: str, folder: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    environment = {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.run(
        [python, *arguments],
        cwd=folder,
        env=environment,
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def _good(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _project(tmp_path: Path, tiny_model: Path, case: str) -> Path:
    task, changes = CASES[case]
    wanted = make(task, base__model=str(tiny_model), base__revision=None, **changes)
    folder = write_project(tmp_path / "project", wanted, tiny_model)
    generate.generate(folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_the_whole_way(case, training_python, tiny_model, tmp_path):
    folder = _project(tmp_path, tiny_model, case)
    output = tmp_path / "run"
    trained = _good(_run(training_python, folder, "train.py", "--output", str(output), "--max-steps", "2"))
    assert "answers end their turn" in trained and "trainable parameters: " in trained
    done = _json(output / "done.json")
    assert done["ok"] and done["kind"] == "train" and done["metrics"]["steps"] == 2 and done["peak_rss_bytes"] > 1e8
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["step"] == 1 and lines[0]["max_steps"] == 2 and lines[0]["loss"] > 0
    config = _json(output / "adapter" / "adapter_config.json")
    assert config["base_model_name_or_path"] == str(tiny_model) and config["r"] == 4
    assert (output / "adapter" / "tokenizer.json").exists()
    assert not [path for path in (output / "adapter").iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    weights = {path.name for path in (output / "checkpoints" / "checkpoint-2").glob("*.safetensors")}
    assert weights == {"adapter_model.safetensors"}

    _good(_run(training_python, folder, "train.py", "--output", str(output), "--max-steps", "4"))
    again = _json(output / "done.json")["metrics"]
    assert again["steps"] == 4 and again["resumed_from"].endswith("checkpoint-2")

    common = ["--adapter", str(output / "adapter")]
    evaluated = ["evaluate.py", *common, "--output", str(tmp_path / "evaluated"), "--max-steps", "2"]
    _good(_run(training_python, folder, *evaluated))
    evaluation = _json(tmp_path / "evaluated" / "evaluation.json")
    assert evaluation["rows"] == 2
    assert len((tmp_path / "evaluated" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    if case == "classification":
        assert set(evaluation["baselines"]) == {
            "base_answer",
            "base_likeliest_label",
            "base_likeliest_label_per_token",
            "base_3_shot",
            "majority",
        }
        low, high = evaluation["gain_95_percent_interval"]
        assert low <= evaluation["gain"] <= high and set(evaluation["per_label"]) == set(LABELS)
        assert evaluation["gain"] == evaluation["accuracy"] - evaluation["baselines"][evaluation["best_baseline"]]
    else:
        assert evaluation["tuned_loss"] < evaluation["base_loss"]
        assert len(evaluation["samples"]) == 2

    _good(_run(training_python, folder, "merge.py", *common, "--output", str(tmp_path / "merge")))
    merge = _json(tmp_path / "merge" / "done.json")["metrics"]
    assert merge["changed_matrices"] == merge["adapted_matrices"] == 14 and merge["dtype"] == "float32"
    assert merge["max_abs_logit_difference"] <= merge["tolerance"] < merge["max_abs_logit_change_from_base"]
    merged = tmp_path / "merge" / "merged"
    assert not (tmp_path / "merge" / "merged.partial").exists() and (merged / "tokenizer.json").exists()

    ask = ["--max-new-tokens", "5"]
    spoken = _good(_run(training_python, folder, "infer.py", "--merged", str(merged), *ask, stdin="where is it"))
    adapted = _good(_run(training_python, folder, "infer.py", *common, *ask, "--prompt", "where is it"))
    assert case == "qlora" or spoken == adapted


def test_a_faulty_run_fails_loudly(training_python, tiny_model, tmp_path):
    folder = _project(tmp_path, tiny_model, "classification")
    script = folder / "train.py"
    whole = script.read_text(encoding="utf-8")
    rows = (folder / "data" / "train.jsonl").read_text(encoding="utf-8")
    train = ["train.py", "--output", str(tmp_path / "run"), "--max-steps", "6"]

    (folder / "data" / "train.jsonl").write_text(rows + '{"text": "x", "label": "new"}\n', encoding="utf-8")
    done = _run(training_python, folder, *train, "--max-steps", "9")
    assert done.returncode != 0 and "train.jsonl, row 13" in done.stderr and "'new' is not in LABELS" in done.stderr
    (folder / "data" / "train.jsonl").write_text(rows, encoding="utf-8")

    script.write_text(whole.replace("MAX_LENGTH = 256", "MAX_LENGTH = 8"), encoding="utf-8")
    done = _run(training_python, folder, *train)
    assert done.returncode != 0 and "no row has a token to learn" in done.stderr

    script.write_text(whole.replace("LEARNING_RATE = 0.01", "LEARNING_RATE = 1e30"), encoding="utf-8")
    done = _run(training_python, folder, *train)
    assert done.returncode != 0 and "FloatingPointError" in done.stderr
    assert not (tmp_path / "run" / "done.json").exists()


def test_an_untrained_adapter_is_not_merged(training_python, tiny_model, tmp_path):
    folder = _project(tmp_path, tiny_model, "chat")
    script = folder / "train.py"
    text = script.read_text(encoding="utf-8")
    script.write_text(text.replace("LEARNING_RATE = 0.01", "LEARNING_RATE = 0.0"), encoding="utf-8")
    _good(_run(training_python, folder, "train.py", "--output", str(tmp_path / "run"), "--max-steps", "1"))
    done = _run(
        training_python, folder, "merge.py", "--adapter", str(tmp_path / "run" / "adapter"), "--output", str(tmp_path)
    )
    assert done.returncode != 0 and "the adapter is empty" in done.stderr
    assert not (tmp_path / "merged").exists() and not (tmp_path / "done.json").exists()


def test_shared_prefix_and_batches_change_nothing(training_python, tiny_model, tmp_path):
    folder = _project(tmp_path, tiny_model, "classification")
    _good(_run(training_python, folder, "train.py", "--output", str(tmp_path / "run"), "--max-steps", "1"))
    done = _run(training_python, folder, "-c", PARITY, str(tiny_model), str(tmp_path / "run" / "adapter"))
    seen = json.loads(_good(done).splitlines()[-1])
    assert seen["same_texts"] and seen["distinct_texts"] > 1
    assert seen["spread"] > 1.0
    assert seen["difference"] < 1e-3 and seen["from_reference"] < 1e-3
