"""What a PEFT method adds once to a whole model: parts that its modules share, virtual tokens and their encoders.

Knows: shapes and the main activations (PEFT 0.21.2, the files named in each function).
Does not know: what each adapted module adds (methods_lora.py and its siblings).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from peftsmith.errors import PeftsmithError
from peftsmith.model.methods_base import CostUnknown, Numbers, Options
from peftsmith.model.methods_delta import frod_entries
from peftsmith.model.modules import Module


@dataclass(frozen=True)
class Sizes:
    """A model's widths as its config.json has them."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    intermediate: int

    @property
    def key(self) -> int:
        """Width of all key heads together."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class ModelCost:
    """Parameters and elements counted once; bytes kept for each token, each row of a batch, and besides.

    `tokens` are the virtual tokens that every row carries through all layers, `key_tokens` those that only attention
    sees (prefixes). `temporary` in bytes, alive only while the method's own part runs.
    """

    trainable: int = 0
    frozen: int = 0
    frozen_bytes: int = 0
    tokens: int = 0
    key_tokens: int = 0
    saved_per_token: float = 0.0
    saved_per_row: float = 0.0
    saved: int = 0
    temporary: int = 0


_Function = Callable[[Sizes, Options, Sequence[Module]], ModelCost]


def nothing(sizes: Sizes, options: Options, adapted: Sequence[Module]) -> ModelCost:
    """Methods whose modules share nothing."""
    return ModelCost()


def vera(sizes: Sizes, options: Options, adapted: Sequence[Module]) -> ModelCost:
    """tuners/vera/model.py _find_dim: A (r, widest input), B (widest output, r), frozen; pvera/model.py: A has 2 r."""
    ranks = 2 if options.method == "PVERA" else 1
    inputs, outputs = _widest(adapted)
    return _frozen(int(options["r"]) * (ranks * inputs + outputs), options)


def randlora(sizes: Sizes, options: Options, adapted: Sequence[Module]) -> ModelCost:
    """tuners/randlora/model.py: A (r, 1, smaller of the widest), B (larger, bases, r), frozen."""
    small, large = sorted(_widest(adapted))
    rank = int(options["r"])
    return _frozen(rank * (small + large * ceil(small / rank)), options)


def frod(sizes: Sizes, options: Options, adapted: Sequence[Module]) -> ModelCost:
    """tuners/frod/model.py: V (in, in) and int64 coordinates of its trained entries for each category of modules."""
    categories = {".".join([part for part in m.name.split(".") if not part.isdigit()][-2:]): m for m in adapted}
    square = sum(module.inputs**2 for module in categories.values())
    indices = sum(2 * frod_entries(m.inputs, float(options["sparse_rate"])) + 2 for m in categories.values())
    return ModelCost(frozen=square + indices, frozen_bytes=square * options.numbers.wide + 8 * indices)


def vblora(sizes: Sizes, options: Options, adapted: Sequence[Module]) -> ModelCost:
    """tuners/vblora/model.py: the bank of vectors."""
    return ModelCost(trainable=int(options["num_vectors"]) * int(options["vector_length"]))


def unilora(sizes: Sizes, options: Options, adapted: Sequence[Module]) -> ModelCost:
    """tuners/unilora/model.py: one vector."""
    return ModelCost(trainable=int(options["theta_d_length"]))


def tinylora(sizes: Sizes, options: Options, adapted: Sequence[Module]) -> ModelCost:
    """tuners/tinylora/model.py: u numbers for each group of modules; weight_tying sets how many groups."""
    count = len(adapted)
    groups = max(1, round(count * (1.0 - float(options["weight_tying"]))))
    size = max(1, count // groups)
    return ModelCost(trainable=int(options["u"]) * len({min(i // size, groups - 1) for i in range(count)}))


def lily(sizes: Sizes, options: Options, adapted: Sequence[Module]) -> ModelCost:
    """tuners/lily/model.py _post_injection_hook: modules of one target and shape share B (num_B r, out), and each
    stride_A of them one A (r, in)."""
    targets = options.get("target_modules")
    groups: dict[tuple[str, int, int], int] = {}
    for module in adapted:
        names = [module.leaf] if targets is None else [targets] if isinstance(targets, str) else list(targets)
        suffix = next((name for name in reversed(names) if module.name.endswith(name)), names[-1])
        key = (suffix, module.inputs, module.outputs)
        groups[key] = groups.get(key, 0) + 1
    rank, experts, stride = int(options["r"]), int(options["num_B"]), int(options["stride_A"])
    return ModelCost(
        trainable=sum(
            rank * (ceil(count / stride) * inputs + experts * outputs) for (_, inputs, outputs), count in groups.items()
        )
    )


def prompt_tuning(sizes: Sizes, options: Options, adapted: Sequence[Module]) -> ModelCost:
    """tuners/prompt_tuning/model.py: an embedding of virtual tokens, looked up for each row (int64 positions kept)."""
    count = _virtual_tokens(options)
    return ModelCost(trainable=count * sizes.hidden, tokens=count, saved_per_row=8 * count)


def multitask_prompt_tuning(sizes: Sizes, options: Options, adapted: Sequence[Module]) -> ModelCost:
    """tuners/multitask_prompt_tuning/model.py: the prompt times a low-rank matrix for each task; each row keeps both
    factors of that product and the task's own factors."""
    count, tasks, ranks = _virtual_tokens(options), int(options["num_tasks"]), int(options["num_ranks"])
    factors = ranks * (count + sizes.hidden)
    kept = 4 * (2 * count * sizes.hidden + factors) + 8 * (count + 1)
    return ModelCost(trainable=count * sizes.hidden + tasks * factors, tokens=count, saved_per_row=kept)


