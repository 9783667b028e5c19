"""Roles by path, over the ways in which architectures name their modules."""

from __future__ import annotations

import pytest

from peftsmith.model.roles import role

PATHS = {
    "query": ["model.layers.0.self_attn.q_proj", "bert.encoder.layer.3.attention.self.query",
              "decoder.block.1.layer.1.EncDecAttention.q", "model.layers.9.self_attn.q_b_proj"],
    "qkv": ["transformer.h.0.attn.c_attn", "model.layers.2.self_attn.qkv_proj",
            "gpt_neox.layers.0.attention.query_key_value", "model.layers.0.attn.Wqkv",
            "model.layers.0.self_attn.W_pack", "model.layers.0.attention.wqkv",
            "transformer.encoder.layers.0.self_attention.query_key_value"],
    "output": ["model.layers.0.self_attn.o_proj", "transformer.h.0.attn.c_proj",
               "bert.encoder.layer.3.attention.output.dense", "gpt_neox.layers.0.attention.dense",
               "transformer.encoder.layers.0.self_attention.dense", "model.layers.0.attention.wo"],
    "up": ["transformer.h.0.mlp.c_fc", "bert.encoder.layer.0.intermediate.dense", "model.decoder.layers.0.fc1",
           "transformer.h.0.mlp.w1", "model.layers.0.feed_forward.w3"],
    "down": ["transformer.h.0.mlp.c_proj", "bert.encoder.layer.0.output.dense", "model.layers.0.mlp.down_proj",
             "encoder.block.0.layer.1.DenseReluDense.wo", "model.layers.0.feed_forward.w2"],
    "gate": ["model.layers.0.mlp.gate_proj", "transformer.h.0.mlp.w2", "decoder.block.0.layer.2.DenseReluDense.wi_0"],
    "router": ["model.layers.0.mlp.gate", "model.layers.0.mlp.shared_expert_gate",
               "encoder.block.1.layer.1.mlp.router.classifier"],
    "expert": ["model.layers.0.mlp.experts", "model.layers.0.block_sparse_moe.experts.3.w1"],
    "head": ["lm_head", "score", "classifier.dense", "cls.predictions.decoder", "embed_out", "output",
             "transformer.output_layer"],
    "tower": ["model.vision_tower.encoder.layers.0.self_attn.q_proj", "model.visual.blocks.0.attn.qkv",
              "model.multi_modal_projector.linear_1", "model.audio_tower.layers.0.fc1"],
    "embedding": ["model.embed_tokens", "transformer.wte", "shared"],
    "norm": ["model.layers.0.input_layernorm", "transformer.h.0.ln_1", "model.norm"],
    "state": ["model.layers.0.linear_attn.in_proj_qkv", "backbone.layers.0.mixer.in_proj",
              "model.layers.0.mamba.x_proj"],
}  # fmt: skip


@pytest.mark.parametrize(("expected", "path"), [(kind, path) for kind, paths in PATHS.items() for path in paths])
def test_role(expected, path):
    assert role(path) == expected


def test_a_shared_expert_is_a_plain_mlp():
    assert role("model.layers.0.mlp.shared_expert.up_proj") == "up"
