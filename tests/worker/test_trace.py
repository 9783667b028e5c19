"""Traces against the real thing: what a method's set-up makes on meta tensors is what PEFT makes with real weights."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap

import pytest

from peftsmith import files
from peftsmith.model import anatomy, memory, methods, precise
from tests.conftest import REPOSITORY

TINY = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64,
    "intermediate_size": 128, "vocab_size": 500, "num_attention_heads": 4, "num_key_value_heads": 2,
    "tie_word_embeddings": True, "max_position_embeddings": 256,
}  # fmt: skip
OPTIONS = {
    "CPT": {"cpt_token_ids": [1, 2, 3]}, "XLORA": {"adapters": {"a": "a", "b": "b"}}, "OFT": {"oft_block_size": 32},
    "IA3": {"feedforward_modules": ["down_proj"]}, "WAVEFT": {"n_frequency": 100}, "C3A": {"block_size": 16},
    "VBLORA": {"vector_length": 16}, "PROMPT_TUNING": {"num_virtual_tokens": 4}, "P_TUNING": {"num_virtual_tokens": 4},
    "PREFIX_TUNING": {"num_virtual_tokens": 4}, "CARTRIDGE": {"num_virtual_tokens": 4},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 4}, "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1},
    "TRAINABLE_TOKENS": {"token_indices": [0]}, "ROAD": {"group_size": 16}, "FOURIERFT": {"n_frequency": 100},
    "ADAMSS": {"r": 20},
}  # fmt: skip
# Set-ups that need numbers: each with what its own family does with them.
REPAIRED = ["SHIRA", "WAVEFT", "FROD", "ADAMSS", "BOFT", "OFT", "CPT", "POLY", "MULTITASK_PROMPT_TUNING"]

SCRIPT = """
    import json, sys, peft, torch, transformers
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peftsmith.worker import trace_step
    from peftsmith.worker.jobs import trace

    def weigh(model):
        every = {each.untyped_storage()._cdata: each for each in [*model.parameters(), *model.buffers()]}
        trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
        return [trained, sum(each.untyped_storage().nbytes() for each in every.values())]

    asked, repaired = json.load(sys.stdin)
    found = {"traces": {name: trace.run(each, lambda *_: None) for name, each in asked.items()}, "sizes": {}}
    for name in repaired:
        _, whole = trace.trace_model.cut(asked[name]["config"], None)
        traced, _ = trace._model(asked[name], whole, "meta")
        config = transformers.LlamaConfig(**{k: v for k, v in asked[name]["config"].items() if k != "model_type"})
        real = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
        fields = dict(asked[name]["method"])
        kind = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(fields.pop("peft_type"))]
        real = peft.get_peft_model(real, kind(task_type="CAUSAL_LM", **fields))
        found["sizes"][name] = [weigh(traced), weigh(real)]
    log = trace_step.Log()
    passing, staying = log.hold(512), log.hold(1024)
    log.release(passing)
    log.again(list(log.events))
    found["again"] = log.events
    print(json.dumps(found))
"""


def asked_for(tiny, name, **changes):
    targets = ["k_proj", "v_proj", "down_proj"] if name == "IA3" else ["q_proj", "v_proj"]
    request = memory.Request(
        method=name.lower(), rank=4, targets=targets, batch_size=2, sequence_length=32, loss="stock",
        gradient_checkpointing=False, autocast=False, options=OPTIONS.get(name, {}),
    )  # fmt: skip
    return {**precise.arguments_of(tiny, request), **changes}


@pytest.fixture(scope="module")
def found(tmp_path_factory, training_python):
    files.set_roots(["/"])
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(TINY), encoding="utf-8")
    tiny = anatomy.inspect(str(folder))
    asked = {name: asked_for(tiny, name) for name in methods.METHODS}
    done = subprocess.run(
        [training_python, "-c", textwrap.dedent(SCRIPT)],
        input=json.dumps([{**asked, "bare": asked_for(tiny, "BOFT", loop="bare")}, REPAIRED]),
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "mcp_server"), "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.training
@pytest.mark.parametrize("name", REPAIRED)
def test_a_set_up_on_meta_makes_what_real_weights_make(found, name):
    """Trained parameters are equal; bytes of weights and buffers too."""
    traced, real = found["sizes"][name]
    assert traced[0] == real[0] > 0
    assert traced[1] == real[1]


@pytest.mark.training
def test_every_method_of_the_installed_peft_is_traced_on_meta(found):
    traces = found["traces"]
    assert len(methods.METHODS) >= 45 and set(traces) == {*methods.METHODS, "bare"}
    assert {answer["how"] for answer in traces.values()} == {"traced"}
    for name in ("SHIRA", "FROD", "WAVEFT"):
        assert any("made-up" in each for each in traces[name]["substitutions"])
    assert traces["LORA"]["substitutions"] == ["attention kernel"]


@pytest.mark.training
def test_in_a_bare_loop_permutations_of_boft_stay_on_the_processor(found):
    """Four modules, a float32 square matrix of the inputs each."""
    permutations = 4 * 4 * TINY["hidden_size"] ** 2
    assert found["traces"]["BOFT"]["allocated"] - found["traces"]["bare"]["allocated"] == permutations


@pytest.mark.training
def test_a_step_is_repeated_under_new_names_without_what_outlived_it(found):
    assert found["again"] == [[0, 512], [1, 1024], [0, 0], [2, 512], [2, 0]]
