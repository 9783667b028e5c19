"""Our counts, names and matches against the real transformers and PEFT classes, for every model type that we cover."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from peftsmith.model import anatomy, memory, peak, targets
from tests.model.test_targets import TINYLLAMA

pytestmark = pytest.mark.training

SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 24, "vocab_size": 208, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VALUES = [
    (value, rank)
    for value in (
        ["q_proj", "v_proj"],
        ["q_proj", "k_proj", "v_proj", "o_proj"],
        ["gate_proj", "up_proj", "down_proj"],
        "all-linear",
    )
    for rank in (1, 8, 24)
] + [
    (["lm_head", "q_proj"], 4),
    (["embed_tokens"], 4),
    (["model.layers.1.mlp.up_proj", "layers.0.self_attn.v_proj"], 4),
    (r"model\.layers\.[02]\..*(q|down)_proj", 4),
]
# Types that take the small config as it is; among them other norms and parallel blocks than Llama's.
KINDS = (
    "llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "gemma", "gemma2", "gemma3_text", "olmo2",
    "stablelm", "cohere",
)  # fmt: skip
# Another head width, ties and biases than the small default; the key is the folder's name.
VARIANTS = {
    "llama-tied-bias": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama-plain": ("llama", {"head_dim": None, "num_key_value_heads": None}),
    "qwen3-bias": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "gemma-untied": ("gemma", {"tie_word_embeddings": False}),
}
SAVED = [
    {"model": "llama", "dtype": dtype, "autocast": autocast, "batch": batch, "length": 48, "rank": 8, "targets": value}
    for dtype, autocast in (("float32", False), ("bfloat16", False), ("bfloat16", True))
    for batch, value in ((1, "all-linear"), (3, "all-linear"), (3, ["q_proj", "v_proj"]))
]
SAVED += [{**each, "packed": True} for each in SAVED if each["targets"] == "all-linear"]


def without_none(config: dict) -> dict:
    return {key: value for key, value in config.items() if value is not None}


@pytest.fixture(scope="module")
def real(training_python, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    models = {kind: {"model_type": kind, "config": SMALL, "targets": VALUES} for kind in KINDS}
    for name, (kind, changes) in VARIANTS.items():
        models[name] = {"model_type": kind, "config": without_none({**SMALL, **changes}), "targets": VALUES}
    tiny = {key: value for key, value in TINYLLAMA.items() if key not in ("architectures", "model_type")}
    quoted = [(["q_proj", "v_proj"], 8), ("all-linear", 16)]
    models["tinyllama"] = {"model_type": "llama", "config": tiny, "targets": quoted, "save": False}
    script = Path(__file__).with_name("with_peft.py")
    done = subprocess.run(
        [training_python, str(script), str(folder), json.dumps({"models": models, "saved": SAVED})],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout.splitlines()[-1]), models


NAMES = [*KINDS, *VARIANTS, "tinyllama"]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_linear_modules(real, name):
    folder, answers, _ = real
    body, truth = anatomy.inspect(str(folder / name)), answers["models"][name]
    errors = [each.message for each in body.findings if each.severity == "error"]
    assert errors == []
    assert body.parameters == truth["parameters"]
    linear = {module: list(size) for module, size in body.linear.items()}
    assert linear == {key: size for key, size in truth["linear"].items() if key != "lm_head" or not truth["tied"]}
    assert body.tied_embeddings == truth["tied"]
    known = {*body.other_modules, *targets.adaptable(body)}
    assert known == set(truth["modules"])


@pytest.mark.parametrize("name", NAMES)
def test_the_same_from_config_alone(real, name, tmp_path):
    folder, answers, _ = real
    (tmp_path / "config.json").write_bytes((folder / name / "config.json").read_bytes())
    body = anatomy.inspect(str(tmp_path))
    assert body.parameters == answers["models"][name]["parameters"]
    assert any(each.id == "model.weights.missing" for each in body.findings)


@pytest.mark.parametrize("name", NAMES)
def test_what_peft_adapts(real, name):
    folder, answers, models = real
    body = anatomy.inspect(str(folder / name))
    for (value, rank), truth in zip(models[name]["targets"], answers["models"][name]["adapted"], strict=True):
        assert sorted(targets.match(body, value)) == sorted(truth["modules"]), value
        trainable = targets.count(body, value, rank)
        assert trainable == truth["trainable"], value
        assert targets.share(body, trainable) == pytest.approx(truth["trainable"] / truth["all"]), value


def test_the_number_in_the_seeds(real):
    assert real[1]["models"]["tinyllama"]["adapted"][0]["trainable"] == 1_126_400


@pytest.mark.parametrize("case", range(len(SAVED)), ids=lambda n: "-".join(str(v) for v in list(SAVED[n].values())[1:]))
def test_what_autograd_keeps(real, case):
    """The activation terms against the storages that torch really keeps, within 5 %: the first of the three layers
    keeps less, since nothing before it needs a gradient."""
    folder, answers, _ = real
    how = SAVED[case]
    body = anatomy.inspect(str(folder / how["model"]))
    request = memory.Request(
        rank=how["rank"],
        targets=how["targets"],
        batch_size=how["batch"],
        sequence_length=how["length"],
        precision="fp32" if how["dtype"] == "float32" else "bf16",
        autocast=how["autocast"],
        device="cpu",
        flattened=how.get("packed", False),
    )
    kept = sum(each.count * each.kept for each in peak.passes(memory.job_of(body, request.laid_out())))
    ours = kept + how["batch"] * how["length"] * 4 * body.hidden
    assert ours == pytest.approx(answers["saved"][case], rel=0.05)
