"""Other estimators of fine-tuning memory on the rows that ours was scored on: their own code, one process each.

Knows: how a row becomes a Job, where each estimator runs, how errors are summed up.
Does not know: any estimator's inputs (with_*.py), how rows are read or ours is scored (benchmarks/memory.py).

Each gets the exact parameter count. A figure is taken as the estimator prints it or without what it calls overhead,
whichever is nearer on the rows of one kind: some mean the whole device, some what was allocated. A row that it has no
input for is refused, and counts neither for nor against it.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.estimators import environment, hub
from benchmarks.estimators.job import GIB, Job
from peftsmith.errors import PeftsmithError
from peftsmith.model import memory, speed
from peftsmith.model.anatomy import Anatomy
from peftsmith.model.memory import Request

OWN = ("canifinetune", "fitscout", "ftuneai", "peft_doctor", "soup", "unsloth")
TRAINING = ("accelerate",)
KINDS = ("allocated", "reserved", "device")


@dataclass(frozen=True)
class Case:
    """A scored row: the published peak and our estimate in GiB, and what ours was asked."""

    row: Mapping[str, str]
    kind: str
    truth: float
    ours: float
    body: Anatomy
    request: Request

    @property
    def about(self) -> str:
        row = self.row
        return " ".join(
            row[name] for name in ("model_id", "method", "quant", "per_device_batch", "longest_batch_tokens")
        )


def report(cases: Sequence[Case]) -> None:
    """Run them all and print, for each kind of peak, each one's errors beside ours on the rows that it answered."""
    if not cases:
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "hub"
        jobs = [job_of(case, root) for case in cases]
        with hub.serve(root) as url:
            answers = _run_all(jobs, {"HF_ENDPOINT": url, "HF_HOME": str(Path(scratch) / "home")})
    print(f"\nother estimators on the same {len(cases)} rows, and ours on those that they answered: mean |error| %")
    for kind in KINDS:
        chosen = [index for index, case in enumerate(cases) if case.kind == kind]
        if chosen:
            print(f"  {kind}, {len(chosen)} rows")
            for name, found in answers.items():
                print("    " + line(name, [(cases[index], found[index]) for index in chosen]))
    for name, found in answers.items():
        reasons = Counter(each["refused"] for each in found if "refused" in each)
        shown = "; ".join(f"{count} {' '.join(reason.split())[:120]}" for reason, count in reasons.most_common())
        print(f"{name} refused {sum(reasons.values())}: {shown or 'none'}", file=sys.stderr)


def line(name: str, pairs: Sequence[tuple[Case, Mapping[str, Any]]]) -> str:
    """One estimator on the rows of one kind."""
    answered = [(case, found) for case, found in pairs if "refused" not in found]
    if not answered:
        return f"{name:28} answers none"
    ways = {
        "as printed": [error(case, found["total"] / GIB) for case, found in answered],
        "without overhead": [error(case, (found["total"] - found["overhead"]) / GIB) for case, found in answered],
    }
    way, errors = min(ways.items(), key=lambda each: mean(each[1]))
    worst = max(range(len(errors)), key=lambda index: abs(errors[index]))
    ours = mean([error(case, case.ours) for case, _ in answered])
    return (
        f"{name:28} {len(answered):3} rows {mean(errors):7.2f} (ours {ours:5.2f}), {way}; worst {errors[worst]:+.0f} % "
        f"on {answered[worst][0].about}"
    )


def error(case: Case, gib: float) -> float:
    return 100 * (gib / case.truth - 1)


def mean(errors: Sequence[float]) -> float:
    return statistics.mean(abs(each) for each in errors)


def job_of(case: Case, root: Path) -> Job:
    """The row as a Job; its config.json is laid under root/owner/name, with the tying of embeddings written out, which
    many configs leave to their class's default."""
    body, request = case.body, case.request
    model = case.row["model_id"]
    folder = root / (model if "/" in model else f"local/{model}")
    config = {**body.config, "tie_word_embeddings": body.tied_embeddings}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    method = (request.peft_type or "full").lower()
    return Job(
        model=str(folder.relative_to(root)),
        folder=str(folder),
        config=config,
        parameters=body.parameters,
        trainable=memory.estimate(body, request).trainable,
        method="dora" if method == "lora" and request.options.get("use_dora") else method,
        rank=request.method_options.get("r", 0),
        targets=sorted({module.leaf for module in memory.adapted_modules(body, request).values()}),
        batch_size=request.batch_size,
        sequence_length=request.sequence_length,
        precision=request.precision,
        quantization=request.base_format or "none",
        gradient_checkpointing=request.gradient_checkpointing,
        optimizer=request.optimizer,
        attention=request.attention,
        loss=request.loss,
        gpu_gib=_gpu(case.row["gpu"]),
    )


def _gpu(name: str) -> float | None:
    """The memory of the row's GPU: as its name says, or as our catalogue does."""
    said = re.search(r"(\d+) ?GB", name)
    try:
        return float(said.group(1)) if said else speed.gpu(name.removeprefix("NVIDIA ")).memory_gib
    except PeftsmithError:
        return None


def _run_all(jobs: Sequence[Job], variables: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Answers by name with version, in the order of the jobs; without the estimators that could not be run."""
    pythons = {**dict.fromkeys(OWN, environment.own()), **dict.fromkeys(TRAINING, environment.training())}
    answers: dict[str, list[dict[str, Any]]] = {}
    for name, python in pythons.items():
        if python is None:
            continue
        try:
            estimator, found = run(python, name, jobs, variables)
        except (OSError, ValueError, subprocess.SubprocessError) as failure:
            print(f"{name} did not run: {failure}", file=sys.stderr)
            continue
        answers[estimator] = found
    return answers


def run(python: str, name: str, jobs: Sequence[Job], variables: Mapping[str, str]) -> tuple[str, list[dict[str, Any]]]:
    """The name with version, and the answers, of one estimator. Raises ValueError when it did not answer every job."""
    done = subprocess.run(
        [python, "-m", f"benchmarks.estimators.with_{name}"],
        input="".join(json.dumps(asdict(job)) + "\n" for job in jobs),
        env={**os.environ, "PYTHONPATH": str(environment.ROOT), "CUDA_VISIBLE_DEVICES": "", **variables},
        cwd=environment.ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    lines = [json.loads(each) for each in done.stdout.splitlines()]
    if len(lines) != len(jobs) + 1:
        raise ValueError(f"{len(lines)} lines for {len(jobs)} jobs: {done.stderr.strip()[-500:]}")
    return lines[0]["estimator"], lines[1:]