def p_tuning(sizes: Sizes, options: Options, adapted: Sequence[Module]) -> ModelCost:
    """tuners/p_tuning/model.py: an embedding and a three-layer MLP, or a bidirectional LSTM and a two-layer MLP. For
    each row the MLP keeps its input and two hidden layers; of the LSTM's state the four gates, cell and output of both
    directions are assumed (cuDNN's own workspace is not known)."""
    count, width = _virtual_tokens(options), sizes.hidden
    hidden = int(options["encoder_hidden_size"] or width)
    branch = 2 if options.numbers.autocast else options.numbers.adapter
    if str(options["encoder_reparameterization_type"]).rpartition(".")[2] == "LSTM":
        layers = int(options["encoder_num_layers"])
        first = 8 * hidden * (width + hidden + 2)
        further = 8 * hidden * (2 * hidden + hidden + 2)
        head = 2 * hidden * (2 * hidden + 1) + width * (2 * hidden + 1)
        trainable, kept = first + (layers - 1) * further + head, width + layers * 12 * hidden + 4 * hidden
    else:
        trainable, kept = hidden * (width + hidden + 2) + width * (hidden + 1), width + 2 * hidden
    return ModelCost(trainable + count * width, tokens=count, saved_per_row=count * (branch * kept + 8))


def prefix_tuning(sizes: Sizes, options: Options, adapted: Sequence[Module]) -> ModelCost:
    """tuners/prefix_tuning/model.py: keys and values of every layer for each virtual token, from an embedding or from
    a two-layer MLP over key-wide embeddings. Each row's attention keeps them in its own keys and values."""
    count, widest = _virtual_tokens(options), 2 * sizes.layers * sizes.key
    kept = count * (options.numbers.wide * widest + 8)
    if not options["prefix_projection"]:
        return ModelCost(trainable=count * widest, key_tokens=count, saved_per_row=kept)
    hidden = int(options["encoder_hidden_size"] or sizes.key)
    trainable = count * sizes.key + hidden * (sizes.key + 1) + widest * (hidden + 1)
    branch = 2 if options.numbers.autocast else options.numbers.adapter
    kept += count * branch * (sizes.key + hidden)
    return ModelCost(trainable=trainable, key_tokens=count, saved_per_row=kept)


def cartridge(sizes: Sizes, options: Options, adapted: Sequence[Module]) -> ModelCost:
    """tuners/cartridge/model.py: prefix keys and values, the first of them frozen."""
    count, fixed, widest = _virtual_tokens(options), int(options["num_frozen_tokens"]), 2 * sizes.layers * sizes.key
    if not 0 <= fixed <= count:
        raise PeftsmithError(
            "num_frozen_tokens exceeds num_virtual_tokens", value=fixed, next_step=f"Choose 0 to {count}."
        )
    kept = count * options.numbers.wide * widest
    frozen = fixed * widest
    return ModelCost(
        (count - fixed) * widest, frozen, 4 * frozen, key_tokens=count, saved_per_row=kept, temporary=4 * count * widest
    )


def cpt(sizes: Sizes, options: Options, adapted: Sequence[Module]) -> ModelCost:
    """tuners/cpt/model.py: a trained change beside the frozen embedding of given tokens, both float32."""
    count = len(options["cpt_token_ids"] or ()) or _virtual_tokens(options)
    frozen = count * sizes.hidden
    return ModelCost(frozen, frozen, 4 * frozen, tokens=count, saved_per_row=16 * count)


def adaption_prompt(sizes: Sizes, options: Options, adapted: Sequence[Module]) -> ModelCost:
    """tuners/adaption_prompt/layer.py: a prompt and a gate in the last adapter_layers layers. A token keeps there the
    recomputed queries and its scores over the prompt three times (softmax, cast, gated); a row the prompt's keys and
    values for all heads."""
    length, layers = int(options["adapter_len"] or 0), int(options["adapter_layers"] or 0)
    if not length or not 0 < layers <= sizes.layers:
        raise PeftsmithError(
            "ADAPTION_PROMPT needs adapter_len and 1 or more adapter_layers, at most the model's",
            value={"adapter_len": length, "adapter_layers": layers},
            next_step=f"Set adapter_len and adapter_layers (1 to {sizes.layers}).",
        )
    wide, query = options.numbers.wide, sizes.heads * sizes.head_dim
    token = layers * (wide * query + sizes.heads * length * (4 + 2 * wide))
    return ModelCost(
        trainable=layers * (length * sizes.hidden + 1),
        saved_per_token=token,
        saved_per_row=layers * 2 * wide * length * query,
    )


