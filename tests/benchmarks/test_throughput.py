"""The throughput benchmark draws the lengths it says, and its verdict follows from what the runs took."""

from __future__ import annotations

import json
import statistics
import subprocess

import pytest

from benchmarks import throughput


def runner(name, tokens, seconds, loss, width=None):
    made = throughput.Runner(name, subprocess.Popen(["true"], text=True))
    update = {"tokens": tokens, "places": width or tokens, "seconds": seconds, "cpu": seconds, "peak": 1 << 30}
    update["loss"] = loss
    made.updates = [{**update, "seconds": 100 * seconds, "cpu": 100 * seconds}, update, update]
    made.before = 2.0
    made.process.wait()
    return made


@pytest.mark.parametrize(
    ("seconds", "loss", "code", "last"),
    [
        (1.0, 1.0, 0, "OK: 3.00 times"),
        (1.0, 1.03, 1, "MISSED: 3.00 times"),
        (1.6, 1.0, 1, "MISSED: 1.88 times"),
        (1.4, 1.0, 1, "MISSED: 2.14 times"),
    ],
)
def test_the_verdict_leaves_the_first_update_out(capsys, seconds, loss, code, last):
    runs = [
        runner("baseline", 1000, 3.0, 1.0, 2000),
        runner("grouped", 1000, 1.8, 1.0),
        runner("ours", 1000, seconds, loss),
    ]
    assert throughput.judged({each.name: each for each in runs}) == code
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith(last)
    assert "50.0%" in next(line for line in printed if line.startswith("baseline"))


def test_losses_are_compared_at_the_same_number_of_tokens():
    made = throughput.Runner("ours", subprocess.Popen(["true"], text=True), before=3.0)
    made.process.wait()
    made.updates = [{"tokens": 100.0, "loss": 2.0}, {"tokens": 300.0, "loss": 1.4}]
    assert made.loss_at(0) == 3.0
    assert made.loss_at(50) == pytest.approx(2.5)
    assert made.loss_at(100) == pytest.approx(2.0)
    assert made.loss_at(250) == pytest.approx(1.7)
    assert made.loss_at(400) == pytest.approx(1.4)
    with pytest.raises(ValueError, match="400 tokens, not 401"):
        made.loss_at(401)


def test_lengths_are_lognormal_and_cut(tiny_model):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    texts = throughput.rendered(tiny_model, 300, seed=0)
    assert texts == throughput.rendered(tiny_model, 300, seed=0)
    lengths = sorted(len(each.ids) for each in tokenizer.encode_batch(texts, add_special_tokens=False))
    assert 100 <= statistics.median(lengths) <= 150
    assert lengths[-1] <= 540 and lengths[int(0.95 * len(lengths))] > 480


def test_the_baseline_is_the_seeds_script_with_todays_names(tmp_path):
    text = throughput.baseline(tmp_path / "m", tmp_path / "t.jsonl", tmp_path / "o", grouped=True)
    compile(text, "baseline.py", "exec")
    for line in (
        "per_device_train_batch_size=4",
        "gradient_accumulation_steps=4",
        "max_length=512",
        "processing_class",
    ):
        assert line in text
    assert "activation_checkpointing" not in text and json.dumps(str(tmp_path / "t.jsonl"))[1:-1] in text
