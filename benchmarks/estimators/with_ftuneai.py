"""ftuneai: its own reading of a hub config with the exact parameter count put in, then its MemoryEstimator.

Its inputs: full, lora or qlora; 4bit or 8bit of any kind; LoRA on query and value, on all of attention, or on all
linear modules; FlashAttention-2 or not. Vocabulary and loss have no weight. `overhead_gb` is its CUDA context,
fragmentation and cuDNN workspace. Its lookup of a config on the hub is pointed to the loopback server of hub.py.
"""

from __future__ import annotations

import os
from dataclasses import replace

from benchmarks.estimators.job import GIB, Answer, Job, lora_or_full, serve

TARGETS = (
    ("attention", {"q_proj", "v_proj"}),
    ("attention_all", {"q_proj", "k_proj", "v_proj", "o_proj"}),
    ("all_linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
)
QUANTIZATIONS = {
    "none": "none", "nf4": "4bit", "nf4_double": "4bit", "fp4": "4bit", "gptq4": "4bit", "awq4": "4bit",
    "int8": "8bit", "gptq8": "8bit",
}  # fmt: skip
OPTIMIZERS = {"adafactor": "adafactor", "sgd": "sgd"}
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def answer(job: Job) -> Answer:
    from ftuneai import hub
    from ftuneai.core.memory import MemoryEstimator
    from ftuneai.core.models import FineTuneMethod, LoRATarget, OptimizerType, Quantization, TrainingConfig

    method = lora_or_full(job, quantizations=tuple(QUANTIZATIONS))
    hub.HF_API_BASE = os.environ["HF_ENDPOINT"]
    spec = hub.resolve_model_from_hub(job.model)
    spec = replace(spec, parameters=job.parameters, default_dtype=PRECISIONS[job.precision])
    optimizer = "adam_8bit" if "8bit" in job.optimizer else OPTIMIZERS.get(job.optimizer, "adamw")
    config = TrainingConfig(
        model=job.model,
        method=FineTuneMethod(method),
        quantization=Quantization(QUANTIZATIONS[job.quantization]),
        batch_size=job.batch_size,
        seq_length=job.sequence_length,
        gradient_checkpointing=job.gradient_checkpointing,
        optimizer=OptimizerType(optimizer),
        lora_rank=job.rank,
        lora_target=LoRATarget(nearest(job.targets)),
        flash_attention=job.attention == "flash",
    )
    found = MemoryEstimator(spec, config).estimate()
    return Answer(found.total_gb * GIB, found.overhead_gb * GIB)


def nearest(targets: list[str]) -> str:
    """The choice that shares most names with the row's targets and has fewest others; adapters are small either way."""
    wanted = set(targets)
    return min(TARGETS, key=lambda choice: len(choice[1] ^ wanted))[0]


if __name__ == "__main__":
    serve("ftuneai", answer)
