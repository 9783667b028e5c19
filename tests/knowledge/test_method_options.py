"""A plan's options held against PEFT's own fields."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftsmith.knowledge import method_options, methods

LORA = methods.method("LORA")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_dorra": True}, "did you mean 'use_dora'"),
        ({"r": 8}, "method.rank"),
        ({"lora_alpha": 8}, "method.alpha"),
        ({"use_dora": "yes"}, "true or false"),
        ({"use_dora": 1}, "true or false"),
        ({"init_lora_weights": "picasso"}, "one of gaussian"),
        ({"init_lora_weights": "pissa_niter_x"}, "one of gaussian"),
        ({"rank_pattern": {"q_proj": "8"}}, ""),
        ({"layers_to_transform": [1.5]}, "whole number"),
        ({"eva_config": {"rhoo": 2.0}}, "rho"),
        ({"task_type": "CAUSAL_LM"}, "set by the scripts"),
    ],
)
def test_a_wrong_option_is_named(options, said):
    found = list(method_options.faults(LORA, options))
    if said:
        assert len(found) == 1 and said in found[0]
    else:
        assert found == []  # PEFT itself says nothing of the values of a pattern


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True, "init_lora_weights": "pissa_niter_16", "rank_pattern": {"^model.*q_proj": 4}},
        {"target_parameters": ["mlp.experts.gate_up_proj"], "modules_to_save": ["lm_head"], "bias": "lora_only"},
        {"eva_config": {"rho": 2.0}, "init_lora_weights": "eva", "exclude_modules": "vision.*"},
        {"trainable_token_indices": {"embed_tokens": [1, 2]}, "layers_to_transform": 3},
    ],
)
def test_options_of_peft_are_taken(options):
    assert list(method_options.faults(LORA, options)) == []


@given(
    st.dictionaries(st.text(max_size=12), st.none() | st.booleans() | st.integers() | st.text(max_size=5), max_size=4)
)
def test_any_options_are_judged_and_never_crash(options):
    found = list(method_options.faults(LORA, options))
    assert len(found) <= len(options)
    assert {name for name in options if name not in LORA.fields} == set() or found
