"""How fast a generated script trains, against the seeds' own script, with and without length grouping.

Run as: python benchmarks/throughput.py [--quick] [--tokens 14000] [--model FOLDER]      (`make demo-model` first)

2,000 chats of lognormal length (median 120 tokens, 95th percentile 700, cut at 512; seed 0), rendered by the model's
own template. All three train LoRA of one rank on the same modules at one learning rate, in float32, on the same cores.
Each runs in a process of its own; they take turns update by update, so that other load on the machine weighs on all
alike, until each has trained on `--tokens` tokens. The first update of each is warm-up and not timed. After each update
the loss of the same unseen chats is worked out, untimed; losses are compared at the same number of tokens, between two
updates by the straight line through both. `ours` is what plan_finetune plans and generate_project writes; rank,
targets, learning rate and schedule are then set to the baseline's.

Prints tokens a second that are no padding, by the clock and by processor time, held-out loss and peak memory; exit code
1 when a ratio or the loss misses what must hold.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "mcp_server")]

from benchmarks import chat_rows

AGAINST_FIRST, AGAINST_GROUPED, LOSS_WITHIN = 2.0, 1.3, 0.02
CHATS, MEDIAN, P95, LONGEST = 2000, 120, 700, 512
RANK, ALPHA, LEARNING_RATE, EPOCHS = 16, 32, 2e-4, 3
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENS, QUICK_TOKENS = 14_000, 5_000
HELD_OUT, QUICK_HELD_OUT = 24, 8
NAMES = ("baseline", "grouped", "ours")
TURN = Path(__file__).resolve().parent / "throughput_turns.py"
_ENDS = 24  # tokens of a chat that the template writes, at most


@dataclass
class Runner:
    """One training process and the updates that it has made."""

    name: str
    process: subprocess.Popen[str]
    before: float = 0.0
    updates: list[dict[str, float]] = field(default_factory=list)

    def ask(self) -> dict[str, Any]:
        """Say go, and read what comes of it. RuntimeError with its log when the process has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise RuntimeError(f"{self.name} has ended") from error
        for answer in self.process.stdout:
            if answer.startswith("@"):
                found: dict[str, Any] = json.loads(answer[1:])
                return found
        raise RuntimeError(f"{self.name} has ended")

    @property
    def tokens(self) -> float:
        return sum(each["tokens"] for each in self.updates)

    def loss_at(self, tokens: float) -> float:
        """Held-out loss after so many tokens, at most `self.tokens`."""
        trained, loss = 0.0, self.before
        for each in self.updates:
            if trained + each["tokens"] >= tokens:
                return loss + (each["loss"] - loss) * (tokens - trained) / each["tokens"]
            trained, loss = trained + each["tokens"], each["loss"]
        raise ValueError(f"{self.name} has trained on {self.tokens:.0f} tokens, not {tokens:.0f}")

    def rate(self, clock: str) -> float:
        """Tokens a second after the first update."""
        timed = self.updates[1:]
        return sum(each["tokens"] for each in timed) / sum(each[clock] for each in timed)


