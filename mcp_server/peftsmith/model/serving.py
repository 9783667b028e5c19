"""Whether a LoRA adapter on a model can be served, engine by engine.

Knows: what vLLM, SGLang, llama.cpp, Ollama and Transformers accept of a plain LoRA adapter, and how they must be told.
Does not know: what is in a finished adapter (adapter/inspect.py checks that), or how to start a server.
Sources: vllm/config/lora.py and vllm/lora/peft_helper.py; SGLang docs advanced_features/lora; llama.cpp
convert_lora_to_gguf.py; Ollama docs import.md and convert/convert.go. Every verdict starts with ok, convert or merge.
"""

from __future__ import annotations

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# PEFT 0.21.2 on a tiny Llama: these train but have no merge.
NOT_MERGEABLE = (
    "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT",
    "LILY", "POLY", "XLORA",
)  # fmt: skip
# Families whose adapters Ollama reads as safetensors; all others go through a GGUF adapter.
_OLLAMA_SAFETENSORS = ("llama", "gemma2")


def verdicts(
    model_type: str, rank: int, *, ends_adapted: bool, method: str = "LORA", experts: bool = False
) -> dict[str, str]:
    """Verdict by engine for an adapter at `rank`; `ends_adapted`: lm_head, the embedding or a whole module is
    trained as well; `experts`: fused experts are adapted."""
    if method != "LORA":
        return _other_methods(method)
    if experts:
        return {
            "vllm": "unknown: fused experts need vLLM 0.11.2 or newer, without rsLoRA; test yours",
            "sglang": "unknown: adapters on experts were merged in 2025; test your version",
            "llama.cpp": "merge: convert_lora_to_gguf.py knows no fused experts",
            "ollama": "merge: import the merged full model",
            "transformers": "ok: as an adapter",
        }
    if ends_adapted:
        merge = "merge: adapters on lm_head or the embedding are not served; merge into a full model first"
        engines = ("vllm", "sglang", "llama.cpp", "ollama")
        return {**dict.fromkeys(engines, merge), "transformers": "ok: as an adapter"}
    return {
        "vllm": _vllm(rank),
        "sglang": f"ok: as an adapter, with --enable-lora --max-lora-rank {rank}",
        "llama.cpp": "convert: convert_lora_to_gguf.py, then llama-server --lora",
        "ollama": (
            "ok: ADAPTER in the Modelfile reads the safetensors folder, FROM the exact base"
            if model_type in _OLLAMA_SAFETENSORS
            else "convert: to a GGUF adapter first, or merge and import the full model"
        ),
        "transformers": "ok: as an adapter",
    }


def _other_methods(method: str) -> dict[str, str]:
    """Servers load LoRA only; what can be merged is served as a full model (PEFT's own merge tells which)."""
    merged = f"merge: only LoRA adapters are served; a {method} adapter must be merged, if it can be"
    if method in NOT_MERGEABLE:
        merged = f"no: {method} cannot be merged, and servers load LoRA adapters only"
    return {**dict.fromkeys(("vllm", "sglang", "llama.cpp", "ollama"), merged), "transformers": "ok: as an adapter"}


def _vllm(rank: int) -> str:
    fitting = next((size for size in VLLM_RANKS if size >= rank), None)
    if fitting is None:
        return f"merge: rank {rank} is above vLLM's largest, {VLLM_RANKS[-1]}"
    return f"ok: as an adapter, with --enable-lora --max-lora-rank {fitting}"
