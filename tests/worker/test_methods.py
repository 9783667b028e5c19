"""The committed list of methods is that of the installed PEFT, and PEFT takes what a plan lets through."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from peftsmith.knowledge import method_options, methods
from peftsmith.worker import client

pytestmark = pytest.mark.training
TAKEN = [
    ("LORA", {"r": 4, "use_dora": True, "init_lora_weights": "pissa_niter_4", "rank_pattern": {"q_proj": 2}}),
    ("LORA", {"r": 4, "init_lora_weights": "eva", "eva_config": {"rho": 2.0}}),
    ("LORA", {"target_parameters": ["mlp.experts.gate_up_proj"], "modules_to_save": ["lm_head"]}),
    ("PREFIX_TUNING", {"num_virtual_tokens": 4, "prefix_projection": True}),
    ("OFT", {"oft_block_size": 16, "r": 0}),
]


@pytest.fixture(scope="module")
def environment(training_python):
    made = SimpleNamespace(interpreter=training_python, key="methods")
    yield made
    client.stop(made)


def test_the_committed_file_is_what_the_installed_peft_says(environment):
    asked = [{"peft_type": name, "options": options} for name, options in TAKEN]
    asked.append({"peft_type": "LORA", "options": {"use_dorra": True}})
    found = client.call(environment, "methods", {"configs": asked}, timeout=120)
    faults = found.pop("faults")
    assert json.loads(methods.written(found)) == {**methods._facts()}
    assert faults[:-1] == [None] * len(TAKEN)
    assert "use_dorra" in faults[-1]
    for name, options in TAKEN:
        known = methods.method(name)
        named = set(known.names.values())
        assert (
            list(method_options.faults(known, {key: value for key, value in options.items() if key not in named})) == []
        )
