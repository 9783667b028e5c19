"""fitscout: its own reading of config.json with the exact parameter count put in, then estimate_memory.

Its inputs: full, lora or qlora (4-bit NF4), LoRA on query and value only, 16-bit or 8-bit Adam. Of what a row says, the
target modules, the attention kernel and the loss have no input. `overhead_gb` is its CUDA context.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.estimators.job import GIB, Answer, Job, lora_or_full, serve


def answer(job: Job) -> Answer:
    from fitscout.memory.estimator import estimate_memory
    from fitscout.model.introspect import inspect_model

    width = 4 if job.precision == "fp32" else 2
    profile = replace(inspect_model(job.folder, dtype_bytes=width), params=job.parameters)
    found = estimate_memory(
        profile,
        method=lora_or_full(job),
        micro_batch=job.batch_size,
        seq_len=job.sequence_length,
        grad_ckpt=job.gradient_checkpointing,
        opt_8bit="8bit" in job.optimizer,
        lora_rank=job.rank,
    )
    return Answer(found.total_gb * GIB, found.overhead_gb * GIB)


if __name__ == "__main__":
    serve("fitscout", answer)
