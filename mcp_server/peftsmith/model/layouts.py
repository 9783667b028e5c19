"""What config.json implies for dense Llama-like language models: every tensor with its shape, every module.

Knows: the model types of transformers whose layers are q/k/v/o_proj and gate/up/down_proj, and the defaults of their
configuration classes (transformers 5.23, configuration_<type>.py).
Does not know: what is really stored (anatomy.py compares), or any other kind of architecture: those have no layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from peftsmith.errors import PeftsmithError

Bias = Literal["never", "always", "attention_bias", "mlp_bias"]
_TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
_FOUR_NORMS = (*_TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
# No model comes near these; they keep an absurd config from filling the memory.
_LARGEST = {"num_hidden_layers": 2000, "num_attention_heads": 10_000, "num_key_value_heads": 10_000}
_LARGEST_OTHER = 100_000_000


@dataclass(frozen=True)
class Kind:
    """One model type: where it departs from Llama. `kv_heads` and `head_dim` are its defaults (None: as Llama)."""

    architecture: str
    kv_heads: int | None = None
    head_dim: int | None = None
    tied: bool = False
    qkv_bias: Bias = "never"
    o_bias: Bias = "never"
    mlp_bias: Bias = "never"
    head_norms: bool = False
    norms: tuple[str, ...] = _TWO_NORMS


KINDS: dict[str, Kind] = {
    "llama": Kind("LlamaForCausalLM", qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"),
    "mistral": Kind("MistralForCausalLM", kv_heads=8),
    "qwen2": Kind("Qwen2ForCausalLM", kv_heads=32, qkv_bias="always"),
    "qwen3": Kind(
        "Qwen3ForCausalLM",
        kv_heads=32,
        head_dim=128,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        head_norms=True,
    ),
    "smollm3": Kind(
        "SmolLM3ForCausalLM",
        kv_heads=4,
        tied=True,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
    ),
    "granite": Kind("GraniteForCausalLM", qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"),
    "gemma": Kind(
        "GemmaForCausalLM",
        kv_heads=16,
        head_dim=256,
        tied=True,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
    ),
    "gemma2": Kind(
        "Gemma2ForCausalLM",
        kv_heads=4,
        head_dim=256,
        tied=True,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        norms=_FOUR_NORMS,
    ),
    "gemma3_text": Kind(
        "Gemma3ForCausalLM",
        kv_heads=4,
        head_dim=256,
        tied=True,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        head_norms=True,
        norms=_FOUR_NORMS,
    ),
}


@dataclass(frozen=True)
class Layout:
    """A model of one kind with its sizes; widths in elements."""

    kind: Kind
    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    biases: Mapping[str, bool]

    def linear(self) -> dict[str, tuple[int, int]]:
        """Every linear module of the layers, full path to (in_features, out_features), in the model's own order."""
        return {f"model.layers.{n}.{name}": size for n in range(self.layers) for name, size in self.one_layer().items()}

    def one_layer(self) -> dict[str, tuple[int, int]]:
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (self.hidden, query),
            "self_attn.k_proj": (self.hidden, key),
            "self_attn.v_proj": (self.hidden, key),
            "self_attn.o_proj": (query, self.hidden),
            "mlp.gate_proj": (self.hidden, self.intermediate),
            "mlp.up_proj": (self.hidden, self.intermediate),
            "mlp.down_proj": (self.intermediate, self.hidden),
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every parameter as transformers counts it: a tied lm_head is no parameter of its own."""
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        layer: dict[str, tuple[int, ...]] = {}
        for name, (inputs, outputs) in self.one_layer().items():
            layer[name + ".weight"] = (outputs, inputs)
            if self.biases[name.split(".")[-1]]:
                layer[name + ".bias"] = (outputs,)
        if self.kind.head_norms:
            layer |= {"self_attn.q_norm.weight": (self.head_dim,), "self_attn.k_norm.weight": (self.head_dim,)}
        layer |= {f"{norm}.weight": (self.hidden,) for norm in self.kind.norms}
        shapes |= {f"model.layers.{n}.{name}": shape for n in range(self.layers) for name, shape in layer.items()}
        shapes["model.norm.weight"] = (self.hidden,)
        return shapes if self.tied else shapes | {"lm_head.weight": (self.vocab, self.hidden)}

    def other_modules(self) -> tuple[str, ...]:
        """Modules that LoRA cannot adapt (containers, norms, activations), by full path."""
        inner = ["self_attn", "mlp", "mlp.act_fn", *self.kind.norms]
        inner += ["self_attn.q_norm", "self_attn.k_norm"] if self.kind.head_norms else []
        layers = [f"model.layers.{n}" for n in range(self.layers)]
        return (
            *("model", "model.layers", "model.norm", "model.rotary_emb"),
            *layers,
            *(f"{layer}.{name}" for layer in layers for name in inner),
        )


def find(config: Mapping[str, Any]) -> Layout | None:
    """The layout that `config` describes, or None when its model type is not one of KINDS or not its causal LM.

    Raises PeftsmithError for sizes that are missing, not positive whole numbers, or absurd.
    """
    model_type = config.get("model_type")
    kind = KINDS.get(model_type) if isinstance(model_type, str) else None
    if kind is None or model_type is None or not _is_causal(config, kind):
        return None
    heads = size(config, "num_attention_heads")
    hidden = size(config, "hidden_size")
    head_dim = (
        size(config, "head_dim", kind.head_dim or 0) if config.get("head_dim") or kind.head_dim else hidden // heads
    )
    kv_heads = size(config, "num_key_value_heads", kind.kv_heads or heads) if _kv_stated(config, kind) else heads
    if head_dim < 1 or heads % kv_heads:
        raise PeftsmithError(
            "config.json contradicts itself: the heads do not divide evenly",
            value={"num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_size": hidden},
            next_step="Fetch config.json again, or correct it.",
        )
    return Layout(
        kind=kind,
        model_type=model_type,
        layers=size(config, "num_hidden_layers"),
        hidden=hidden,
        intermediate=size(config, "intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=size(config, "vocab_size"),
        tied=flag(config, "tie_word_embeddings", kind.tied),
        biases={
            **{name: _has_bias(config, kind.qkv_bias) for name in ("q_proj", "k_proj", "v_proj")},
            "o_proj": _has_bias(config, kind.o_bias),
            **{name: _has_bias(config, kind.mlp_bias) for name in ("gate_proj", "up_proj", "down_proj")},
        },
    )


def size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive whole number of config.json."""
    value = config.get(key, default)
    if type(value) is not int or not 1 <= value <= _LARGEST.get(key, _LARGEST_OTHER):
        raise PeftsmithError(
            f"config.json gives no usable {key}", value=value, next_step="Fetch config.json again, or correct it."
        )
    return value


def flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise PeftsmithError(
            f"{key} in config.json must be true or false", value=value, next_step="Correct config.json."
        )
    return value


def _kv_stated(config: Mapping[str, Any], kind: Kind) -> bool:
    """transformers fills a missing key with the class default, but takes an explicit null as "one per head"."""
    return config.get("num_key_value_heads") is not None or (
        "num_key_value_heads" not in config and kind.kv_heads is not None
    )


def _has_bias(config: Mapping[str, Any], rule: Bias) -> bool:
    return rule == "always" or (rule != "never" and flag(config, rule, False))


def _is_causal(config: Mapping[str, Any], kind: Kind) -> bool:
    names = config.get("architectures")
    return names is None or (isinstance(names, list) and names[:1] in ([], [kind.architecture]))
