"""Which engines can serve an adapter as it is, and what to do for the others.

Knows: what vLLM, SGLang, llama.cpp, Ollama and Transformers take, how each works out the scale.
Does not know: whether the weights are sound (inspect.py). Sources: the findings adapter.serving.*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftsmith.finding import Finding, finding

ENGINES = ("transformers", "vllm", "sglang", "llama.cpp", "ollama")
# The values that vLLM's --max-lora-rank takes.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class Shape:
    """What serving depends on, from adapter_config.json and the tensors' names and types."""

    peft_type: str
    rank: int | None
    largest_rank: int | None
    rslora: bool
    dora: bool
    bias: str
    modules_to_save: bool
    trainable_tokens: bool
    embeddings: bool
    rank_pattern: bool
    alpha_pattern: bool
    dtypes: tuple[str, ...]
    safetensors: bool
    changed_base: str | None = None  # the start that took a part of the base for the adapter
    more_layers: bool = False


@dataclass(frozen=True)
class Verdict:
    """`serves`: "yes", "convert" (save it in another type first), "repair" (its scale would be wrong; exact arithmetic
    on lora_B mends that), "merge", or "no" (there are no sound safetensors weights, or it cannot be merged either)."""

    serves: str
    reasons: tuple[str, ...]
    how: str

    def to_json(self) -> dict[str, Any]:
        return {"serves": self.serves, "reasons": list(self.reasons), "how": self.how}


def verdicts(shape: Shape) -> dict[str, Verdict]:
    """A verdict for every engine."""
    return {engine: _verdict(engine, shape) for engine in ENGINES}


def findings(judged: Mapping[str, Verdict], shape: Shape) -> list[Finding]:
    """Engines that refuse the adapter, and engines that would serve it with another strength in silence."""
    found = []
    refusing = {engine: list(v.reasons) for engine, v in judged.items() if v.serves == "merge"}
    if refusing:
        message = f"{', '.join(refusing)}: this adapter has to be merged into its base first."
        found.append(finding("adapter.serving.needs_merge", message, engines=refusing))
    other_type = {engine: list(v.reasons) for engine, v in judged.items() if v.serves == "convert"}
    if other_type:
        message = f"{', '.join(other_type)}: this adapter has to be saved in bfloat16 or float16 first."
        found.append(finding("adapter.serving.needs_conversion", message, engines=other_type))
    wrong = {engine: list(v.reasons) for engine, v in judged.items() if v.serves == "repair"}
    if wrong:
        message = f"{', '.join(wrong)} would serve this adapter with the wrong scale."
        factor = math.sqrt(shape.rank) if shape.rslora and shape.rank else None
        found.append(finding("adapter.serving.scale_lost", message, engines=wrong, lora_b_factor=factor))
    return found


def vllm_rank(rank: int) -> int | None:
    """The smallest --max-lora-rank that takes `rank`; None when there is none."""
    return next((each for each in VLLM_RANKS if each >= rank), None)


def _verdict(engine: str, shape: Shape) -> Verdict:
    if not shape.safetensors:
        return Verdict("no", ("there are no weights in a sound safetensors file",), "Save the adapter again.")
    if engine == "transformers":
        return Verdict("yes", (), "PeftModel.from_pretrained(base, adapter)")
    if shape.more_layers:
        reason = "layer_replication: it is for a model with more layers than its base has"
        return Verdict("no", (reason,), "Serve it with Transformers and PEFT; PEFT cannot merge it either.")
    refused = _refusals(engine, shape)
    if refused:
        return Verdict("merge", tuple(refused), f"Merge it (start_run merge) and give {engine} the merged model.")
    scale = _scale_faults(engine, shape)
    if scale:
        how = "Multiply lora_B by the lost factor and take the option out of adapter_config.json, or merge it."
        return Verdict("repair", tuple(scale), how)
    if engine == "sglang" and any(dtype not in ("BF16", "F16") for dtype in shape.dtypes):
        reason = f"its weights are {', '.join(shape.dtypes)}, not BF16 or F16"
        return Verdict("convert", (reason,), f"Save the adapter in bfloat16, then {_how(engine, shape)}")
    return Verdict("yes", (), _how(engine, shape))


def _refusals(engine: str, shape: Shape) -> list[str]:
    rank = shape.largest_rank or 0
    faults = {
        f"method {shape.peft_type} (only LORA is taken)": shape.peft_type != "LORA",
        "use_dora": shape.dora,
        f"bias {shape.bias!r}": shape.bias != "none",
        "modules_to_save": shape.modules_to_save,
        "trainable_token_indices": shape.trainable_tokens,
        "saved embeddings": shape.embeddings,
        f"init_lora_weights {shape.changed_base!r} (the base must be changed first, as PEFT does)": shape.changed_base
        is not None,
        f"rank {rank} is above the largest --max-lora-rank ({VLLM_RANKS[-1]})": engine == "vllm"
        and not vllm_rank(rank),
    }
    return [reason for reason, holds in faults.items() if holds]


def _scale_faults(engine: str, shape: Shape) -> list[str]:
    faults = {
        "rsLoRA is ignored: the adapter acts sqrt(rank) times too weakly": shape.rslora and engine != "vllm",
        "alpha_pattern is ignored": shape.alpha_pattern,
        "the scale of rank_pattern's modules is worked out from the common rank": shape.rank_pattern
        and engine != "llama.cpp",
    }
    return [reason for reason, holds in faults.items() if holds]


def _how(engine: str, shape: Shape) -> str:
    rank = vllm_rank(shape.largest_rank or 1)
    return {
        "vllm": f"vllm serve BASE --enable-lora --max-lora-rank {rank} --lora-modules NAME=/absolute/adapter",
        "sglang": "python3 -m sglang.launch_server --model-path BASE --enable-lora --lora-paths NAME=/absolute/adapter",
        "llama.cpp": "python convert_lora_to_gguf.py --base BASE --outfile a.gguf ADAPTER; "
        "llama-server -m base.gguf --lora a.gguf",
        "ollama": "Convert it to GGUF (convert_lora_to_gguf.py), name it as ADAPTER in the Modelfile; write TEMPLATE "
        "and PARAMETER stop as in training. Safetensors adapters work for llama and gemma2 only.",
    }[engine]
