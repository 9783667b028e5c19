"""How small a twin may be, so that the plan's own numbers fit it."""

from __future__ import annotations

from peftsmith.knowledge import methods
from peftsmith.project import proof_facts

LORA = methods.method("LORA")


def test_a_cut_down_model_is_wide_enough_for_the_plans_numbers():
    assert proof_facts.head(LORA, {"r": 64, "lora_alpha": 8}) == 16
    assert proof_facts.head(LORA, {"r": 64, "init_lora_weights": "pissa"}) == 32
    assert proof_facts.head(methods.method("C3A"), {}) == 256
    assert proof_facts.head(methods.method("C3A"), {"block_size": 32}) == 32
    assert proof_facts.head(methods.method("SHIRA"), {"r": 24}) == 64


def test_a_cut_down_model_is_deep_enough_for_the_layers_that_the_plan_names():
    assert proof_facts.layers({"r": 8, "target_modules": ["q_proj", "fc1"]}) == 0
    assert proof_facts.layers({"layers_to_transform": [3, 11]}) == 12
    assert proof_facts.layers({"layers_to_transform": 5, "target_modules": "all-linear"}) == 6
    assert proof_facts.layers({"adapter_layers": 8}) == 8
    assert proof_facts.layers({"target_modules": ["model.layers.7.self_attn.q_proj", "v_proj"]}) == 8
    assert proof_facts.layers({"target_modules": r".*layers\.(1[0-5])\.self_attn\.(q|v)_proj"}) is None
    assert proof_facts.layers({"target_modules": r".*(norm|ln_1|ln_2)[a-z0-9_]*"}) == 0
