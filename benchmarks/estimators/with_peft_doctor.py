"""peft-doctor: estimate_vram_gb with the exact parameter count, hidden size and layers put in.

Its inputs: LoRA or all weights, QLoRA (load_in_4bit) or 16-bit. Rank, target modules, optimiser, vocabulary, attention
kernel and loss have no input. `overhead_gb` is its fragmentation. Its figures are rounded to 0.01 GiB.
"""

from __future__ import annotations

from benchmarks.estimators.job import GIB, Answer, Job, Refused, lora_or_full, serve


def answer(job: Job) -> Answer:
    from peft_doctor.estimator import estimate_vram_gb

    method = lora_or_full(job)
    if job.precision == "fp32":
        raise Refused("has no 32-bit weights")
    config = job.config
    report = estimate_vram_gb(
        job.model,
        seq_len=job.sequence_length,
        batch_size=job.batch_size,
        qlora=method == "qlora",
        lora=method != "full",
        gradient_checkpointing=job.gradient_checkpointing,
        params_billion=job.parameters / 1e9,
        hidden_size=config.get("hidden_size") or config.get("n_embd"),
        num_layers=config.get("num_hidden_layers") or config.get("n_layer"),
    )
    total = report.metadata["estimated_total_gb"]
    parts = next(each for each in report.issues if each.code == "estimate.total_vram").details
    return Answer(total * GIB, parts["overhead_gb"] * GIB)


if __name__ == "__main__":
    serve("peft-doctor", answer)
