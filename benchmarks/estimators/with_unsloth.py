"""unsloth: the estimator of Unsloth Studio (AGPL-3.0, run in this process of its own, never imported by peftsmith).

Its file vram_estimation.py is loaded by path: the package around it starts a search for GPUs. Its inputs: full, lora or
qlora (load_in_4bit, with double quantisation told by the config), rank and target modules, optimiser, checkpointing and
attention kernel. It reckons with Unsloth's fused loss; the loss has no input. `cuda_overhead` is its CUDA context.
Names that transformers maps for the models of GPT-2's time are mapped here, as it would get them from AutoConfig.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

from benchmarks.estimators.job import Answer, Job, Refused, lora_or_full, serve

NAMES = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}


@lru_cache
def estimator() -> ModuleType:
    path = Path(str(metadata.distribution("unsloth").locate_file("studio/backend/utils/hardware/vram_estimation.py")))
    spec = importlib.util.spec_from_file_location("vram_estimation", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not there")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def answer(job: Job) -> Answer:
    method = lora_or_full(job)
    if job.precision == "fp32":
        raise Refused("has no 32-bit weights")
    config = {**{name: job.config[old] for name, old in NAMES.items() if old in job.config}, **job.config}
    config["quantization_config"] = {"bnb_4bit_use_double_quant": job.quantization == "nf4_double"}
    studio = estimator()
    arch = studio.extract_arch_config(SimpleNamespace(**config))
    if arch is None:
        raise Refused("could not read the config")
    found = studio.estimate_training_vram(
        arch,
        studio.TrainingVramConfig(
            training_method=method,
            batch_size=job.batch_size,
            max_seq_length=job.sequence_length,
            lora_rank=job.rank,
            target_modules=job.targets,
            gradient_checkpointing="true" if job.gradient_checkpointing else "none",
            optimizer=job.optimizer,
            load_in_4bit=method == "qlora",
            attention_implementation="flash_attention_2" if job.attention == "flash" else job.attention,
        ),
    )
    return Answer(found.total, found.cuda_overhead)


if __name__ == "__main__":
    serve("unsloth", answer)
