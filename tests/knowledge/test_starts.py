"""Which starts of LoRA change the base, and which of their adapters become plain LoRA."""

from __future__ import annotations

import pytest

from peftsmith.knowledge import methods, starts
from peftsmith.project import fitness
from tests.project.plans import make

LORA = methods.method("LORA")


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga"])
def test_an_adapter_that_changed_its_base_is_saved_as_plain_lora_where_peft_can(init):
    options = {"init_lora_weights": init}
    assert starts.alters_base(LORA, options)
    assert starts.converts(LORA, options, quantised=False, new_head=False)
    assert not starts.converts(LORA, options, quantised=True, new_head=False)
    assert not starts.converts(LORA, options, quantised=False, new_head=True)


@pytest.mark.parametrize(
    ("more", "lost"),
    [
        ({"modules_to_save": ["norm"]}, ["modules_to_save"]),
        ({"bias": "lora_only"}, ["bias"]),
        ({"bias": "none", "use_dora": False}, []),
        ({"use_dora": True}, ["use_dora"]),
        ({"use_rslora": True, "rank_pattern": {"q_proj": 8}}, ["use_rslora with rank_pattern"]),
        ({"use_rslora": True, "rank_pattern": {}}, []),
    ],
)
def test_what_would_be_lost_stands_against_it(more, lost):
    options = {"init_lora_weights": "pissa", **more}
    assert starts.lost(LORA, options, new_head=False) == lost
    assert starts.converts(LORA, options, quantised=False, new_head=False) is not bool(lost)


@pytest.mark.parametrize("init", [True, "eva", "gaussian", "orthogonal"])
def test_other_starts_leave_the_base_as_it_is(init):
    assert not starts.converts(LORA, {"init_lora_weights": init}, quantised=False, new_head=False)


def test_servers_take_what_is_plain_and_nothing_else():
    pissa = {"rank": 4, "config": {"init_lora_weights": "pissa"}}
    assert "vllm" in make("chat", method=pissa).servers()
    assert make("chat", method={**pissa, "config": {**pissa["config"], "use_dora": True}}).servers() == (
        "transformers",
    )
    head = {"data__format": "classification", "data__labels": ["a", "b"]}
    assert make("sequence_classification", method=pissa, **head).servers() == ("transformers",)


def test_a_start_by_chance_that_cannot_be_converted_is_refused():
    chance = {"rank": 4, "config": {"init_lora_weights": "pissa_niter_4"}}
    assert fitness.judge(make("chat", method=chance), {"model_type": "llama"}) == []
    saved = {"rank": 4, "config": {"init_lora_weights": "pissa_niter_4", "modules_to_save": ["norm"]}}
    (found,) = fitness.judge(make("chat", method=saved), {"model_type": "llama"})
    assert found.id == "plan.method.option" and "modules_to_save" in found.message


def test_olora_is_refused_on_transposed_layers():
    olora = make("chat", method={"rank": 4, "config": {"init_lora_weights": "olora"}})
    assert [each.id for each in fitness.judge(olora, {"model_type": "gpt2"})] == ["plan.method.option"]
    assert fitness.judge(olora, {"model_type": "llama"}) == []
