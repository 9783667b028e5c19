"""Skeletons from headers: fused experts, Conv1D, embeddings, packed tensors, and names that leave a kind open."""

from __future__ import annotations

import pytest

from peftsmith.model import layouts, stored
from peftsmith.model.headers import Tensor


def tensors(shapes, dtype="BF16"):
    return {name: Tensor(dtype, tuple(shape), "model.safetensors") for name, shape in shapes.items()}


def read(shapes, model_type, *, fuse=False):
    found = stored.parameters(tensors(shapes), fuse=fuse)
    return stored.skeleton(found, model_type=model_type, architecture="", known={})


MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3, "vocab_size": 20,
}  # fmt: skip


def mixtral_as_published():
    shapes = {"model.embed_tokens.weight": (20, 8), "model.norm.weight": (8,), "lm_head.weight": (20, 8)}
    for layer in range(2):
        start = f"model.layers.{layer}."
        shapes |= {
            start + "self_attn.q_proj.weight": (8, 8),
            start + "self_attn.k_proj.weight": (4, 8),
            start + "self_attn.v_proj.weight": (4, 8),
            start + "self_attn.o_proj.weight": (8, 8),
            start + "self_attn.rotary_emb.inv_freq": (2,),
            start + "input_layernorm.weight": (8,),
            start + "post_attention_layernorm.weight": (8,),
            start + "block_sparse_moe.gate.weight": (3, 8),
        }
        for expert in range(3):
            for leaf, shape in (("w1", (16, 8)), ("w2", (8, 16)), ("w3", (16, 8))):
                shapes[f"{start}block_sparse_moe.experts.{expert}.{leaf}.weight"] = shape
    return shapes


def test_single_experts_become_the_fused_parameters_of_the_class():
    """The names that checkpoints still have, against those that transformers 5 gives to its class."""
    have = stored.parameters(tensors(mixtral_as_published()), fuse=True)
    implied = layouts.skeleton(MIXTRAL)
    assert implied is not None
    assert have == {f"{m.name}.{leaf}": shape for m in implied.modules for leaf, shape in m.parameters.items()}
    assert have["model.layers.1.mlp.experts.gate_up_proj"] == (3, 32, 8)
    assert have["model.layers.1.mlp.experts.down_proj"] == (3, 8, 16)


def test_fused_experts_are_modules_of_their_kind():
    body = read(mixtral_as_published(), "own", fuse=True).skeleton
    kinds = {module.name: module.kind for module in body.modules}
    assert kinds["model.layers.0.mlp.experts"] == "experts" and kinds["model.layers.0.mlp.gate"] == "linear"
    assert body.source == "header" and body.parameters == layouts.skeleton(MIXTRAL).parameters


def test_gpt2_stores_inputs_first():
    body = read(
        {"wte.weight": (50, 8), "wpe.weight": (16, 8), "h.0.attn.c_attn.weight": (8, 24), "h.0.attn.c_attn.bias": (24,),
         "h.0.ln_1.weight": (8,), "h.0.ln_1.bias": (8,)}, "gpt2",
    ).skeleton  # fmt: skip
    by_name = {module.name: module for module in body.modules}
    assert (by_name["h.0.attn.c_attn"].kind, by_name["h.0.attn.c_attn"].inputs) == ("conv1d", 8)
    assert by_name["h.0.attn.c_attn"].outputs == 24
    assert (by_name["wte"].kind, by_name["wte"].inputs, by_name["wte"].outputs) == ("embedding", 50, 8)
    assert by_name["h.0.ln_1"].kind == "norm" and "h.0" in body.containers


def test_the_same_names_elsewhere_are_linear():
    body = read({"h.0.attn.c_attn.weight": (24, 8)}, "own").skeleton
    assert (body.modules[0].kind, body.modules[0].inputs, body.modules[0].outputs) == ("linear", 8, 24)


def test_what_a_name_leaves_open_is_named():
    found = read({"model.final_norm.weight": (8, 8), "model.up.weight": (8, 4)}, "own")
    assert found.unclear == ("model.final_norm",)
    assert [module.kind for module in found.skeleton.modules] == ["other", "linear"]


@pytest.mark.parametrize(
    "name",
    ["q_proj.qweight", "q_proj.weight_packed", "q_proj.weight.absmax", "q_proj.weight.quant_state.bitsandbytes__nf4",
     "experts.gate_up_proj_blocks", "q_proj.codebooks", "q_proj.SCB"],
)  # fmt: skip
def test_packed_tensors(name):
    assert stored.is_packed(tensors({f"model.layers.0.self_attn.{name}": (8, 8)}, "U8"))


def test_plain_tensors_are_not_packed():
    assert not stored.is_packed(tensors(mixtral_as_published()))
