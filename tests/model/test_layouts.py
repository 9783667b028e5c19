"""Skeletons from config.json alone: published counts, formulas, layer kinds, and configs that make no sense."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftsmith.errors import PeftsmithError
from peftsmith.model import layouts

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
    41_303_293_952: {
        "model_type": "falcon", "architectures": ["FalconForCausalLM"], "hidden_size": 8192, "num_hidden_layers": 60,
        "num_attention_heads": 128, "num_kv_heads": 8, "vocab_size": 65024, "new_decoder_architecture": True,
        "bias": False, "parallel_attn": True, "alibi": False, "multi_query": True,
    },
    3_637_321_728: {
        "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "hidden_size": 4096,
        "intermediate_size": 16384, "num_hidden_layers": 16, "num_attention_heads": 32, "vocab_size": 50688,
        "tie_word_embeddings": False,
    },
    494_032_768: {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    30_532_122_624: {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048, "head_dim": 128,
        "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
        "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936,
        "tie_word_embeddings": False, "decoder_sparse_step": 1, "mlp_only_layers": [],
    },
    15_706_484_224: {
        "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "hidden_size": 2048,
        "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16,
        "num_key_value_heads": 16, "n_routed_experts": 64, "n_shared_experts": 2, "first_k_dense_replace": 1,
        "kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "vocab_size": 102400,
    },
    7_721_324_544: {
        "model_type": "qwen", "architectures": ["QWenLMHeadModel"], "hidden_size": 4096, "intermediate_size": 22016,
        "kv_channels": 128, "num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 151936, "no_bias": True,
    },
    7_505_973_248: {
        "model_type": "baichuan", "architectures": ["BaichuanForCausalLM"], "hidden_size": 4096,
        "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 125696,
        "z_loss_weight": 0, "tie_word_embeddings": False,
    },
    7_737_708_544: {
        "model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "bias": False, "hidden_size": 4096,
        "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "vocab_size": 92544, "tie_word_embeddings": False,
    },
    6_243_584_000: {
        "model_type": "chatglm", "architectures": ["ChatGLMModel"], "add_bias_linear": False, "add_qkv_bias": True,
        "ffn_hidden_size": 13696, "hidden_size": 4096, "kv_channels": 128, "multi_query_attention": True,
        "multi_query_group_num": 2, "num_attention_heads": 32, "num_layers": 28, "padded_vocab_size": 65024,
        "post_layer_norm": True, "rmsnorm": True, "tie_word_embeddings": False,
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


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen", "visual": {"width": 1664}},  # Qwen-VL
        {"model_type": "chatglm", "num_layers": 28, "inner_hidden_size": 16384},  # the first ChatGLM
        {"model_type": "chatglm", "multi_query_attention": True, "vision_config": {"width": 1}},  # GLM-4V
        {"model_type": "qwen3_moe", "mlp_only_layers": [0]},
        {"model_type": "qwen2_moe", "decoder_sparse_step": 2},
    ],
)
def test_what_an_entry_does_not_speak_of_is_unknown(config):
    assert layouts.skeleton(config) is None


def test_two_flags_that_touch_one_module():
    found = layouts.skeleton({"model_type": "stablelm", "use_qkv_bias": True, "qk_layernorm": True})
    assert found is None or "bias" in next(m for m in found.modules if m.leaf == "k_proj").parameters


def test_a_size_that_is_zero_leaves_its_modules_out():
    names = {
        size: {m.name for m in found.modules}
        for size in (0, 1024)
        if (found := layouts.skeleton({"model_type": "granitemoeshared", "shared_intermediate_size": size}))
    }
    assert {name.rpartition(".")[2] for name in names[1024] - names[0]} == {"input_linear", "output_linear"}


def test_layer_types_by_their_older_names():
    common = {"model_type": "granitemoehybrid", "num_hidden_layers": 3}
    old = layouts.skeleton({**common, "layer_types": ["mamba", "attention", "mamba"]})
    new = layouts.skeleton({**common, "layer_types": ["linear_attention", "full_attention", "linear_attention"]})
    assert old == new and old is not None
    conv = next(m for m in old.modules if m.kind == "conv")
    assert conv.inputs == conv.outputs and conv.parameters["weight"][1] == 1


def test_what_is_not_in_the_catalogue_has_no_skeleton():
    assert layouts.skeleton({"model_type": "own"}) is None
    assert layouts.skeleton({"model_type": "llama", "architectures": ["LlamaForDreaming"]}) is None
    assert layouts.skeleton({}) is None


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
     "architectures", "n_embd", "n_layer", "multi_query", "new_decoder_architecture", "first_k_dense_replace",
     "shared_intermediate_size", "multi_query_attention", "kv_channels", "mlp_only_layers"]
)  # fmt: skip


@given(st.sampled_from(["llama", "mixtral", "qwen3_next", "gpt2", "llava", "t5", "deepseek_v3", "falcon",
                        "granitemoehybrid", "chatglm"]),
       st.dictionaries(keys, values, max_size=5))  # fmt: skip
def test_any_config_is_described_or_refused_and_nothing_else(kind, config):
    try:
        found = layouts.skeleton({"model_type": kind, **config})
    except PeftsmithError as error:
        assert error.next_step
    else:
        assert found is None or found.parameters >= 0
