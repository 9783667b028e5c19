"""What the forward pass of a block keeps for its backward pass, in bytes a token, from the block's own widths.

Knows: which tensors autograd saves in attention, feed-forward, experts and norms of transformers 5, by number format,
activation function and attention kernel, for a frozen and for a trained base.
Does not know: what an adapter adds (methods.py), losses (losses.py), or weights, optimiser and allocator (memory.py).
A test compares the sums with torch's saved_tensors_hooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftsmith.model.blocks import Attention, Block, Experts, FeedForward

# Tensors of the hidden width that an activation function keeps (transformers/activations.py, torch autograd formulas):
# fused kernels keep their input; gelu_new is written out in Python and keeps x, 0.5 x, tanh and 1 + tanh.
KEPT_BY_ACTIVATION = {
    "gelu_new": 4,
    "gelu_fast": 6,
    "gelu_python": 3,
    "quick_gelu": 2,
    "relu2": 2,
    "relu_squared": 2,
}
# Under autocast gelu_new's power is float32 (torch's list of float32 operations), and so is what follows it: x, tanh and
# 1 + tanh in float32 beside 0.5 x in 16 bits.
GELU_NEW_UNDER_AUTOCAST = 7
# What classes take where a config.json says nothing (configuration_<type>.py): written-out activations, dropout on the
# residual stream, positions that are learned or added to the scores instead of rotated into query and key.
_GELU_NEW = ("gpt2", "gptj", "gpt_neo", "codegen", "phi")
_DROPOUT = ("gpt2", "gpt_bigcode", "opt")
_NOT_ROTARY = ("gpt2", "gpt_bigcode", "gpt_neo", "opt", "bloom", "mpt", "xglm", "biogpt")
# A scan over states has no formula here: what its projections put out, three times over (input, state, output).
STATE_COPIES = 3
FLOAT32 = 4


@dataclass(frozen=True)
class Numbers:
    """How a run computes. Bytes a number: `wide` of a linear layer's output, `attention` of q, k, v, `adapter` of LoRA,
    `logit` of the head's output.

    `autocast` as HF's Trainer sets it with bf16 or fp16; `masked`: a padding mask reaches the attention kernel;
    `flash`: FlashAttention instead of SDPA; `math`: SDPA falls back to the kernel that keeps all probabilities;
    `eager`: attention written out, which keeps them in two formats. `trained`: the base's own weights train.
    """

    wide: int
    attention: int
    adapter: int
    autocast: bool
    masked: bool
    flash: bool
    math: bool
    dropout: bool
    eager: bool = False
    trained: bool = False
    logit: int = 2


@dataclass(frozen=True)
class Geometry:
    """What config.json says of attention and activation functions; heads of the text model."""

    heads: int
    kv_heads: int
    head_dim: int
    activation: str
    experts_per_token: int
    dropout: bool
    rotary: bool


def geometry(config: Mapping[str, Any], *, heads: int, kv_heads: int, head_dim: int) -> Geometry:
    """The geometry of a config.json (text_config of a composed model)."""
    text = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else config
    assert isinstance(text, Mapping)
    names = (
        "hidden_act",
        "activation_function",
        "hidden_activation",
        "dense_act_fn",
        "feed_forward_proj",
        "activation",
    )
    kind = text.get("model_type")
    usual = "gelu_new" if kind in _GELU_NEW else "silu"
    activation = next((text[name] for name in names if isinstance(text.get(name), str)), usual)
    per_token = next(
        (text[name] for name in ("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_k")
         if isinstance(text.get(name), int)), 2,
    )  # fmt: skip
    rates = ("resid_pdrop", "hidden_dropout", "hidden_dropout_prob", "dropout", "dropout_rate", "resid_dropout")
    return Geometry(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        activation=str(activation).removeprefix("gated-"),
        experts_per_token=per_token,
        dropout=any(isinstance(text.get(name), float) and text[name] > 0 for name in rates)
        or (kind in _DROPOUT and not any(name in text for name in rates)),
        rotary=kind not in _NOT_ROTARY and text.get("alibi") is not True,
    )


def block(body: Block, geo: Geometry, length: int, numbers: Numbers) -> float:
    """Bytes a token that one block keeps, adapters left out. `length` in tokens of a row."""
    kept: float = body.norms * FLOAT32 * body.hidden
    if not numbers.autocast:  # which makes layer_norm's input float32, and keeps that
        kept -= body.centred_norms * (FLOAT32 - numbers.wide) * body.hidden
    kept += sum(_attention(each, geo, length, numbers) for each in body.attention)
    kept += sum(_feed_forward(each, geo, numbers) for each in body.feed_forward)
    kept += sum(_experts(each, geo, body.hidden, numbers) for each in body.experts)
    kept += STATE_COPIES * numbers.wide * body.state
    if geo.dropout:
        kept += body.hidden * (len(body.attention) + len(body.feed_forward))
    return kept + (_trained(body, numbers) if numbers.trained else 0)


def _attention(unit: Attention, geo: Geometry, length: int, numbers: Numbers) -> float:
    query, key, value = unit.query, unit.key, unit.value
    repeated = (numbers.masked and not numbers.flash) or numbers.math or numbers.eager
    if repeated and geo.kv_heads != geo.heads:
        key, value = query, max(query, value)  # repeat_kv
    size = numbers.attention
    kept = size * (2 * query + key + value) + FLOAT32 * geo.heads
    if unit.fused and geo.rotary and not repeated:
        kept += size * (unit.query + unit.key)  # the value is a view, which holds the whole fused output
    if unit.normed:
        kept += FLOAT32 * (unit.query + unit.key)
    kept += (FLOAT32 + numbers.wide) * unit.low_rank
    if numbers.eager:
        return kept + geo.heads * length * (FLOAT32 + size) + size * query
    if numbers.masked and not numbers.flash:
        kept += size * length
    if numbers.math:
        kept += size * (geo.heads * length + 2 * query)
    return kept


def _feed_forward(unit: FeedForward, geo: Geometry, numbers: Numbers) -> float:
    tensors = KEPT_BY_ACTIVATION.get(geo.activation, 1)
    if geo.activation == "gelu_new" and numbers.autocast and numbers.wide == 2:
        tensors = GELU_NEW_UNDER_AUTOCAST
    return (tensors + (2 if unit.gated else 0)) * numbers.wide * unit.width


def _experts(unit: Experts, geo: Geometry, hidden: int, numbers: Numbers) -> float:
    """Every token runs through `experts_per_token` experts; routing weights want the experts' outputs kept as well."""
    one = _feed_forward(FeedForward(unit.width, unit.gated, True), geo, numbers) + numbers.wide * hidden
    chosen = min(geo.experts_per_token, unit.count) * one
    if numbers.trained:
        chosen += min(geo.experts_per_token, unit.count) * numbers.wide * (hidden + unit.width)
    return chosen + 2 * FLOAT32 * unit.count


def _trained(body: Block, numbers: Numbers) -> float:
    """Inputs of the linear layers and of the norms' weights, which a frozen base need not keep."""
    inputs = numbers.wide * body.hidden * (len(body.attention) + len(body.feed_forward))
    inputs += numbers.wide * sum(each.width for each in body.feed_forward)
    return inputs + numbers.wide * body.hidden * (body.norms - body.centred_norms)
