"""The real classes, asked through the worker, and what config.json alone implies: where they agree and where not."""

from __future__ import annotations

import json

import pytest

from peftsmith.errors import PeftsmithError
from peftsmith.machine import environment
from peftsmith.model import agreement, anatomy, layouts, skeleton

LLAMA = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 320}  # fmt: skip
# Classes of every kind: dense, fused, Conv1D, mixture, hybrid, encoder, encoder-decoder, image-text.
AGREE = {
    "LlamaForCausalLM": {"model_type": "llama", **LLAMA},
    "Phi3ForCausalLM": {"model_type": "phi3", **LLAMA, "pad_token_id": 0},
    "GPT2LMHeadModel": {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 320},
    "Qwen3MoeForCausalLM": {"model_type": "qwen3_moe", **LLAMA, "num_experts": 4, "moe_intermediate_size": 32},
    "BertForSequenceClassification": {"model_type": "bert", **LLAMA},
    "T5ForConditionalGeneration": {"model_type": "t5", "d_model": 64, "d_ff": 96, "num_layers": 2, "num_heads": 4,
                                   "d_kv": 16, "vocab_size": 320},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    def write(config):
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return str(tmp_path)

    return write


@pytest.mark.training
@pytest.mark.parametrize("architecture", AGREE)
def test_config_and_classes_agree(architecture, training_python, tmp_path):
    config = {"architectures": [architecture], **AGREE[architecture]}
    implied = layouts.skeleton(config)
    real = skeleton.exact(config, environment.require(tmp_path))
    assert implied is not None
    assert agreement.with_classes(implied, real) == []
    assert implied.parameters == real.parameters


@pytest.mark.training
def test_where_config_alone_does_not_tell_the_classes_do(training_python, folder, tmp_path):
    """They may not agree where the catalogue is incomplete: then config.json alone gives no answer at all."""
    config = {"model_type": "opt", "architectures": ["OPTForCausalLM"], "vocab_size": 320, "num_hidden_layers": 2}
    assert layouts.skeleton(config) is None
    found = skeleton.inspect(folder(config), None, tmp_path)
    assert found.supported and found.parameters > 0
    assert "model.modules.from_classes" in {each.id for each in found.findings}
    assert "model.architecture.unsupported" not in {each.id for each in found.findings}


@pytest.mark.training
def test_what_the_classes_refuse_is_unknown(training_python, folder, tmp_path):
    config = {"model_type": "no_such_type", "architectures": ["NoSuchModel"]}
    found = skeleton.inspect(folder(config), None, tmp_path, exact_modules=True)
    assert not found.supported
    severities = {each.id: each.severity for each in found.findings}
    assert severities["model.modules.not_built"] == "unknown"
    assert severities["model.architecture.unsupported"] == "error"


def test_without_an_environment_the_files_answer(monkeypatch, folder, tmp_path):
    monkeypatch.setattr(environment, "_wanted", lambda project: {})
    config = {"model_type": "no_such_type", "architectures": ["NoSuchModel"]}
    assert not skeleton.inspect(folder(config), None, tmp_path).supported
    with pytest.raises(PeftsmithError, match="no training environment"):
        skeleton.inspect(folder(config), None, tmp_path, exact_modules=True)


def test_a_difference_is_named():
    one = layouts.skeleton({"model_type": "llama", "architectures": ["LlamaForCausalLM"], **LLAMA})
    other = layouts.skeleton({"model_type": "llama", "architectures": ["LlamaForCausalLM"], **LLAMA, "vocab_size": 8})
    assert one is not None and other is not None
    [found] = agreement.with_classes(one, other)
    assert found.id == "model.modules.disagree"
    assert found.evidence["count"] == 2 and "lm_head.weight" in found.evidence["examples"]


def test_gated_is_unknown_for_a_folder(tiny_model):
    assert anatomy.inspect(str(tiny_model)).gated is None
