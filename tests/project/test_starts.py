"""Adapters that begin with a part of the base, in real scripts: what is saved, what a second run goes on from."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from types import SimpleNamespace

import pytest

from peftsmith.project import fitness, twin
from peftsmith.worker import client
from tests.project import several
from tests.project.plans import make
from tests.project.small_project import edit, make_project

NF4 = {"bits": 4, "type": "nf4", "double": False}


@pytest.fixture(scope="module")
def environment(training_python):
    made = SimpleNamespace(interpreter=training_python, key="starts")
    yield made
    client.stop(made)
    client.stop(made, quantise=True)


def proven(folder, environment, tiny_model, *edits, **method):
    project = make_project(folder, tiny_model, method={"rank": 4, "alpha": 8, **method})
    for script, old, new in edits:
        edit(project / script, old, new)
    verdict = twin.run_twin(project, environment)
    return {each.id: each.message for each in verdict.findings if each.severity == "error"}, verdict


@pytest.mark.training
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga"])
def test_an_adapter_that_changed_its_base_loads_on_the_base_as_it_is(environment, tmp_path, tiny_model, init):
    errors, verdict = proven(tmp_path / init, environment, tiny_model, config={"init_lora_weights": init})
    assert errors == {}
    done = {each["name"] for each in verdict.seen["proofs"] if each["ok"]}
    assert {"reload", "merge"} <= done
    assert ("resume" in done) == (init not in ("corda", "lora_ga"))


@pytest.mark.training
def test_without_a_seed_the_second_run_would_meet_another_base(environment, tmp_path, tiny_model):
    unseeded = ("train.py", "seed=SEED", "seed=time.time_ns() % 2**32")
    config = {"init_lora_weights": "pissa_niter_4"}
    errors, _ = proven(tmp_path / "project", environment, tiny_model, unseeded, config=config)
    assert list(errors) == ["twin.resume.failed"]
    assert "another part of the base" in errors["twin.resume.failed"]


@pytest.mark.training
def test_an_adapter_saved_without_conversion_is_found(environment, tmp_path, tiny_model):
    plain = ("train.py", "path_initial_model_for_weight_conversion=str(initial)", "safe_serialization=True")
    config = {"init_lora_weights": "pissa_niter_4"}
    errors, _ = proven(tmp_path / "project", environment, tiny_model, plain, config=config)
    assert "twin.reload.differs" in errors


@pytest.mark.training
@pytest.mark.parametrize(
    "method",
    [
        {"config": {"layer_replication": [[0, 2], [1, 2]]}},
        {"config": {"init_lora_weights": "loftq"}, "quantization": NF4},
    ],
)
def test_what_cannot_be_merged_is_proven_without(environment, tmp_path, tiny_model, method):
    errors, verdict = proven(tmp_path / "project", environment, tiny_model, **method)
    assert errors == {}
    seen = {each["name"]: each["ok"] for each in verdict.seen["proofs"]}
    assert seen["reload"] and seen["resume"] and seen["merge"] is None
    assert not (tmp_path / "project" / "merge.py").exists()


@pytest.mark.training
def test_loftq_starts_each_of_several_adapters(environment, tmp_path, tiny_model):
    method = {"config": {"init_lora_weights": "loftq"}, "quantization": NF4}
    several.make(tmp_path / "project", several.document(tiny_model, method=method))
    verdict = twin.run_twin(tmp_path / "project", environment)
    assert [each.message for each in verdict.findings] == []
    assert {each["name"] for each in verdict.seen["proofs"] if not each["ok"]} == {
        "merge:billing",
        "merge:delivery",
        "combine",
    }


# Runs in the training environment: how far a base in four bits is from the original, without and with LoftQ's start.
ROUNDING = """
    import json, sys, torch
    from peft import LoraConfig, get_peft_model, replace_lora_weights_loftq
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    project, base = sys.argv[1:]
    sys.path.insert(0, project)
    import train

    ids = torch.arange(1, 41)[None]
    load = AutoModelForCausalLM.from_pretrained
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    with torch.no_grad():
        original = load(base, dtype=torch.float32)(ids).logits
        rounded = load(base, dtype=torch.float32, quantization_config=nf4)(ids).logits
        seen = {"rounded": (rounded - original).abs().mean().item()}
        # Another one: on some processors bitsandbytes packs the weights anew at their first use.
        small = get_peft_model(
            load(base, dtype=torch.float32, quantization_config=nf4),
            LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        try:
            replace_lora_weights_loftq(small, base)
            seen["peft"] = "works"
        except Exception as error:
            seen["peft"] = str(error)
        train.start_from_rounding(small, base)
        seen |= {"started": (small(ids).logits - original).abs().mean().item(), "cuda": torch.cuda.is_available()}
    print(json.dumps(seen))
"""


@pytest.mark.training
def test_loftq_begins_nearer_to_the_original_where_pefts_own_needs_cuda(training_python, tmp_path, tiny_model):
    method = {"config": {"init_lora_weights": "loftq"}, "quantization": NF4}
    project = make_project(tmp_path / "project", tiny_model, method=method)
    argv = [training_python, "-W", "ignore", "-c", textwrap.dedent(ROUNDING), str(project), str(tiny_model)]
    done = subprocess.run(argv, capture_output=True, encoding="utf-8", env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["started"] < 0.9 * seen["rounded"]
    assert "CUDA" in seen["peft"] or seen["cuda"]


REFUSED = [
    ({"config": {"init_lora_weights": "loftq"}}, "quantization with bits 4"),
    ({"config": {"init_lora_weights": "loftq"}, "quantization": {"bits": 8}}, "quantization with bits 4"),
    (
        {"config": {"init_lora_weights": "loftq", "loftq_config": {"loftq_iter": 4}}, "quantization": {"bits": 4}},
        "loftq_iter=4",
    ),
    ({"config": {"init_lora_weights": "corda", "corda_config": {"covariance_file": "c.pt"}}}, "torch.load"),
    ({"config": {"init_lora_weights": "corda"}, "quantization": {"bits": 4}}, "decomposes a 16-bit base"),
    ({"config": {"init_lora_weights": "lora_ga", "use_dora": True}}, "would lose use_dora"),
    ({"config": {"layer_replication": [[0, 9]]}}, "no range of layers"),
    ({"config": {"layer_replication": [[1, 1]]}}, "no range of layers"),
]


@pytest.mark.parametrize(("method", "said"), REFUSED)
def test_what_these_starts_cannot_do_is_refused(method, said):
    found = fitness.judge(make("chat", method={"rank": 4, **method}), {"model_type": "llama", "num_hidden_layers": 8})
    assert [each.id for each in found] == ["plan.method.option"]
    assert said in found[0].message


def test_layers_are_repeated_where_peft_was_seen_to_do_so():
    repeated = make("chat", method={"rank": 4, "config": {"layer_replication": [[0, 2], [1, 2]]}})
    assert fitness.judge(repeated, {"model_type": "llama"}) == []
    (found,) = fitness.judge(repeated, {"model_type": "qwen2"})
    assert found.id == "plan.method.option" and "qwen2" in found.message
