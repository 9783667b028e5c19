"""Runs a training script one update at a time, as throughput.py says on stdin, and tells what each update cost.

Run as: python throughput_turns.py SCRIPT UNSEEN.jsonl [arguments of the script]      (training environment)

Knows: how to hold any transformers Trainer at an update, to count tokens and time, and to work out a loss.
Does not know: what the script is, or what is compared. Answers are lines that begin with @; everything else is its own.
"""

from __future__ import annotations

import json
import resource
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers


class Turns(transformers.TrainerCallback):
    """Waits for its turn before each update, and answers after it with the loss of the unseen samples."""

    def __init__(self) -> None:
        self.samples: list[list[int]] = []
        self.before = 0.0
        self.tokens = self.places = 0
        self.began = (0.0, 0.0)

    def wait(self) -> None:
        sys.stdin.readline()
        self.tokens = self.places = 0
        self.began = (time.perf_counter(), time.process_time())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.wait()
        answer({"loss": self.before})
        self.wait()

    def on_step_end(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **kwargs: Any) -> None:
        seconds, cpu = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        loss = mean_loss(model, self.samples)
        answer(
            {"tokens": self.tokens, "places": self.places, "seconds": seconds, "cpu": cpu, "peak": peak, "loss": loss}
        )
        self.wait()


def answer(values: dict[str, Any]) -> None:
    print("@" + json.dumps(values), flush=True)


def mean_loss(model: torch.nn.Module, samples: list[list[int]]) -> float:
    """Over all tokens of all samples, each by itself."""
    total, count = 0.0, 0
    training = model.training
    model.eval()
    with torch.no_grad():
        for sample in samples:
            ids = torch.tensor([sample])
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            total += F.cross_entropy(logits.float(), ids[0, 1:], reduction="sum").item()
            count += len(sample) - 1
    model.train(training)
    return total / count


def main() -> None:
    script, unseen, *arguments = sys.argv[1:]
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    turns = Turns()
    original_init, original_step, original_train = (
        transformers.Trainer.__init__, transformers.Trainer.training_step, transformers.Trainer.train,
    )  # fmt: skip

    def init(self: Any, *positional: Any, **named: Any) -> None:
        original_init(self, *positional, **named)
        self.add_callback(turns)

    def step(self: Any, model: Any, inputs: dict[str, Any], *positional: Any, **named: Any) -> Any:
        mask = inputs.get("attention_mask")
        turns.tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
        turns.places += int(inputs["input_ids"].numel())
        return original_step(self, model, inputs, *positional, **named)

    def train(self: Any, *positional: Any, **named: Any) -> Any:
        rows = [json.loads(line)["text"] for line in Path(unseen).read_text(encoding="utf-8").splitlines()]
        turns.samples = [self.processing_class(text)["input_ids"][:512] for text in rows]
        turns.before = mean_loss(self.model, turns.samples)
        return original_train(self, *positional, **named)

    transformers.Trainer.__init__ = init
    transformers.Trainer.training_step = step
    transformers.Trainer.train = train
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
