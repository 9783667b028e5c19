"""PEFT's methods as data: the notes speak of fields that exist, and wrong options are named."""

from __future__ import annotations

import json
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftsmith import plan
from peftsmith.errors import PeftsmithError
from peftsmith.knowledge import methods

LORA = methods.method("LORA")


def test_every_peft_method_is_known_and_the_notes_name_no_other():
    assert len(methods.names()) >= 45
    assert set(methods._notes()) == {*methods.names(), *methods.bottlenecks()}


@pytest.mark.parametrize("name", methods.names())
def test_notes_speak_of_fields_that_the_config_class_has(name):
    known = methods.method(name)
    spoken = {*known.names.values(), *known.needs, *known.divides, *known.refused}
    spoken |= {each.partition("=")[0] for each in (*known.unmerged, *known.unresumed)}
    assert spoken <= set(known.fields)
    assert set(known.defaults) <= set(known.names)
    assert set(known.tasks) <= set(methods._facts()["methods"][name]["tasks"])
    assert set(known.quantised) <= {4, 8}
    assert not (known.merges and known.prompt_learning)


def test_defaults_of_peft_fit_the_types_that_were_read():
    for name in methods.names():
        for field, told in methods.method(name).fields.items():
            assert methods.fits(told["default"], told["type"]), (name, field, told)


def test_the_file_is_laid_out_as_it_is_written():
    text = resources.files("peftsmith.knowledge").joinpath(methods.FILE).read_text(encoding="utf-8")
    assert methods.written(json.loads(text)) == text


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
    found = list(methods.faults(LORA, options))
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
    assert list(methods.faults(LORA, options)) == []


@given(
    st.dictionaries(st.text(max_size=12), st.none() | st.booleans() | st.integers() | st.text(max_size=5), max_size=4)
)
def test_any_options_are_judged_and_never_crash(options):
    found = list(methods.faults(LORA, options))
    assert len(found) <= len(options)
    assert {name for name in options if name not in LORA.fields} == set() or found


def test_an_unknown_method_gets_the_nearest_name():
    with pytest.raises(PeftsmithError, match="did you mean PREFIX_TUNING"):
        methods.method("PREFIX_TUNNING")


def test_a_cut_down_model_is_wide_enough_for_the_plans_numbers():
    assert methods.twin_head(LORA, {"r": 64, "lora_alpha": 8}) == 16
    assert methods.twin_head(LORA, {"r": 64, "init_lora_weights": "pissa"}) == 32
    assert methods.twin_head(methods.method("C3A"), {}) == 256
    assert methods.twin_head(methods.method("C3A"), {"block_size": 32}) == 32
    assert methods.twin_head(methods.method("SHIRA"), {"r": 24}) == 64


def test_a_cut_down_model_is_deep_enough_for_the_layers_that_the_plan_names():
    assert methods.twin_layers({"r": 8, "target_modules": ["q_proj", "fc1"]}) == 0
    assert methods.twin_layers({"layers_to_transform": [3, 11]}) == 12
    assert methods.twin_layers({"layers_to_transform": 5, "target_modules": "all-linear"}) == 6
    assert methods.twin_layers({"adapter_layers": 8}) == 8
    assert methods.twin_layers({"target_modules": ["model.layers.7.self_attn.q_proj", "v_proj"]}) == 8
    assert methods.twin_layers({"target_modules": r".*layers\.(1[0-5])\.self_attn\.(q|v)_proj"}) is None
    assert methods.twin_layers({"target_modules": r".*(norm|ln_1|ln_2)[a-z0-9_]*"}) == 0


def test_which_models_have_a_task():
    assert methods.supports("TOKEN_CLS", "bert") and methods.supports("SEQ_2_SEQ_LM", "t5")
    assert methods.supports("SEQ_2_SEQ_LM", "llama") is False
    assert methods.supports("CAUSAL_LM", "no-such-type") is None
    assert set(plan.TASK_TYPES.values()) <= set(methods._facts()["models"])