def xlora(sizes: Sizes, options: Options, adapted: Sequence[Module]) -> ModelCost:
    """tuners/xlora/classifier.py: a classifier over the last hidden state in the base model's format. The LoRA adapters
    that it mixes are checkpoints of their own and are not counted; neither is its extra forward pass."""
    classes = len(options["adapters"] or ())
    if not classes:
        raise PeftsmithError("XLORA needs adapters to mix", next_step="Give the option adapters (name: path).")
    width, size, depth = int(options["hidden_size"] or sizes.hidden), int(options["xlora_size"]), options["xlora_depth"]
    outputs = classes * (len(adapted) if options["layerwise_scalings"] else 1)
    if depth == 1:
        trainable = (width + 1) * outputs
    else:
        trainable = (width + 1) * size + (depth - 2) * (size + 1) * size + (size + 1) * outputs
    kept = options.numbers.wide * (width + (depth - 1) * 2 * size + 2 * outputs)
    return ModelCost(trainable=trainable, saved_per_token=kept)


def shadow(sizes: Sizes, options: Options, adapted: Sequence[Module]) -> ModelCost:
    """tuners/shadow/layers.py and model.py: in each block an injection (r) and two update MLPs (u), and a smaller copy
    of the base model, here as Llama builds it (other architectures differ by their biases and norms). A token keeps
    in each block the states and products of both, in the copy what a trained layer keeps."""
    width, rank = sizes.hidden, int(options["r"])
    update = int(options["update_hidden_size"] or rank)
    if options["shadow_model"] != "mirror":
        raise CostUnknown(
            "the size of a shadow model from a checkpoint is not known",
            value=options["shadow_model"],
            next_step="Use shadow_model mirror for an estimate.",
        )
    blocks = sizes.layers * (2 * rank * width + 2 * (2 * update * width + update + width))
    small = int(options["shadow_hidden_size"] or width)
    heads = int(options["shadow_num_attention_heads"] or sizes.heads)
    inner = int(options["shadow_intermediate_size"] or sizes.intermediate)
    depth = int(options["shadow_num_hidden_layers"] or 1)
    layer = small * (2 * heads * sizes.head_dim + 2 * sizes.key) + 3 * small * inner + 2 * small
    own_embedding = small != width or not options["share_embeddings"]
    copy = depth * layer + small + (sizes.vocab * small if own_embedding else 0)
    project = small * width if small != width else 0
    adapter, wide = options.numbers.adapter, options.numbers.wide
    block_kept = adapter * (8 * width + rank + 4 * update)
    copy_kept = depth * (adapter * (6 * small + 2 * heads * sizes.head_dim + 2 * sizes.key + 4 * inner) + 8 * small)
    return ModelCost(blocks + copy + project, saved_per_token=sizes.layers * block_kept + copy_kept + wide * width)


def _virtual_tokens(options: Options) -> int:
    count = options["num_virtual_tokens"]
    if not isinstance(count, int) or count <= 0:
        raise PeftsmithError(
            f"{options.method} needs num_virtual_tokens", value=count, next_step="Set num_virtual_tokens to 1 or more."
        )
    return count * int(options.get("num_transformer_submodules") or 1)


def _widest(adapted: Sequence[Module]) -> tuple[int, int]:
    inputs = max((module.inputs for module in adapted), default=0)
    return inputs, max((module.outputs for module in adapted), default=0)


def _frozen(elements: int, options: Options) -> ModelCost:
    return ModelCost(frozen=elements, frozen_bytes=elements * options.numbers.adapter)


SHARED: Mapping[str, _Function] = {
    "VERA": vera, "PVERA": vera, "RANDLORA": randlora, "FROD": frod, "VBLORA": vblora, "UNILORA": unilora,
    "TINYLORA": tinylora, "LILY": lily,
}  # fmt: skip
ALONE: Mapping[str, _Function] = {
    "PROMPT_TUNING": prompt_tuning, "MULTITASK_PROMPT_TUNING": multitask_prompt_tuning, "P_TUNING": p_tuning,
    "PREFIX_TUNING": prefix_tuning, "CARTRIDGE": cartridge, "CPT": cpt, "ADAPTION_PROMPT": adaption_prompt,
    "XLORA": xlora, "SHADOW": shadow,
}  # fmt: skip


def shared(
    method: str, sizes: Sizes, options: Mapping[str, object], numbers: Numbers, adapted: Sequence[Module]
) -> ModelCost:
    """What `method` adds once; nothing for methods whose modules share nothing."""
    function = SHARED.get(method) or ALONE.get(method) or nothing
    return function(sizes, Options(method, options, numbers), adapted)
