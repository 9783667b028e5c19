"""accelerate: the functions of `accelerate estimate-memory` (gather_data), with the hub pointed to hub.py.

It reports the size of the weights and what training all of them with Adam takes, with no activations and no PEFT. A
full row gets its training figure. A row of any PEFT method gets its size of the weights in the row's format (int4 for
every 4-bit one), plus the same training function applied to the row's own number of trainable parameters in float32.
It names nothing overhead.
"""

from __future__ import annotations

import argparse
from functools import lru_cache
from typing import Any

from benchmarks.estimators.job import Answer, Job, Refused, serve

DTYPES = {"nf4": "int4", "nf4_double": "int4", "fp4": "int4", "gptq4": "int4", "awq4": "int4", "int8": "int8"}
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "float16"}


@lru_cache
def gathered(model: str) -> dict[str, list[Any]]:
    """accelerate's own table of one model: dtype, largest layer, total size, training usage."""
    from accelerate.commands.estimate import gather_data

    dtypes = ["float32", "float16", "int8", "int4"]
    options = argparse.Namespace(model_name=model, library_name="transformers", trust_remote_code=False, dtypes=dtypes)
    return {row[0]: row for row in gather_data(options)}


def answer(job: Job) -> Answer:
    from accelerate.commands.estimate import estimate_training_usage

    precision = PRECISIONS[job.precision]
    if job.method == "full":
        return Answer(max(gathered(job.model)[precision][3].values()))
    if job.quantization != "none" and job.quantization not in DTYPES:
        raise Refused(f"has no weights in {job.quantization}")
    weights = gathered(job.model)[DTYPES.get(job.quantization, precision)][2]
    return Answer(weights + estimate_training_usage(4 * job.trainable, "float32")["step"])


if __name__ == "__main__":
    serve("accelerate", answer)