def main() -> int:
    from peftsmith import files

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_TOKENS} tokens each, {QUICK_HELD_OUT} unseen chats"
    )
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--model", type=Path, default=REPOSITORY / ".cache" / "models" / "smollm2")
    given = parser.parse_args()
    if not (given.model / "tokenizer.json").exists():
        print(f"no model in {given.model}: run `make demo-model`", file=sys.stderr)
        return 2
    tokens = given.tokens or (QUICK_TOKENS if given.quick else TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        files.set_roots([folder, given.model])
        return compare(Path(folder), given.model.resolve(), tokens, QUICK_HELD_OUT if given.quick else HELD_OUT)


def compare(folder: Path, model: Path, tokens: int, held_out: int) -> int:
    lines = rendered(model, CHATS + held_out, seed=0)
    train, unseen = folder / "chats.jsonl", folder / "unseen.jsonl"
    write(train, lines[:CHATS])
    write(unseen, lines[CHATS:])
    scripts = {"ours": ours(folder / "project", model, train)}
    for name in ("baseline", "grouped"):
        scripts[name] = folder / f"{name}.py"
        scripts[name].write_text(baseline(model, train, folder / name, grouped=name == "grouped"), encoding="utf-8")
    runners = [start(name, scripts[name], folder / name, unseen) for name in NAMES]
    try:
        take_turns(runners, tokens)
    finally:
        for each in runners:
            each.process.kill()
            each.process.wait()
    return judged({each.name: each for each in runners})


def rendered(model: Path, count: int, seed: int) -> list[str]:
    """Chats as the model's template writes them, with as many tokens as were drawn."""
    from peftsmith.data.rendering import Renderer

    renderer = Renderer.load(model)
    tokenizer = renderer.files.tokenizer
    draw, source = random.Random(seed), chat_rows.Rows(seed)
    sigma = math.log(P95 / MEDIAN) / 1.6449  # of the standard normal's 95th percentile
    chats = []
    for _ in range(count):
        wanted = min(LONGEST, max(2 * _ENDS, round(draw.lognormvariate(math.log(MEDIAN), sigma)))) - _ENDS
        ids = tokenizer.encode(source.text(wanted, None), add_special_tokens=False).ids[:wanted]
        asked, answered = (tokenizer.decode(part) for part in (ids[: wanted // 3], ids[wanted // 3 :]))
        chats.append(([{"role": "user", "content": asked}, {"role": "assistant", "content": answered}], False))
    return renderer.texts(chats)


def write(path: Path, texts: list[str]) -> None:
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    path.write_text("".join(lines), encoding="utf-8")


def ours(project: Path, model: Path, train: Path) -> Path:
    """train.py of a project as planned and generated, with the baseline's adapter and rate."""
    from peftsmith import files, plan
    from peftsmith.advise import planner
    from peftsmith.advise.document import Wish
    from peftsmith.project import generate

    planner.make(project, Wish(model=str(model), data=train, task="text"))
    changes = {
        "method.rank": RANK, "method.alpha": ALPHA, "method.target_modules": TARGETS, "training.epochs": float(EPOCHS),
        "training.learning_rate": LEARNING_RATE, "training.schedule": "linear", "training.warmup": 0.0,
    }  # fmt: skip
    text = plan.edit(files.read_text(project / plan.PLAN_FILE), changes)
    files.write_text(project / plan.PLAN_FILE, text)
    written = generate.generate(project)
    if any(each.severity == "error" for each in written.findings):
        raise RuntimeError(f"no project was generated: {written.findings}")
    training = plan.load(project).training
    shown = ("max_length", "batch_size", "gradient_accumulation", "packing", "loss_path", "gradient_checkpointing")
    print("ours: " + ", ".join(f"{name} {getattr(training, name)}" for name in shown), flush=True)
    return project / "train.py"


def baseline(model: Path, train: Path, output: Path, *, grouped: bool) -> str:
    """The seeds' script ("Using SFTTrainer") with today's names, on a CPU, without bfloat16."""
    return f"""from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

model = AutoModelForCausalLM.from_pretrained({str(model)!r}, dtype="float32")
tokenizer = AutoTokenizer.from_pretrained({str(model)!r})
dataset = load_dataset("json", data_files={str(train)!r})
lora_config = LoraConfig(r={RANK}, lora_alpha={ALPHA}, target_modules={TARGETS!r}, task_type="CAUSAL_LM")

sft_config = SFTConfig(
    output_dir={str(output)!r},
    num_train_epochs={EPOCHS},
    per_device_train_batch_size=4,
    learning_rate={LEARNING_RATE},
    logging_steps=10,
    save_steps=500,
    max_length=512,
    gradient_accumulation_steps=4,
    dataset_text_field="text",
    use_cpu=True,
    bf16=False,{'train_sampling_strategy="group_by_length",' if grouped else ""}
)

trainer = SFTTrainer(
    model=model,
    args=sft_config,
    train_dataset=dataset["train"],
    processing_class=tokenizer,
    peft_config=lora_config,
)

trainer.train()
"""


def start(name: str, script: Path, output: Path, unseen: Path) -> Runner:
    from peftsmith.machine import environment

    python = environment.require(REPOSITORY).interpreter
    argv = [str(python), str(TURN), str(script), str(unseen), *(["--output", str(output)] if name == "ours" else [])]
    # Each has a cache of its own: the first to tokenise must not spare the others the work, nor wait for them.
    settings = {
        "HF_DATASETS_CACHE": str(output.with_suffix(".cache")),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    log = output.with_suffix(".log").open("w", encoding="utf-8")
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, encoding="utf-8", cwd=script.parent,
        env={**os.environ, **settings},
    )  # fmt: skip
    runner = Runner(name, process)
    # It answers when it is ready for its first update: nobody prepares while another is timed.
    runner.before = runner.ask()["loss"]
    return runner


def take_turns(runners: list[Runner], tokens: int) -> None:
    """One update each in turn, until each has trained on so many tokens."""
    while any(each.tokens < tokens for each in runners):
        for each in runners:
            if each.tokens < tokens or len(each.updates) < 2:
                each.updates.append(each.ask())
                last = each.updates[-1]
                spent = f"{last['seconds']:.1f} s, {last['cpu']:.1f} s of processor"
                print(f"{each.name}: {last['tokens']} tokens, {spent}, loss {last['loss']:.4f}", flush=True)


def judged(found: dict[str, Runner]) -> int:
    equal = min(each.tokens for each in found.values())
    losses = {name: each.loss_at(equal) for name, each in found.items()}
    print(
        f"\n{'':10}{'tokens/s':>10}{'by processor':>14}{'padding':>9}{'held-out loss':>15}{'before':>8}"
        f"{'trained on':>12}{'peak GiB':>10}"
    )
    for name, each in found.items():
        width, peak = sum(update["places"] for update in each.updates), each.updates[-1]["peak"]
        print(
            f"{name:10}{each.rate('seconds'):10.1f}{each.rate('cpu'):14.1f}{1 - each.tokens / width:9.1%}"
            f"{losses[name]:15.4f}{each.before:8.4f}{each.tokens:12.0f}{peak / 2**30:10.2f}"
        )
    clock = {name: found["ours"].rate("seconds") / found[name].rate("seconds") for name in NAMES[:2]}
    cpu = {name: found["ours"].rate("cpu") / found[name].rate("cpu") for name in NAMES[:2]}
    loss = {name: losses["ours"] / losses[name] - 1 for name in NAMES[:2]}
    holds = (
        clock["baseline"] >= AGAINST_FIRST
        and clock["grouped"] >= AGAINST_GROUPED
        and max(loss.values()) <= LOSS_WITHIN  # that it is lower is no fault: ours makes more updates of fewer tokens
    )
    print(
        f"\nby processor time {cpu['baseline']:.2f} and {cpu['grouped']:.2f}; held-out loss after {equal:.0f} tokens "
        f"{loss['baseline']:+.2%} and {loss['grouped']:+.2%} of theirs (at most {LOSS_WITHIN:+.0%})\n"
        f"{'OK' if holds else 'MISSED'}: {clock['baseline']:.2f} times the seeds' script (limit {AGAINST_FIRST}), "
        f"{clock['grouped']:.2f} times it with length grouping (limit {AGAINST_GROUPED})"
    )
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
