"""What the loss of a training step holds on top of the hidden states, by the code path that works it out.

Knows: bytes a logit of the stock causal-LM loss, fused kernels, TRL's chunked loss, cut cross-entropy, preference and
policy losses, and classification.
Does not know: activations below the head (activations.py), or which trainer takes which path (the request says it).
"""

from __future__ import annotations

from typing import Literal

Loss = Literal["trl_chunked", "stock", "stock_narrow", "fused", "fused_narrow", "liger"]
LOSSES: tuple[Loss, ...] = ("trl_chunked", "stock", "stock_narrow", "fused", "fused_narrow", "liger")

# TRL 1.16, trl/kernels/chunked_logprob.py and trl/trainer/utils.py: the loss works on tiles of tokens x vocabulary
TRL_TOKENS, TRL_VOCABULARY = 4096, 32768
# Without Triton the tile's gradient is worked out in torch: scaled, shifted, log-probability, probability, gradient,
# target mask and three temporaries, each a float32 tile (same file, _backward_tile).
TRL_TILES_IN_TORCH = 9
# Bytes a logit. Stock: 16-bit logits, their float32 copy, float32 log-softmax and float32 gradient (transformers'
# ForCausalLMLoss); with float32 logits two more. Narrow: no float32 copy, as the classes of transformers 4 outside the
# Llama family worked (logits, their shifted copy, log-softmax and gradient, in the model's format; under autocast all
# in float32: torch's list of float32 operations has log_softmax and nll_loss, and accelerate's convert_outputs_to_fp32
# the logits). Fused: the kernel writes the gradient into the float32 copy.
STOCK, STOCK_FLOAT32, FUSED = 14, 16, 10
# Liger's fused linear cross-entropy takes chunks of about hidden tokens x hidden (liger_kernel/ops/fused_linear_cross_
# entropy.py: the number of chunks is vocabulary / hidden, rounded up to a power of two).
_LIGER_LOGIT = 6


def held(
    loss: str, *, tokens: int, vocab: int, hidden: int, wide: int, autocast: bool, triton: bool, trained_head: bool
) -> int:
    """Bytes at the moment when the loss is worked out for `tokens` positions; `wide`: bytes a logit of the model."""
    if loss == "stock":
        return (STOCK_FLOAT32 if wide == 4 else STOCK) * vocab * tokens
    if loss in ("stock_narrow", "fused_narrow"):
        return (4 if loss == "stock_narrow" else 3) * (4 if autocast else wide) * vocab * tokens
    if loss == "fused":
        return FUSED * vocab * tokens
    if loss == "liger":
        chunks = 1 << max(0, -(-vocab // hidden) - 1).bit_length()
        return _LIGER_LOGIT * vocab * -(-tokens // chunks) + wide * hidden * (tokens + (vocab if trained_head else 0))
    number = 2 if autocast else wide
    tile = min(tokens, TRL_TOKENS) * min(TRL_VOCABULARY, vocab)
    tiles = tile * number + (0 if triton else tile * 4 * TRL_TILES_IN_TORCH)
    head = min(TRL_VOCABULARY, vocab) * hidden * 4 if number == 2 and not triton else 0
    return tiles + tokens * hidden * (4 + number) + head + (vocab * hidden * 4 if trained_head else 0)


def reference_logits(*, tokens: int, vocab: int, wide: int) -> int:
    """A forward pass of the reference policy without gradients: its logits and their float32 log-softmax."""
    return (wide + 4) * vocab * tokens
