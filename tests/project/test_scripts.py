"""The generated scripts, run as a user runs them: train, go on, evaluate, merge, answer. No peftsmith on their path."""

from __future__ import annotations

import json
import os
import re
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
    "qlora": ("chat", {"method__quantization": NF4, "data__format": "prompt_completion"}),
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


# Several scripts in one process, since importing the libraries takes longer than all the rest. Reads [[script, argv,
# standard input]], prints one JSON line for each: {"error": traceback or null, "printed": text}.
IN_TURN = """
import contextlib, importlib, io, json, sys, traceback
for name, argv, typed in json.load(sys.stdin):
    printed, error = io.StringIO(), None
    sys.stdin = io.StringIO(typed)
    try:
        with contextlib.redirect_stdout(printed):
            importlib.import_module(name).main(argv)
    except Exception:
        error = traceback.format_exc()
    print("\\n" + json.dumps({"error": error, "printed": printed.getvalue()}), flush=True)
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


def _in_turn(python: str, folder: Path, *steps: tuple[str, list[str]], typed: str = "") -> list[dict[str, str | None]]:
    asked = json.dumps([[name, argv, typed] for name, argv in steps])
    done = _run(python, folder, "-c", IN_TURN, stdin=asked)
    assert done.returncode == 0, done.stderr[-4000:]
    seen = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"error": ')]
    assert len(seen) == len(steps)
    return seen


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
    if case == "qlora":  # NF4 is slow on a processor
        script = folder / "evaluate.py"
        text = script.read_text(encoding="utf-8")
        script.write_text(text.replace("NEW_TOKENS = 128", "NEW_TOKENS = 8"), encoding="utf-8")
    output, evaluated, merged = tmp_path / "run", tmp_path / "evaluated", tmp_path / "merge" / "merged"
    common = ["--adapter", str(output / "adapter")]
    ask = ["--max-new-tokens", "5"]
    first, again, measured, joined, spoken, adapted = _in_turn(
        training_python,
        folder,
        ("train", ["--output", str(output), "--max-steps", "2"]),
        ("train", ["--output", str(output), "--max-steps", "4"]),
        ("evaluate", [*common, "--output", str(evaluated), "--max-steps", "2"]),
        ("merge", [*common, "--output", str(tmp_path / "merge")]),
        ("infer", ["--merged", str(merged), *ask]),
        ("infer", [*common, *ask, "--prompt", "where is it"]),
        typed="where is it\n",
    )
    for seen in (first, again, measured, joined, spoken, adapted):
        assert seen["error"] is None, seen["error"]
    assert "answers end their turn" in first["printed"] and "trainable parameters: " in first["printed"]
    done = _json(output / "done.json")
    assert done["ok"] and done["kind"] == "train" and done["peak_rss_bytes"] > 1e8
    assert done["metrics"]["steps"] == 4 and done["metrics"]["resumed_from"].endswith("checkpoint-2")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["step"] == 1 and lines[0]["max_steps"] == 2 and lines[0]["loss"] > 0
    assert lines[-1]["step"] == lines[-1]["max_steps"] == 4
    config = _json(output / "adapter" / "adapter_config.json")
    assert config["base_model_name_or_path"] == str(tiny_model) and config["r"] == 4
    assert (output / "adapter" / "tokenizer.json").exists()
    assert not [path for path in (output / "adapter").iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    for step in (2, 4):
        weights = {path.name for path in (output / "checkpoints" / f"checkpoint-{step}").glob("*.safetensors")}
        assert weights == {"adapter_model.safetensors"}

    evaluation = _json(evaluated / "evaluation.json")
    assert evaluation["rows"] == len((evaluated / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    if case == "classification":
        _check_classification(evaluation)
    else:
        assert evaluation["tuned_loss"] < evaluation["base_loss"]
        assert len(evaluation["samples"]) == 2 and evaluation["samples"][1]["row"] == 2

    merge = _json(tmp_path / "merge" / "done.json")["metrics"]
    assert merge["changed_matrices"] == merge["adapted_matrices"] == 14 and merge["dtype"] == "float32"
    assert merge["max_abs_logit_difference"] <= merge["tolerance"] < merge["max_abs_logit_change_from_base"]
    assert not (tmp_path / "merge" / "merged.partial").exists() and (merged / "tokenizer.json").exists()
    assert case == "qlora" or spoken["printed"] == adapted["printed"]


def _check_classification(evaluation: dict) -> None:
    assert set(evaluation["baselines"]) == {
        "base_answer",
        "base_likeliest_label",
        "base_likeliest_label_per_token",
        "base_3_shot",
        "majority",
    }
    low, high = evaluation["gain_95_percent_interval"]
    assert low <= evaluation["gain"] <= high and set(evaluation["per_label"]) == set(LABELS)
    best = evaluation["baselines"][evaluation["best_baseline"]]
    assert best == max(evaluation["baselines"].values()) and evaluation["gain"] == evaluation["accuracy"] - best


def test_a_faulty_run_fails_loudly(training_python, tiny_model, tmp_path):
    folder = _project(tmp_path, tiny_model, "chat")
    whole = (folder / "train.py").read_text(encoding="utf-8")
    rows = (folder / "data" / "train.jsonl").read_text(encoding="utf-8")
    broken = rows + '{"messages": [{"role": "user", "content": "only"}]}\n'
    (folder / "data" / "broken.jsonl").write_text(broken, encoding="utf-8")
    faults = {
        "bad_row": ('"data/train.jsonl"', '"data/broken.jsonl"'),
        "too_short": ("MAX_LENGTH = 256", "MAX_LENGTH = 8"),
        "no_number": ("LEARNING_RATE = 0.01", "LEARNING_RATE = 1e30"),
        "untrained": ("LEARNING_RATE = 0.01", "LEARNING_RATE = 0.0"),
    }
    for name, (old, new) in faults.items():
        assert old in whole
        (folder / f"{name}.py").write_text(whole.replace(old, new), encoding="utf-8")
    *steps, untrained = [(name, ["--output", str(tmp_path / name), "--max-steps", "7"]) for name in faults]
    merge = ("merge", ["--adapter", str(tmp_path / "untrained" / "adapter"), "--output", str(tmp_path / "merge")])
    seen = _in_turn(training_python, folder, *steps, untrained, merge)
    assert "broken.jsonl, row 13" in seen[0]["error"] and "not the assistant's" in seen[0]["error"]
    assert "no row has a token to learn" in seen[1]["error"]
    assert "FloatingPointError" in seen[2]["error"]
    assert seen[3]["error"] is None
    assert "the adapter is empty" in seen[4]["error"]
    assert not [name for name in (*list(faults)[:3], "merge") if (tmp_path / name / "done.json").exists()]
    assert not (tmp_path / "merge" / "merged").exists()


def test_a_script_by_itself_ends_with_its_exit_code(training_python, tiny_model, tmp_path):
    folder = _project(tmp_path, tiny_model, "classification")
    good = _run(
        training_python, folder.parent, "project/train.py", "--output", str(tmp_path / "run"), "--max-steps", "1"
    )
    assert good.returncode == 0 and _json(tmp_path / "run" / "done.json")["ok"], good.stderr[-4000:]
    (folder / "data" / "train.jsonl").write_text('{"text": "x", "label": "new"}\n', encoding="utf-8")
    bad = _run(training_python, folder, "train.py", "--output", str(tmp_path / "run"), "--max-steps", "1")
    assert bad.returncode != 0 and "'new' is not in LABELS" in bad.stderr
    assert not (tmp_path / "run" / "done.json").exists()


def test_shared_prefix_and_batches_change_nothing(training_python, tiny_model, tmp_path):
    folder = _project(tmp_path, tiny_model, "classification")
    run = tmp_path / "run"
    train = f"import train; train.main(['--output', {str(run)!r}, '--max-steps', '1'])\n"
    done = _run(training_python, folder, "-c", train + PARITY, str(tiny_model), str(run / "adapter"))
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["same_texts"] and seen["distinct_texts"] > 1
    assert seen["spread"] > 1.0
    assert seen["difference"] < 1e-3 and seen["from_reference"] < 1e-3


@pytest.mark.training
def test_a_checkpoint_of_other_settings_is_no_start_for_these(tmp_path, tiny_model, training_python):
    folder, output = _project(tmp_path, tiny_model, "classification"), tmp_path / "run"
    train = ("train", ["--output", str(output), "--max-steps", "2"])
    assert _in_turn(training_python, folder, train)[0]["error"] is None
    script = folder / "train.py"
    text = script.read_text(encoding="utf-8")
    script.write_text(re.sub(r"(?m)^LEARNING_RATE = .*", "LEARNING_RATE = 0.5", text), encoding="utf-8")
    (seen,) = _in_turn(training_python, folder, train)
    assert "checkpoint-2 was made with another LEARNING_RATE: choose another --output" in seen["error"]
    script.write_text(re.sub(r"(?m)^EPOCHS = .*", "EPOCHS = 9.0", text), encoding="utf-8")
    (seen,) = _in_turn(training_python, folder, ("train", ["--output", str(output), "--max-steps", "3"]))
    assert seen["error"] is None and _json(output / "done.json")["metrics"]["steps"] == 3
