"""canifinetune: its own reading of the config folder, registered with the exact parameter count, then estimate().

Its inputs: full, lora or qlora (nf4, nf4 double, fp4, int8), three target scopes, optimiser, attention kernel, stock
or Liger loss, and the GPU's memory, of which it takes 8 % as overhead and 5 % as safety margin: both count as overhead
here. It refuses a base that is stored quantised. Its formulas were fitted to measurements of its own, which are among
the rows.
"""

from __future__ import annotations

from dataclasses import asdict

from benchmarks.estimators.job import GIB, Answer, Job, Refused, lora_or_full, serve

QUANTIZATIONS = {"none": "none", "nf4": "nf4", "nf4_double": "nf4_double_quant", "fp4": "fp4", "int8": "int8"}
OPTIMIZERS = ("paged_adamw_8bit", "adamw_8bit", "adamw_torch", "adamw_torch_fused", "sgd")
SCOPES = ("conservative", "attention", "all_linear")


def answer(job: Job) -> Answer:
    from canifinetune.estimator.formulas import default_target_modules
    from canifinetune.estimator.memory import EstimateRequest, estimate
    from canifinetune.estimator.model_metadata import fetch_metadata, register_known_model

    method = lora_or_full(job, quantizations=tuple(QUANTIZATIONS))
    if job.gpu_gib is None:
        raise Refused("needs the memory of the GPU")
    if job.optimizer not in OPTIMIZERS:
        raise Refused(f"has no optimiser {job.optimizer}")
    read = fetch_metadata(job.folder, use_network=False)
    scope = "attention"
    if method != "full":
        scopes = {name: set(default_target_modules(read.family, scope=name, strict=True)) for name in SCOPES}
        fitting = [name for name, modules in scopes.items() if modules == set(job.targets)]
        if not fitting:
            raise Refused(f"has no target scope of {' '.join(job.targets)}")
        scope = fitting[0]
    register_known_model(job.model, {**asdict(read.arch), "family": read.family, "total_params": job.parameters})
    found = estimate(
        EstimateRequest(
            model_id=job.model,
            method=method,
            seq_len=job.sequence_length,
            micro_batch_size=job.batch_size,
            base_dtype=job.precision,
            quantization=QUANTIZATIONS[job.quantization],
            lora_rank=max(job.rank, 1),  # must be positive, though full fine-tuning has none
            lora_target_scope=scope,
            optimizer=job.optimizer,
            gradient_checkpointing=job.gradient_checkpointing,
            attention_implementation="flash_attention_2" if job.attention == "flash" else job.attention,
            loss_backend="liger" if job.loss == "liger" else "stock",
            gpu_vram_gb=job.gpu_gib,
            use_network=False,
        )
    ).memory
    return Answer(found.total_estimated_gb * GIB, (found.cuda_overhead_gb + found.safety_margin_gb) * GIB)


if __name__ == "__main__":
    serve("canifinetune", answer)
