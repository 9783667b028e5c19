"""What a model's class does in a forward pass that its modules do not show: activations, dropout, positions, kernels.

Knows: config.json's names for it, and what classes of transformers 5 take or do where a config.json says nothing.
Does not know: modules (blocks.py), or what any of it keeps (activations.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Defaults of configuration_<type>.py: written-out activations, dropout, positions that are learned or added to the
# scores instead of rotated into query and key.
_ACTIVATIONS = {
    **dict.fromkeys(("gpt2", "gptj", "gpt_neo", "codegen", "phi"), "gelu_new"),
    **dict.fromkeys(("bloom", "mpt", "falcon", "bert", "roberta", "deberta", "deberta-v2", "modernbert", "bart",
                     "gpt_neox", "xlm-roberta", "distilbert", "electra", "albert"), "gelu"),
    **dict.fromkeys(("gpt_bigcode", "starcoder2", "gemma", "gemma2", "gemma3_text"), "gelu_pytorch_tanh"),
    "opt": "relu", "t5": "relu", "persimmon": "relu2",
}  # fmt: skip
_DROPOUT = ("gpt2", "gpt_bigcode", "opt", "bert", "roberta", "xlm-roberta", "deberta", "deberta-v2", "electra",
            "distilbert", "t5", "mt5", "bart", "mbart")  # fmt: skip
_ATTENTION_DROPOUT = ("gpt2", "gpt_bigcode", "bert", "roberta", "xlm-roberta", "deberta", "deberta-v2", "electra",
                      "distilbert", "t5", "mt5")  # fmt: skip
_NOT_ROTARY = (
    "gpt2", "gpt_bigcode", "gpt_neo", "opt", "bloom", "mpt", "xglm", "biogpt", "bert", "roberta", "xlm-roberta",
    "deberta", "deberta-v2", "electra", "distilbert", "albert", "t5", "mt5", "umt5", "bart", "mbart", "pegasus",
)  # fmt: skip
# Classes without the kernels (_supports_sdpa, _supports_flash_attn): transformers takes eager attention instead.
_NO_KERNEL = (
    "bloom", "mpt", "codegen", "openai-gpt", "xglm", "rembert", "roformer", "megatron-bert", "gpt_neox_japanese",
    "deberta", "deberta-v2", "mpnet", "squeezebert", "ibert", "layoutlmv2", "layoutlmv3", "lilt", "luke", "prophetnet",
    "mvp", "led", "fsmt", "bigbird_pegasus", "switch_transformers", "longt5", "nllb-moe", "deepseek_v4",
)  # fmt: skip
_NO_SDPA = (
    *_NO_KERNEL, "gptj", "gpt_neo", "gemma2", "gpt_oss", "granite_swa", "granitemoe_swa", "mimo_v2_flash",
    "vaultgemma", "flint", "t5gemma", "pegasus_x",
)  # fmt: skip
_NO_FLASH = (*_NO_KERNEL, "t5", "mt5", "umt5", "llama4", "llama4_text", "doge", "t5gemma2")
# modeling_<type>.py: query and key are made float32 before the eager scores.
_FLOAT32_SCORES = ("gptj", "codegen", "gpt_neo")
# Attention and MLP beside each other: by a field of config.json, and the types for which that is so without it.
_PARALLEL = {
    "use_parallel_residual": ("gpt_neox", "gptj", "codegen", "phi", "cohere", "cohere2"),
    "parallel_attn": ("falcon",),
}
_RATES = ("resid_pdrop", "hidden_dropout", "hidden_dropout_prob", "dropout", "dropout_rate", "resid_dropout",
          "residual_dropout")  # fmt: skip
_ATTENTION_RATES = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "attn_dropout", "dropout_rate")


@dataclass(frozen=True)
class Geometry:
    """Heads of the text model, and what config.json and the class say of attention and activation functions.

    `dropout` on the residual stream, `attention_dropout` on probabilities; `sdpa` and `flash`: the class has these
    kernels; `softcap`, `logit_softcap`: scores, logits go through a tanh; `float32_scores`: eager scores are worked out
    in float32; `parallel`: the MLP reads what attention reads.
    """

    heads: int
    kv_heads: int
    head_dim: int
    activation: str
    experts_per_token: int
    dropout: bool
    rotary: bool
    attention_dropout: bool = False
    sdpa: bool = True
    flash: bool = True
    softcap: bool = False
    logit_softcap: bool = False
    parallel: bool = False
    float32_scores: bool = False


def geometry(config: Mapping[str, Any], *, heads: int, kv_heads: int, head_dim: int) -> Geometry:
    """The geometry of a config.json (text_config of a composed model)."""
    text = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else config
    assert isinstance(text, Mapping)
    names = (
        "hidden_act", "activation_function", "hidden_activation", "dense_act_fn", "feed_forward_proj", "activation",
    )  # fmt: skip
    kind = str(text.get("model_type"))
    activation = (
        "bloom_gelu"
        if kind == "bloom"
        else next((text[name] for name in names if isinstance(text.get(name), str)), _ACTIVATIONS.get(kind, "silu"))
    )
    per_token = next(
        (text[name] for name in ("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_k")
         if isinstance(text.get(name), int)), 2,
    )  # fmt: skip
    return Geometry(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        activation=str(activation).removeprefix("gated-"),
        experts_per_token=per_token,
        dropout=_drops(text, _RATES, default=kind in _DROPOUT),
        rotary=kind not in _NOT_ROTARY and text.get("alibi") is not True,
        attention_dropout=_drops(text, _ATTENTION_RATES, default=kind in _ATTENTION_DROPOUT),
        sdpa=kind not in _NO_SDPA,
        flash=kind not in _NO_FLASH,
        logit_softcap=isinstance(text.get("final_logit_softcapping", 30.0 if kind == "gemma2" else None), int | float),
        softcap=isinstance(text.get("attn_logit_softcapping", 50.0 if kind == "gemma2" else None), int | float),
        float32_scores=kind in _FLOAT32_SCORES,
        parallel=any(text.get(name, kind in kinds) is True for name, kinds in _PARALLEL.items()),
    )


def _drops(text: Mapping[str, Any], names: tuple[str, ...], *, default: bool) -> bool:
    """Whether any of these rates is above 0; `default` when the config says none of them."""
    said = [text[name] for name in names if isinstance(text.get(name), int | float)]
    return any(rate > 0 for rate in said) if said else default
