"""The whole path on a real model and a real task: from 510 routed tickets to a merged, proven adapter.

Every step is one of peftsmith's operations, the same that the MCP server and the shell command offer.

Run as: make demo     (which brings both environments and the base model)
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from peftsmith import files, lock, operations, plan
from peftsmith.adapter.inspect import check_checkpoints

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
PROJECT = Path(os.environ.get("PEFTSMITH_DEMO_FOLDER") or REPOSITORY / "demo-run") / "support-tickets"
MODEL = Path(os.environ.get("PEFTSMITH_TEST_MODEL") or REPOSITORY / ".cache" / "models" / "smollm2")
INSTRUCTION = "Answer with one queue: bench, desk, ops, retain, revenue or trust."
# What this demo wants differently from the recommendation: less than one pass over the rows, for two slow cores, at
# a rate for so few updates.
CHANGES: dict[str, Any] = {
    "training.epochs": 0.75,
    "training.learning_rate": 1e-3,
    "training.warmup": 0.1,
}
# The promise of this demo: points of accuracy above the best baseline, and the interval's lower bound.
SMALLEST_GAIN, SMALLEST_LOWER_BOUND = 0.25, 0.10

TICKET = "The parcel came, but the cup inside is broken."

console = Console(highlight=False)


def main() -> int:
    files.set_roots(["/"])
    started = time.monotonic()
    step("The base model")
    model = checked(operations.inspect_model(str(MODEL)))["model"]
    console.print(f"{model['architecture']}, {model['parameters']:,} parameters, {model['layers']} layers")

    step("The plan")
    made_before = (PROJECT / plan.PLAN_FILE).exists()
    if made_before:
        console.print(f"{PROJECT} holds a plan from an earlier demo; it is used again")
    else:
        make_plan()
    planned = plan.load(PROJECT)
    estimate = lock.load(PROJECT).estimate

    step("The project, vetted and proven on a twin")
    checked(operations.generate_project(str(PROJECT)))
    before = time.monotonic()
    proof = checked(operations.check_project(str(PROJECT)))
    if proof["digest"] is None:
        console.print("[bold red]The project did not pass its check; nothing is trained.[/]")
        return 1
    console.print(f"checked in {time.monotonic() - before:.0f} s, digest {proof['digest'][:12]}")

    step("Training")
    console.print(f"starts {time.monotonic() - started:.0f} s after the demo")
    trained = follow(operations.start_run(str(PROJECT), "train", proof["digest"]))
    step("Evaluation against the base model and four more baselines")
    evaluated = follow(operations.start_run(str(PROJECT), "evaluate", proof["digest"], adapter_run=trained["id"]))
    step("The adapter")
    run = PROJECT / "runs" / trained["id"]
    checked(operations.inspect_adapter(str(run / "adapter")))
    faults = check_checkpoints(run / "checkpoints")
    if faults:
        console.print(f"[bold red]{faults[0].message}[/]")
        return 1
    console.print("every checkpoint holds adapter weights only")
    step("Merging, and comparing the merged model with the adapter")
    merged = follow(operations.start_run(str(PROJECT), "merge", proof["digest"], adapter_run=trained["id"]))
    return summary(planned, model, estimate, trained, evaluated, merged, time.monotonic() - started)


def make_plan() -> None:
    made = checked(
        operations.plan_finetune(
            str(PROJECT),
            str(MODEL),
            str(HERE / "train.jsonl"),
            test=str(HERE / "test.jsonl"),
            system_prompt=INSTRUCTION,
        )
    )
    for field, reason in made["why"].items():
        console.print(f"  {field} = {reason['value']}: {reason['reason']} [dim]({reason['rule']})[/]")
    text = files.read_text(PROJECT / plan.PLAN_FILE)
    files.write_text(PROJECT / plan.PLAN_FILE, plan.edit(text, CHANGES))
    console.print(f"changed by hand for this demo: {CHANGES}")


def step(title: str) -> None:
    console.rule(f"[bold]{title}[/]", align="left")


def checked(result: dict[str, Any]) -> dict[str, Any]:
    """The result, its findings shown."""
    for each in result["findings"]:
        console.print(f"  {each['severity']}: {each['id']}: {each['message']}")
    return result


def follow(started: dict[str, Any]) -> dict[str, Any]:
    """Show a run's progress until it ends; leave the demo with its log when it did not end well."""
    run_id = started["run"]["id"]
    columns: Iterable[Any] = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task(run_id, total=1)
        while True:
            seen = operations.get_run(str(PROJECT), run_id, wait_seconds=2)
            run, progress = seen["run"], seen["run"]["progress"] or {}
            if progress.get("total"):
                bars.update(bar, total=progress["total"], completed=progress["step"])
            if run["state"] not in ("starting", "running"):
                break
    checked(seen)
    if run["state"] != "done":
        console.print(f"[bold red]The run {run_id} is {run['state']}.[/]\n{run['log_tail']}")
        sys.exit(1)
    return {**run, "id": run_id}


