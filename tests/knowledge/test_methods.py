"""PEFT's methods as data: the notes speak of fields that exist, and wrong options are named."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from peftsmith import plan
from peftsmith.errors import PeftsmithError
from peftsmith.knowledge import method_options, methods

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
            assert method_options.fits(told["default"], told["type"]), (name, field, told)


def test_the_file_is_laid_out_as_it_is_written():
    text = resources.files("peftsmith.knowledge").joinpath(methods.FILE).read_text(encoding="utf-8")
    assert methods.written(json.loads(text)) == text


def test_an_unknown_method_gets_the_nearest_name():
    with pytest.raises(PeftsmithError, match="did you mean PREFIX_TUNING"):
        methods.method("PREFIX_TUNNING")


def test_which_models_have_a_task():
    assert methods.supports("TOKEN_CLS", "bert") and methods.supports("SEQ_2_SEQ_LM", "t5")
    assert methods.supports("SEQ_2_SEQ_LM", "llama") is False
    assert methods.supports("CAUSAL_LM", "no-such-type") is None
    assert set(plan.TASK_TYPES.values()) <= set(methods._facts()["models"])
