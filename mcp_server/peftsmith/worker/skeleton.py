"""The twin of a base model: the same architecture class, cut down until a processor trains it in seconds.

Knows: which numbers of a transformers configuration can shrink, and what must stay (vocabulary, tied embeddings,
grouped-query ratio, layer types, rope); seeded random weights.
Does not know: what is done with it (jobs/twin.py), or what the real model weighs (model/ in the control plane).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

HEAD = 16  # head dimension of a twin: small, even (rope), and divisible by every partial rotary factor in use
LAYERS = 2
CHUNK = 32  # tokens that a state-space layer scans at a time
LARGEST = 500_000_000  # parameters; a twin must not fill the memory of a laptop
# Small enough to be fast, different from each other so that a transposed weight cannot pass unnoticed.
EXPERTS, EXPERTS_PER_TOKEN, EXPERT_INTERMEDIATE = 4, 2, 48
# By what names configurations have the width of their feed-forward layers. One that is missed leaves a twin wide there,
# which costs methods that work with square matrices (BOFT) minutes.
FEED_FORWARD = (
    "intermediate_size", "intermediate_size_mlp", "dense_intermediate_size", "shared_intermediate_size", "ffn_dim",
    "ffn_hidden_size", "feed_forward_size", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "dff", "dim_ff", "hidden_dim",
    "d_inner", "n_inner",
)  # fmt: skip
EXPERT_WIDTHS = (
    "moe_intermediate_size", "shared_expert_intermediate_size", "shared_experts_intermediate_size",
    "moe_shared_expert_intermediate_size",
)  # fmt: skip
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def build(
    config: dict[str, Any],
    tokenizer: Path,
    folder: Path,
    *,
    seed: int,
    model_class: str = "AutoModelForCausalLM",
    head: int = HEAD,
    layers: int | None = LAYERS,
) -> dict[str, Any]:
    """Write a loadable twin of the model that `config` (config.json as a dict) describes into `folder`.

    `model_class` is the Auto class that the scripts load it with; a base for classification or question answering
    gets no head, since the real one has none that fits (for answers that of a language model, with its names).
    `head` is the dimension of an attention head; every width is a multiple of it. `layers` are the least that it has
    (None: all), if the real one has as many.
    Tokenizer, chat template and generation settings are the real ones, byte for byte. Returns what was built:
    architecture, parameters, layers, hidden, intermediate, heads, kv_heads, vocab, dtype, and `changed` (what could
    not stay as it is). Raises what transformers raises for a configuration that it does not know.
    """
    import torch
    import transformers

    folder.mkdir(parents=True)
    changed = []
    config = dict(config)
    for key, reason in (("quantization_config", "the base's own quantisation"), ("auto_map", "the base's own code")):
        if config.pop(key, None) is not None:
            changed.append(reason)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = transformers.AutoConfig.from_pretrained(folder)
    cut_down(loaded, head, layers)
    transformers.set_seed(seed)
    dtype = loaded.dtype if isinstance(loaded.dtype, torch.dtype) else torch.float32
    auto = getattr(transformers, _written_with(model_class, loaded))
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in auto.from_config(loaded, dtype=dtype).parameters())
    if size > LARGEST:
        raise ValueError(f"a {loaded.model_type} model cannot be cut down: {size:,} parameters are left")
    model = auto.from_config(loaded, dtype=dtype)
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    text = loaded.get_text_config()
    return {
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": _first(text, "num_hidden_layers", "encoder_layers"),
        "hidden": _first(text, "hidden_size", "d_model"),
        "intermediate": _first(text, "intermediate_size", "d_ff", "encoder_ffn_dim"),
        "heads": _first(text, "num_attention_heads", "num_heads"),
        "kv_heads": getattr(text, "num_key_value_heads", None),
        "vocab": text.vocab_size,
        "tied_embeddings": bool(loaded.tie_word_embeddings),
        "dtype": str(dtype).removeprefix("torch."),
        "changed": changed,
    }


def _written_with(model_class: str, config: Any) -> str:
    """The Auto class whose checkpoint the scripts meet: never one with the head that they are about to train."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

    if model_class == "AutoModelForQuestionAnswering":
        if type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
            return "AutoModelForSeq2SeqLM"
        if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
            return "AutoModelForCausalLM"
    heads = ("AutoModelForSequenceClassification", "AutoModelForTokenClassification", "AutoModelForQuestionAnswering")
    return "AutoModel" if model_class in heads else model_class