def summary(
    planned: plan.FineTunePlan,
    model: dict[str, Any],
    estimate: dict[str, Any],
    trained: dict[str, Any],
    evaluated: dict[str, Any],
    merged: dict[str, Any],
    seconds: float,
) -> int:
    """What the seeds ask for at the end; returns 1 when the demo's promise does not hold."""
    training, quality, merge = trained["metrics"], evaluated["metrics"], merged["metrics"]
    runs = PROJECT / "runs"
    adapter = runs / trained["id"] / "adapter"
    measured = trained["memory"]["peak_rss_bytes"] / 2**30
    low, high = quality["gain_95_percent_interval"]
    holds = quality["gain"] >= SMALLEST_GAIN and low >= SMALLEST_LOWER_BOUND
    share = training["trainable_parameters"] / training["all_parameters"]
    lines = {
        "Fine-tuning summary": [
            f"method: {planned.method.peft_type}, rank {planned.method.rank}, {planned.method.target_modules} layers",
            f"trainable: {training['trainable_parameters']:,} of {training['all_parameters']:,} ({share:.2%})",
            f"time: training {trained['seconds']:.0f} s, the whole demo {seconds:.0f} s",
            f"peak memory: estimated {estimate_text(estimate)}, measured {measured:.2f} GiB",
        ],
        "Quality on rows it has not seen": [
            *(f"{name}: {value:.1%}" for name, value in sorted(quality["baselines"].items(), key=lambda item: item[1])),
            f"TF-IDF classifier, for comparison: {quality['tfidf']:.1%}",
            f"tuned: {quality['accuracy']:.1%} of {quality['rows']} rows",
            f"gain over {quality['best_baseline']}: {quality['gain']:+.1%}, 95 % interval {low:+.1%} to {high:+.1%}",
        ],
        "Artefacts": [
            f"adapter: {adapter}",
            f"merged model: {runs / merged['id'] / 'merged'} (against the adapter: {merge})",
            f"evaluation and every prediction: {runs / evaluated['id']}",
        ],
        "How to use it": [
            f'{os.environ["PEFTSMITH_TRAIN_PYTHON"]} {PROJECT / "infer.py"} --adapter {adapter} --prompt "{TICKET}"',
        ],
        "Next steps": [
            "look at the wrong answers in predictions.jsonl; more rows of the weak queues help most",
            "sweep the learning rate (1/3 x, 1 x, 3 x) before anything else",
            "serve the merged folder with any engine, or the adapter where inspect_adapter says so",
        ],
    }
    for title, entries in lines.items():
        step(title)
        for entry in entries:
            console.print(f"  {entry}")
    verdict = "holds" if holds else "does NOT hold"
    console.print(f"\nThe promise (gain >= {SMALLEST_GAIN:.0%}, lower bound >= {SMALLEST_LOWER_BOUND:.0%}) {verdict}.")
    return 0 if holds else 1


def estimate_text(estimate: dict[str, Any]) -> str:
    device = estimate["device"]
    return f"{device['likely_gib']:.2f} GiB (at most {device['high_gib']:.2f})"


if __name__ == "__main__":
    sys.exit(main())
