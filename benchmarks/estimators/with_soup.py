"""Soup (soup-cli): estimate_peak_vram_gb with the exact parameter count put in.

Its inputs: full, LoRA, DoRA or QLoRA; no quantisation, 4bit (bitsandbytes), 8bit, gptq or awq. Rank, target modules,
the model's shape, attention kernel and loss have no input. `overhead_gb` is what it calls constant overhead. Its GB are
of 10^9 bytes.
"""

from __future__ import annotations

from benchmarks.estimators.job import Answer, Job, Refused, serve

QUANTIZATIONS = {
    "none": "none", "nf4": "4bit", "nf4_double": "4bit", "fp4": "4bit", "int8": "8bit", "gptq4": "gptq", "awq4": "awq",
}  # fmt: skip
OPTIMIZERS = {
    "adamw_torch": "adamw_torch", "adamw_torch_fused": "adamw_torch_fused", "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit", "adafactor": "adafactor", "sgd": "sgd", "lion_8bit": "lion_8bit",
}  # fmt: skip


def answer(job: Job) -> Answer:
    from soup_cli.utils.hardware_fit import HardwareFitInput, estimate_peak_vram_gb

    if job.method not in ("full", "lora", "dora"):
        raise Refused(f"has no method {job.method}")
    quant = QUANTIZATIONS.get(job.quantization)
    if quant is None or job.optimizer not in OPTIMIZERS:
        raise Refused(f"has no {job.quantization} with {job.optimizer}")
    if job.precision == "fp32":
        raise Refused("has no 32-bit weights")
    found = estimate_peak_vram_gb(
        HardwareFitInput(
            params_b=job.parameters / 1e9,
            seq_len=job.sequence_length,
            batch_size=job.batch_size,
            optimizer=OPTIMIZERS[job.optimizer],
            quant=quant,
            peft="qlora" if job.method == "lora" and quant == "4bit" else job.method,
            gradient_checkpointing=job.gradient_checkpointing,
        )
    )
    return Answer(found.total_gb * 1e9, found.overhead_gb * 1e9)


if __name__ == "__main__":
    serve("soup-cli", answer)
