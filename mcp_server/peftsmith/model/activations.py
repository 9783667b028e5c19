"""What the forward pass of a block keeps for its backward pass, in bytes a token, from the block's own widths.

Knows: which tensors autograd saves in attention, feed-forward, experts and norms of transformers 5, by number format,
activation function and attention kernel, for a frozen and for a trained base.
Does not know: what an adapter adds (methods.py), losses (losses.py), or weights, optimiser and allocator (memory.py).
A test compares the sums with torch's saved_tensors_hooks.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftsmith.model.blocks import Attention, Block, Experts, FeedForward
from peftsmith.model.geometry import Geometry

# Tensors of the hidden width that an activation function keeps (transformers/activations.py, torch autograd formulas):
# fused kernels keep their input; gelu_new is written out in Python and keeps x, 0.5 x, tanh and 1 + tanh.
KEPT_BY_ACTIVATION = {
    "gelu_new": 4,
    "gelu_fast": 6,
    "gelu_python": 3,
    "bloom_gelu": 1,
    "quick_gelu": 2,
    "relu2": 1,
    "relu_squared": 1,
}
# Under autocast gelu_new's power is float32 (torch's list of float32 operations), and so is what follows it: x, tanh
# and 1 + tanh in float32 beside 0.5 x in 16 bits.
GELU_NEW_UNDER_AUTOCAST = 7
# Tensors of the hidden width that a backward pass written out in Python needs at once, beside what was kept
# (modeling_bloom.py, bloom_gelu_back: the incoming gradient, the tanh and four products).
# Those of a square: the power, twice it, its product with the gradient, the gradient (autograd, pow_backward).
GRADIENTS_OF_ACTIVATION = {"bloom_gelu": 6, "relu2": 4, "relu_squared": 4}
# A scan over states has no formula here: what its projections put out, three times over (input, state, output).
STATE_COPIES = 3
FLOAT32 = 4


@dataclass(frozen=True)
class Numbers:
    """How a run computes. Bytes a number: `wide` of a linear layer's output, `attention` of q, k, v, `adapter` of LoRA,
    `logit` of the head's output.

    `autocast` as HF's Trainer sets it with bf16 or fp16; `masked`: a mask (of padding, or of packed rows) reaches the
    attention kernel; `flash`: FlashAttention instead of SDPA; `math`: SDPA falls back to the kernel that keeps all
    probabilities;
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


def block(body: Block, geo: Geometry, length: int, numbers: Numbers) -> float:
    """Bytes a token that one block keeps, adapters left out. `length` in tokens of a row."""
    kept: float = (body.norms + body.double_norms) * FLOAT32 * body.hidden
    if not numbers.autocast:  # which makes layer_norm's input float32, and keeps that
        kept -= body.centred_norms * (FLOAT32 - numbers.wide) * body.hidden
    kept += sum(_attention(each, geo, length, numbers) for each in body.attention)
    kept += sum(_feed_forward(each, geo, numbers) for each in body.feed_forward)
    kept += sum(_experts(each, geo, body.hidden, numbers) for each in body.experts)
    kept += STATE_COPIES * numbers.wide * body.state
    if geo.dropout:
        kept += body.hidden * (len(body.attention) + len(body.feed_forward))
    return kept + (_trained(body, geo, numbers) if numbers.trained else 0)


def _attention(unit: Attention, geo: Geometry, length: int, numbers: Numbers) -> float:
    if numbers.eager:
        return _eager(unit, geo, length, numbers)
    query, key, value = unit.query, unit.key, unit.value
    repeated = (numbers.masked and not numbers.flash) or numbers.math
    if repeated and geo.kv_heads != geo.heads:
        key, value = query, max(query, value)  # repeat_kv
    size = numbers.attention
    kept = size * (2 * query + key + value) + FLOAT32 * geo.heads + _around_attention(unit, numbers)
    if unit.fused and geo.rotary and not repeated and numbers.wide == size:
        kept += size * (unit.query + unit.key)  # the value is a view, which holds the whole fused output
    if numbers.masked and not numbers.flash:
        kept += size * length
    if numbers.math:
        kept += size * (geo.heads * length + 2 * query)
    return kept


def _eager(unit: Attention, geo: Geometry, length: int, numbers: Numbers) -> float:
    """Attention written out: query, key and value, copied for a product over batch and heads, and of every score the
    probability in float32 and in the format of the value, a mask of bytes where they are dropped, and the tanh where
    scores are capped. The output is kept by who reads it."""
    query, key, value = unit.query, unit.key, unit.value
    if geo.kv_heads != geo.heads:
        key, value = query, max(query, value)
    size = numbers.attention
    scored_in = FLOAT32 if geo.float32_scores and not numbers.autocast else size
    kept = scored_in * (query + key) + size * value + _around_attention(unit, numbers)
    if numbers.trained:
        kept += size * query
    each = FLOAT32 + (size if size < FLOAT32 else 0)
    if geo.attention_dropout:
        each += 1 + (size if size == FLOAT32 else 0)
    if geo.softcap:
        each += size
    return kept + geo.heads * length * each


def _around_attention(unit: Attention, numbers: Numbers) -> float:
    copied = unit.normed and (numbers.autocast or not unit.centred)  # layer_norm keeps a view of the fused output
    kept = FLOAT32 * (unit.query + unit.key) if copied else 0
    return kept + (FLOAT32 + numbers.wide) * unit.low_rank


def scores_backward(body: Block, geo: Geometry, length: int, numbers: Numbers) -> float:
    """Bytes a token that eager attention's backward pass needs at its highest, beyond what was kept: the gradients of
    the float32 probabilities and of the scores, when the probabilities' copy in 16 bits is gone."""
    if not numbers.eager or not body.attention:
        return 0
    gone = numbers.attention if numbers.attention < FLOAT32 else 0
    return geo.heads * length * (2 * FLOAT32 - gone)


def experts_at_once(body: Block, geo: Geometry, numbers: Numbers) -> float:
    """Bytes a token that experts need for a moment: of every chosen expert its input, its weighted output and that in
    the tokens' order (transformers' integrations/moe.py, grouped_mm_experts_forward)."""
    chosen = sum(min(geo.experts_per_token, each.count) for each in body.experts)
    return 3 * numbers.wide * chosen * body.hidden


def freed_before_attention(body: Block, geo: Geometry, numbers: Numbers) -> float:
    """Bytes a token that a block's feed-forward part kept, which is gone when its attention runs backward."""
    kept = sum(_feed_forward(each, geo, numbers) for each in body.feed_forward)
    kept += sum(_experts(each, geo, body.hidden, numbers) for each in body.experts)
    if numbers.trained:
        kept += numbers.wide * (sum(each.width for each in body.feed_forward) + body.hidden * len(body.feed_forward))
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


def _trained(body: Block, geo: Geometry, numbers: Numbers) -> float:
    """Inputs of the linear layers and of the norms' weights, which a frozen base need not keep."""
    inputs = numbers.wide * body.hidden * (len(body.attention) + len(body.feed_forward))
    if geo.activation != "relu":  # which keeps its output, the next layer's input
        inputs += numbers.wide * sum(each.width for each in body.feed_forward)
    product = FLOAT32 if body.wide_norms else numbers.wide  # what a norm's weight is multiplied with
    inputs += product * sum(each.query + each.key for each in body.attention if each.normed)
    return inputs + product * body.hidden * (body.norms - body.centred_norms)