def cut_down(config: Any, head: int = HEAD, layers: int | None = LAYERS) -> None:
    """Shrink a transformers configuration in place; the vocabulary and everything that is not a size stays."""
    import transformers

    # The library adapters holds transformers at 4.57, where the class has its older name.
    known = getattr(transformers, "PreTrainedConfig", None) or transformers.PretrainedConfig
    halves = [getattr(config, name, None) for name in ("encoder", "decoder")]
    inner = [each for each in halves if isinstance(each, known)]
    for text in inner or [config.get_text_config()]:
        wider = getattr(text, "is_heterogeneous", False)  # gemma4's heads are wider in layers of full attention
        if wider:
            text.per_layer_config = None
        _cut_down(text, head, layers)
        if wider:
            full = [place for place, kind in enumerate(text.layer_types) if kind == "full_attention"]
            text.per_layer_config = {place: {"head_dim": 2 * head} for place in full}


def _cut_down(text: Any, head: int, layers: int | None) -> None:
    hidden = _heads(text, head)
    _set(text, 2 * hidden + head, *FEED_FORWARD)
    _set(text, 2 * head, "q_lora_rank", "kv_lora_rank", "o_lora_rank")
    _set(text, head // 2, "rotary_dim")
    _set(text, head, "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "d_kv")
    _set(text, 2 * head, "qk_head_dim")
    _set(text, head, "hidden_size_per_layer_input")
    _set(text, EXPERTS, "num_local_experts", "num_experts", "n_routed_experts")
    _set(text, EXPERTS_PER_TOKEN, "num_experts_per_tok")
    _set(text, max(EXPERT_INTERMEDIATE, 3 * head if head > HEAD else 0), *EXPERT_WIDTHS)
    if getattr(text, "topk_group", None):
        text.n_group = text.topk_group = 1
    _linear_attention(text, head)
    _state_space(text, hidden, head)
    _layers(text, layers)


def _heads(text: Any, head: int) -> int:
    """Smaller attention; returns the new hidden size."""
    old_rotary = _head_dim(text)
    heads = _first(text, "num_attention_heads", "num_heads") or 4
    old_hidden = _first(text, "hidden_size", "d_model")
    small, kv_heads = small_heads(heads, _first(text, "num_key_value_heads", "num_kv_heads"))
    width = old_hidden / (heads * old_rotary) if old_rotary else 1.0  # 1.0 unless the head size is explicit
    hidden = max(2 * head, round(small * width) * head)
    _set(text, hidden, "hidden_size", "d_model", "embedding_size", "word_embed_proj_dim", "pooler_hidden_size",
         "attention_hidden_size", "cross_attention_hidden_size", "lru_width")  # fmt: skip
    _set(text, small, "num_attention_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads")
    _set(text, kv_heads, "num_key_value_heads", "num_kv_heads")
    _set(text, head, "head_dim", "d_head")
    rope = getattr(text, "rope_parameters", None) or {}
    for key, value in rope.items():
        if isinstance(value, list) and len(value) * 2 == old_rotary:  # longrope: one factor per frequency
            rope[key] = value[: head // 2]
    return int(hidden)


def _linear_attention(text: Any, head: int) -> None:
    """Heads of a gated delta net: fewer and narrower, in the same ratio of values to keys.

    Some of its layers are as wide as it has heads, so that these are a multiple of `head` where the real ones are.
    """
    keys, values = getattr(text, "linear_num_key_heads", None), getattr(text, "linear_num_value_heads", None)
    if keys and values:
        ratio = min(max(values // keys, 1), 4)
        few = 2 if values % head else max(2, head // ratio)
        text.linear_num_key_heads, text.linear_num_value_heads = few, few * ratio
        _set(text, head, "linear_key_head_dim", "linear_value_head_dim")


def _state_space(text: Any, hidden: int, head: int) -> None:
    """Mamba's sizes, which depend on each other."""
    expand = getattr(text, "expand", None) or getattr(text, "mamba_expand", None)
    if expand is None:
        return
    _set(text, CHUNK, "chunk_size", "mamba_chunk_size")  # rows are padded to whole chunks, which changes no result
    inner = int(expand * hidden)
    if text.model_type in ("mamba", "falcon_mamba"):
        # Some layers are as wide as both together, and so a multiple of `head` as all widths are.
        text.intermediate_size, text.time_step_rank, text.state_size = inner, head, max(16, head // 2)
    elif text.model_type == "mamba2":
        text.num_heads, text.head_dim, text.n_groups = inner // HEAD, HEAD, 1
    elif text.model_type == "zamba2":
        text.mamba_headdim = inner // text.n_mamba_heads
        text.attention_hidden_size = 2 * hidden
        text.attention_head_dim = text.attention_hidden_size // text.num_attention_heads
    elif getattr(text, "mamba_num_heads", None):
        text.mamba_num_heads, text.mamba_head_dim = max(inner // HEAD, text.n_groups), HEAD
    elif getattr(text, "mamba_n_heads", None) and not getattr(text, "mamba_d_ssm", None):
        text.mamba_n_heads, text.mamba_d_head = inner // HEAD, HEAD


def _layers(text: Any, least: int | None) -> None:
    """The first `least` layers and one of each type; lists with an entry a layer keep the entries of these."""
    own = vars(text)
    old_layers = _first(text, "num_hidden_layers", "encoder_layers")
    period = max(getattr(text, "attn_layer_period", None) or 0, len(getattr(text, "block_types", None) or ()))
    first = range(old_layers if least is None else min(least, old_layers))
    kept = sorted({*first, *one_of_each(getattr(text, "layer_types", None), old_layers)})
    if period > 1:
        kept = list(range(max(len(first), min(period, old_layers))))
    for name in ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_decoder_layers"):
        _set(text, len(kept), name)
    for name, value in list(own.items()):
        if isinstance(value, list) and len(value) == old_layers > len(kept) and name != "block_types":
            setattr(text, name, [value[index] for index in kept])
    if getattr(text, "attn_layer_indices", None):
        text.attn_layer_indices = [place for place, index in enumerate(kept) if index in text.attn_layer_indices]
    if getattr(text, "hybrid_layer_ids", None):  # zamba2 works them out when it is read, and only then
        text.hybrid_layer_ids = [place for place, kind in enumerate(text.layer_types) if kind == "hybrid"]


def _set(config: Any, value: Any, *names: str) -> None:
    """Set those of the fields that the configuration really has (not those that it derives) and that are set."""
    real = {config.attribute_map.get(name, name): name for name in names}
    for field, name in real.items():
        if field in vars(config) and getattr(config, name, None):
            setattr(config, name, value)


def _first(config: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def small_heads(heads: int, kv_heads: int | None) -> tuple[int, int]:
    """(query heads, key/value heads) of the same kind: equal, a single shared one, or grouped in the same ratio."""
    if kv_heads is None or kv_heads >= heads:
        return 4, 4
    if kv_heads == 1:
        return 4, 1
    return 2 * min(heads // kv_heads, 8), 2


def one_of_each(types: list[str] | None, layers: int) -> list[int]:
    """Indices of the layers to keep: the first of every type, at least two where there are two."""
    kept = sorted({types.index(kind) for kind in set(types)}) if types else []
    for index in range(layers):
        if len(kept) >= min(LAYERS, layers):
            break
        if index not in kept:
            kept.append(index)
    return sorted(kept)


def _head_dim(text: Any) -> int:
    """Width of a head; 0 where there is no attention."""
    heads = _first(text, "num_attention_heads", "num_heads")
    explicit = _first(text, "head_dim", "d_kv")
    return int(explicit or (_first(text, "hidden_size", "d_model") // heads if heads else 0))
