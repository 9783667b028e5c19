"""Skeletons from config.json alone: published counts, formulas, layer kinds, and configs that make no sense."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftsmith.errors import PeftsmithError
from peftsmith.model import catalogue, layouts

# Parameters as the models' pages give them (safetensors totals), dimensions as in their config.json.
PUBLISHED = {
    46_702_792_704: {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_local_experts": 8, "vocab_size": 32000,
    },
    3_821_079_552: {
        "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
    },
    124_439_808: {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 768, "n_head": 12, "n_layer": 12,
        "n_positions": 1024, "vocab_size": 50257,
    },
    559_214_592: {
        "model_type": "bloom", "architectures": ["BloomForCausalLM"], "hidden_size": 1024, "n_layer": 24, "n_head": 16,
        "vocab_size": 250880,
    },
    2_614_341_888: {
        "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "vocab_size": 256000,
    },
    1_418_270_720: {
        "model_type": "phi", "architectures": ["PhiForCausalLM"], "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 24, "num_attention_heads": 32, "vocab_size": 51200,
    },
}  # fmt: skip


@pytest.mark.parametrize("parameters", PUBLISHED)
def test_published_counts(parameters):
    found = layouts.skeleton(PUBLISHED[parameters])
    assert found is not None and found.parameters == parameters


def test_a_head_width_that_differs_from_hidden_over_heads():
    body = {**PUBLISHED[3_821_079_552], "head_dim": 128}
    found = layouts.skeleton(body)
    assert found is not None
    fused = next(m for m in found.modules if m.name.endswith("0.self_attn.qkv_proj"))
    assert (fused.inputs, fused.outputs) == (3072, 3 * 32 * 128)


def test_layer_kinds_follow_the_config():
    config = {
        "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": 5,
        "first_k_dense_replace": 2,
    }  # fmt: skip
    found = layouts.skeleton(config)
    assert found is not None
    experts = sorted(m.name for m in found.modules if m.kind == "experts")
    assert experts == [f"model.layers.{n}.mlp.experts" for n in (2, 3, 4)]


def test_what_is_not_in_the_catalogue_has_no_skeleton():
    assert layouts.skeleton({"model_type": "own"}) is None
    assert layouts.skeleton({"model_type": "llama", "architectures": ["LlamaForDreaming"]}) is None
    assert layouts.skeleton({}) is None


def test_at_least_a_hundred_types_are_complete():
    complete = [
        kind for kind in catalogue.types()
        if any((catalogue.entry(kind, task) or {})["complete"] for task in catalogue.tasks(kind))
    ]  # fmt: skip
    assert len(complete) >= 100


def test_an_entry_is_read_in_milliseconds():
    catalogue.entry("llama", "causal-lm")
    began = time.perf_counter()
    catalogue.entry("qwen3_next", "causal-lm")
    assert time.perf_counter() - began < 0.05


def test_formulas():
    sizes = {"heads": 4, "kv": 2, "dim": 16}
    assert catalogue.width("heads*dim+2*kv*dim", sizes.__getitem__) == 128
    assert catalogue.width("3*dim/heads", sizes.__getitem__) == 12
    assert catalogue.fields_in("heads*dim+2*kv") == {"heads", "dim", "kv"}


values = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.text(max_size=4)
    | st.lists(st.integers(), max_size=3)
)
keys = st.sampled_from(
    ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
     "intermediate_size", "layer_types", "tie_word_embeddings", "attention_bias", "text_config", "num_local_experts",
     "architectures", "n_embd", "n_layer"]
)  # fmt: skip


@given(st.sampled_from(["llama", "mixtral", "qwen3_next", "gpt2", "llava", "t5", "deepseek_v3"]),
       st.dictionaries(keys, values, max_size=5))  # fmt: skip
def test_any_config_is_described_or_refused_and_nothing_else(kind, config):
    try:
        found = layouts.skeleton({"model_type": kind, **config})
    except PeftsmithError as error:
        assert error.next_step
    else:
        assert found is None or found.parameters >= 0
