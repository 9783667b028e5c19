"""What is refused with a reason in knowledge/methods.toml, tried on the installed PEFT: the reason still holds.

When one of these fails, PEFT has learnt it: take the refusal away and prove the method (benchmarks/first_run.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import textwrap

import pytest

from benchmarks.first_runs import cases
from peftsmith.knowledge import methods

SCRIPT = """
    import dataclasses, json, tempfile, torch
    from pathlib import Path
    import peft
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=144, num_attention_heads=4, num_key_value_heads=2)
    tiny = LlamaConfig(vocab_size=200, num_hidden_layers=2, use_cache=False, **sizes)
    ids, folder, seen = torch.arange(40).reshape(2, 20), Path(tempfile.mkdtemp()), {}

    def base():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(tiny)

    def lora(**options):
        return peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **options)

    for name in ("0", "1", "a", "b"):
        peft.get_peft_model(base(), lora(init_lora_weights=False)).save_pretrained(folder / name)

    def xlora(*names):
        mixed = {name: str(folder / name) for name in names}
        config = peft.XLoraConfig(hidden_size=64, adapters=mixed, task_type="CAUSAL_LM")
        return peft.get_peft_model(base(), config)

    model = xlora("0", "1")
    model(input_ids=ids, labels=ids).loss.backward()
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    model.save_pretrained(folder / "mixed")
    seen["trained"] = trained
    seen["saved"] = list(load_file(folder / "mixed" / "adapter_model.safetensors"))
    try:
        xlora("a", "b")(input_ids=ids)
        seen["named"] = "works"
    except KeyError as error:
        seen["named"] = str(error)

    plain, pooled = (peft.get_peft_model(base(), lora(**each)) for each in ({}, {"use_qalora": True}))
    shapes = [[each.shape for name, each in model.named_parameters() if "lora_A" in name] for model in (plain, pooled)]
    seen["pooled"] = shapes[0] != shapes[1]

    fields = dataclasses.fields(peft.LoraConfig)
    seen["variants"] = [each.name for each in fields if each.metadata.get("is_lora_variant")]
    print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen(training_python):
    argv = [training_python, "-W", "ignore", "-c", textwrap.dedent(SCRIPT)]
    done = subprocess.run(argv, capture_output=True, encoding="utf-8", env={**os.environ}, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.training
def test_xlora_does_not_save_the_classifier_that_it_trains(seen):
    assert seen["trained"] and all("internal_xlora_classifier" in each for each in seen["trained"])
    assert seen["saved"] == []
    assert seen["named"] == "'a'"  # its adapters must be called 0, 1, ..., which is what hides the classifier's layers
    assert "does not save" in str(methods.method("XLORA").unsupported)


@pytest.mark.training
def test_qalora_changes_nothing_on_a_base_that_is_not_gptq(seen):
    assert seen["pooled"] is False
    assert "changes nothing" in str(methods.why_refused(methods.method("LORA"), "use_qalora", True))


def test_what_is_refused_as_a_whole_is_xlora_alone():
    assert [name for name in methods.names() if methods.method(name).unsupported] == ["XLORA"]


@pytest.mark.training
def test_every_variant_and_start_of_lora_is_tried_or_refused_with_its_reason(seen):
    lora = methods.method("LORA")
    tried = [each.plan["method"].get("config", {}) for each in cases._each_once(["LORA"])]
    assert len(seen["variants"]) > 5
    for name in seen["variants"]:
        assert any(config.get(name) for config in tried) or name in lora.refused, name
    [starts] = [each["choices"] for each in lora.fields["init_lora_weights"]["type"] if isinstance(each, dict)]
    for start in starts:
        name = start.partition("[")[0]
        assert any(str(config.get("init_lora_weights")).startswith(name) for config in tried), start
