"""One training job as every adapter gets it, and the answer it gives: JSON lines in, JSON lines out.

Knows: the fields, and how an adapter's process answers all rows. Runs under another estimator's Python too.
Does not know: peftsmith, the published figures, any estimator.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

GIB = 1 << 30


@dataclass(frozen=True)
class Job:
    """What a row says of its run.

    `parameters` and `trainable` are exact counts, so that no estimator has to guess them; `targets` are the leaf names
    of the modules that are really adapted; `method` is full, lora, dora or another PEFT type in small letters;
    `rank` is 0 where the method has none; `folder` holds config.json and `config` its content; the rest as in
    peftsmith's Request.
    """

    model: str
    folder: str
    config: dict[str, Any]
    parameters: int
    trainable: int
    method: str
    rank: int
    targets: list[str]
    batch_size: int
    sequence_length: int
    precision: str
    quantization: str
    gradient_checkpointing: bool
    optimizer: str
    attention: str
    loss: str
    gpu_gib: float | None


@dataclass(frozen=True)
class Answer:
    """Bytes: the figure that the estimator prints, and what of it the estimator itself calls overhead (CUDA context,
    fragmentation, safety margin)."""

    total: float
    overhead: float = 0.0


class Refused(Exception):
    """This estimator has no input for such a job."""


def lora_or_full(job: Job, *, quantizations: tuple[str, ...] = ("nf4", "nf4_double", "fp4")) -> str:
    """full, lora or qlora for the many estimators that know just those. Raises Refused for any other method, and for a
    base in a format that is not one of `quantizations`."""
    if job.method not in ("full", "lora"):
        raise Refused(f"has no method {job.method}")
    if job.quantization == "none":
        return job.method
    if job.quantization not in quantizations:
        raise Refused(f"has no base in {job.quantization}")
    return "qlora"


def serve(distribution: str, answer: Callable[[Job], Answer]) -> None:
    """Answer the jobs on stdin, one JSON object a line; what the estimator prints goes to stderr."""
    output = sys.stdout
    print(json.dumps({"estimator": f"{distribution} {metadata.version(distribution)}"}), file=output)
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            found = _answer(answer, Job(**json.loads(line)))
        print(json.dumps(found), file=output)


def _answer(answer: Callable[[Job], Answer], job: Job) -> dict[str, Any]:
    try:
        return asdict(answer(job))
    except Refused as refused:
        return {"refused": str(refused)}
    except Exception as error:  # the estimator's own refusals are of any kind; each is counted and shown
        return {"refused": f"{type(error).__name__}: {error}"}
