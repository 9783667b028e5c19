"""What a forward pass of a dense Llama-like model with LoRA keeps for its backward pass, in bytes a token.

Knows: which tensors autograd saves in attention, MLP, norms and LoRA branches (transformers 5, PEFT 0.21), by number
format, and what TRL's and the stock causal-LM loss hold.
Does not know: weights, optimiser or allocator (memory.py). A test compares the sums with torch's saved_tensors_hooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peftsmith.model.anatomy import Anatomy

# TRL 1.16, trl/kernels/chunked_logprob.py and trl/trainer/utils.py: the loss works on tiles of tokens x vocabulary
TRL_TOKENS, TRL_VOCABULARY = 4096, 32768
# Without Triton the tile's gradient is worked out in torch: scaled, shifted, log-probability, probability, gradient,
# target mask and three temporaries, each a float32 tile (same file, _backward_tile).
TRL_TILES_IN_TORCH = 9


@dataclass(frozen=True)
class Numbers:
    """How a run computes. Bytes a number: `wide` of a linear layer's output, `attention` of q, k, v, `adapter` of LoRA.

    `autocast` as HF's Trainer sets it with bf16 or fp16; `masked`: a padding mask reaches the attention kernel;
    `flash`: FlashAttention instead of SDPA; `math`: SDPA falls back to the kernel that keeps all probabilities.
    """

    wide: int
    attention: int
    adapter: int
    autocast: bool
    masked: bool
    flash: bool
    math: bool
    dropout: bool


def layer(body: Anatomy, targets: Mapping[str, tuple[int, int]], rank: int, length: int, numbers: Numbers) -> int:
    """Bytes a token of one layer. `targets` maps the leaf names of adapted modules to (in, out); `length` in tokens."""
    query = body.heads * body.head_dim
    key = body.kv_heads * body.head_dim
    norms = 2 * 4 * body.hidden
    if (numbers.masked and not numbers.flash) or numbers.math:
        key = query  # repeat_kv
    attention = numbers.attention * (2 * query + 2 * key) + 4 * body.heads
    if numbers.masked and not numbers.flash:
        attention += numbers.attention * length
    if numbers.math:
        attention += numbers.attention * (body.heads * length + 2 * query)
    mlp = 3 * numbers.wide * body.intermediate
    return norms + attention + mlp + _branches(targets, rank, numbers)


def _branches(targets: Mapping[str, tuple[int, int]], rank: int, numbers: Numbers) -> int:
    """LoRA's own: the input of lora_A and of lora_B. An input in the adapter's own format is kept once for all who
    share it (o_proj's is the attention output, kept anyway); any other is cast, and each module keeps its copy."""
    narrow = 2 if numbers.autocast else numbers.adapter
    shared = numbers.wide == narrow and not (numbers.autocast and numbers.adapter == 4) and not numbers.dropout
    total = len(targets) * narrow * rank
    if not shared:
        copies = sum(narrow * inputs for inputs, _ in targets.values())
        masks = sum(inputs for inputs, _ in targets.values()) if numbers.dropout else 0
        return total + copies + masks
    groups = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("down_proj",))
    for group in groups:
        inputs = [targets[name][0] for name in group if name in targets]
        total += narrow * max(inputs, default=0)
    return total


def stock_loss(vocab: int, tokens: int, numbers: Numbers) -> int:
    """transformers' ForCausalLMLoss: logits, float32 log-softmax and two gradients, 14 or 16 bytes a logit."""
    return (16 if numbers.wide == 4 else 14) * vocab * tokens


def trl_loss(body: Anatomy, tokens: int, numbers: Numbers, *, triton: bool) -> int:
    """TRL 1.16's loss: one tile (several without Triton), the hidden states' float32 gradient, a slice of the head."""
    number = 2 if numbers.autocast else numbers.wide
    tile = min(tokens, TRL_TOKENS) * TRL_VOCABULARY
    tiles = tile * number + (0 if triton else tile * 4 * TRL_TILES_IN_TORCH)
    head = TRL_VOCABULARY * body.hidden * 4 if number == 2 and not triton else 0
    return tiles + tokens * body.hidden * (4 + number) + head
