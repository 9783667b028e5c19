"""A small config of any model type: few layers, one of every kind, so that the real class builds at once.

Knows: which fields count layers, which lists have an entry a layer, and what single types need to build at all.
Does not know: what is done with it. Widths stay as they are: on the meta device they cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

COUNTS = (
    "num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
    "num_encoder_layers", "depth", "num_blocks", "block_sizes", "num_hidden_blocks",
)  # fmt: skip
LAYERS = 4
# Types whose defaults do not build: fields that a published config.json always has.
NEEDED: dict[str, dict[str, Any]] = {
    "ministral": {"head_dim": 128},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8, "head_dim": 128},
    "reformer": {"is_decoder": True},
    "dots1": {"n_routed_experts": 8},
    "falcon": {"hidden_size": 4096, "num_attention_heads": 64},
    "esm": {"vocab_size": 33},
}


def shrunken(model_type: str) -> Any:
    """The default config of a type with at most LAYERS layers in every part. Raises what transformers raises."""
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type](**NEEDED.get(model_type, {}))
    for part in parts(config):
        cut_layers(part)
    return config


def parts(config: Any) -> Iterator[Any]:
    """The config and every config inside it."""
    from transformers import PreTrainedConfig

    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from parts(value)


def cut_layers(config: Any) -> None:
    """Fewer layers in place; lists with an entry a layer keep the first of every kind."""
    for name in COUNTS:
        layers = getattr(config, name, None)
        if not isinstance(layers, int) or isinstance(layers, bool) or layers <= LAYERS or name in config.attribute_map:
            continue
        lists = {key: value for key, value in vars(config).items() if isinstance(value, list) and len(value) == layers}
        kept = keep(list(lists.values()), layers)
        for key, value in lists.items():
            setattr(config, key, [value[index] for index in kept])
        setattr(config, name, len(kept))


def keep(lists: list[list[Any]], layers: int) -> list[int]:
    """Indices of the layers to keep: the first of every combination of entries, at least LAYERS."""
    combined = [repr([each[index] for each in lists]) for index in range(layers)]
    kept = sorted({combined.index(kind) for kind in set(combined)})
    for index in range(layers):
        if len(kept) >= LAYERS:
            break
        if index not in kept:
            kept.append(index)
    return sorted(kept)
