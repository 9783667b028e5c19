"""Anatomy: counts, modules, tokens, and what is said when config and weights disagree or are not understood."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftsmith.errors import PeftsmithError
from peftsmith.model import anatomy
from tests.tiny import write_safetensors, write_tiny_model

LLAMA_3_2_3B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192,
    "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "max_position_embeddings": 131072,
}  # fmt: skip
# Parameters as published on the models' pages (safetensors totals of the hub).
PUBLISHED = {
    3_212_749_824: LLAMA_3_2_3B,
    1_100_048_384: {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
    },
    7_241_732_096: {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000,
    },
    494_032_768: {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    2_506_172_416: {
        "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384,
        "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1, "vocab_size": 256000,
    },
}  # fmt: skip


def ids(body: anatomy.Anatomy) -> dict[str, str]:
    return {each.id: each.severity for each in body.findings}


def change(folder, name: str, **values) -> None:
    path = folder / name
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**document, **values}), encoding="utf-8")


@pytest.fixture
def folder(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_the_tiny_model_is_sound(tiny_model):
    body = anatomy.inspect(str(tiny_model))
    vocab = body.vocab
    assert body.parameters == vocab * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128 + 2 * 64) + 64
    assert body.parameter_bytes == 4 * body.parameters and body.dtype == "float32"
    assert body.linear["model.layers.1.self_attn.k_proj"] == (64, 32) and len(body.linear) == 14
    assert (body.eos_token_ids, body.pad_token_id, body.bos_token_id) == ([2], 3, 1)
    assert body.chat_template is not None and body.supported
    assert ids(body) == {"model.licence.unknown": "info"}


def test_to_json_is_plain_and_short(tiny_model):
    plain = anatomy.inspect(str(tiny_model)).to_json()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["linear"]["down_proj"] == [{"modules": 2, "in": 128, "out": 64}]
    assert "findings" not in plain and len(json.dumps(plain)) < 3000


@pytest.mark.parametrize("parameters", PUBLISHED)
def test_published_counts_from_config_alone(tmp_path, parameters):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[parameters]), encoding="utf-8")
    body = anatomy.inspect(str(tmp_path))
    assert body.parameters == parameters
    assert ids(body)["model.weights.missing"] == "info"


@pytest.mark.training
def test_the_real_model(smollm2):
    body = anatomy.inspect(str(smollm2))
    assert body.parameters == 134_515_008 and body.tied_embeddings and len(body.linear) == 210
    assert ids(body)["model.tokenizer.pad_is_eos"] == "info"
    assert {each.severity for each in body.findings} == {"info"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"intermediate_size": 256}, "wrong_shape"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1}, "unknown"),
        ({"tie_word_embeddings": False}, "missing"),
        ({"attention_bias": True}, "missing"),
        ({"vocab_size": 401}, "wrong_shape"),
    ],
)
def test_config_against_weights(folder, values, said):
    change(folder, "config.json", **values)
    body = anatomy.inspect(str(folder))
    found = [each for each in body.findings if each.id == "model.tensors.contradict"]
    assert len(found) == 1 and found[0].severity == "error" and found[0].evidence[said] > 0


def tied_twice(folder, *, equal: bool) -> None:
    body = anatomy.inspect(str(folder))
    shapes = {"lm_head.weight": (body.vocab, 64)}
    write_safetensors(folder / "head.safetensors", shapes, seed=7)
    shapes["model.embed_tokens.weight"] = (body.vocab, 64)
    write_safetensors(folder / "both.safetensors", shapes, seed=7)
    content = (folder / "both.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    half = (len(content) - start) // 2
    if equal:
        content = content[: start + half] + content[start : start + half]
    (folder / "model-00002.safetensors").write_bytes(content)
    (folder / "head.safetensors").unlink()
    (folder / "both.safetensors").unlink()
    rest = {
        name: each.shape for name, each in anatomy.source.open_model(str(folder)).tensors.items() if "embed" not in name
    }
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "model-00001.safetensors", rest)
    index = {**dict.fromkeys(rest, "model-00001.safetensors"), **dict.fromkeys(shapes, "model-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")


def test_a_tied_head_that_is_stored_as_well_counts_once(folder):
    before = anatomy.inspect(str(folder)).parameters
    tied_twice(folder, equal=True)
    body = anatomy.inspect(str(folder))
    assert body.parameters == before and body.tied_embeddings and "lm_head" not in body.linear
    assert "model.tensors.contradict" not in ids(body)


def test_a_head_that_differs_is_not_tied(folder):
    before = anatomy.inspect(str(folder))
    tied_twice(folder, equal=False)
    body = anatomy.inspect(str(folder))
    assert ids(body)["model.embeddings.not_tied"] == "warning" and not body.tied_embeddings
    assert body.parameters == before.parameters + before.vocab * 64 and body.linear["lm_head"] == (64, before.vocab)
    assert "model.tensors.contradict" not in ids(body)


@pytest.mark.parametrize(
    ("values", "found", "severity"),
    [
        ({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}, "model.tensors.contradict", "error"),
        ({"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}, "model.tensors.contradict", "error"),
        ({"model_type": None}, "model.modules.from_header", "info"),
        ({"model_type": ["llama"]}, "model.modules.from_header", "info"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "model.quantization.stored", "warning"),
        ({"quantization_config": {"load_in_4bit": True}}, "model.quantization.stored", "warning"),
        ({"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling.Own"}}, "model.code.remote", "error"),
    ],
)
def test_what_does_not_fit_is_said(folder, values, found, severity):
    change(folder, "config.json", **values)
    assert ids(anatomy.inspect(str(folder)))[found] == severity


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"model_type": "own"}, "model.architecture.unsupported"),
        ({"model_type": None}, "model.architecture.unsupported"),
        ({"architectures": ["LlamaForDreaming"]}, "model.architecture.not_causal"),
    ],
)
def test_without_weights_an_unknown_class_has_no_modules(tmp_path, values, found):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_3_2_3B, **values}), encoding="utf-8")
    body = anatomy.inspect(str(tmp_path))
    assert ids(body)[found] == "error" and not body.supported and body.linear == {}


def test_code_that_is_not_needed_is_only_mentioned(folder):
    change(folder, "config.json", auto_map={"AutoModelForCausalLM": "modeling.Own"})
    assert ids(anatomy.inspect(str(folder)))["model.code.not_needed"] == "info"


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": 10**30}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "heads"),
        ({"vocab_size": None}, "vocab_size"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"max_position_embeddings": -1}, "max_position_embeddings"),
        ({"num_attention_heads": 128, "num_key_value_heads": 128, "head_dim": None}, "heads"),
    ],
)
def test_absurd_configs_are_refused(folder, values, key):
    change(folder, "config.json", **values)
    with pytest.raises(PeftsmithError, match=key) as caught:
        anatomy.inspect(str(folder))
    assert caught.value.next_step


simple = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
)
keys = [
    *LLAMA_3_2_3B,
    "num_key_value_heads",
    "attention_bias",
    "quantization_config",
    "eos_token_id",
    "auto_map",
    "dtype",
]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(keys), simple | st.dictionaries(st.text(max_size=3), simple, max_size=2), max_size=5
    )
)
def test_any_config_is_described_or_refused_and_nothing_else(tmp_path, values):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_3_2_3B, **values}), encoding="utf-8")
    try:
        body = anatomy.inspect(str(tmp_path))
    except PeftsmithError as error:
        assert error.next_step
    else:
        json.dumps(body.to_json())


@pytest.mark.parametrize(
    ("file", "values", "found"),
    [
        ("generation_config.json", {"eos_token_id": 0}, ("model.tokenizer.end_of_turn", "warning")),
        ("tokenizer_config.json", {"eos_token": "<|endoftext|>"}, ("model.tokenizer.end_of_turn", "warning")),
        ("tokenizer_config.json", {"pad_token": "<|im_end|>"}, ("model.tokenizer.pad_is_eos", "info")),
        (
            "generation_config.json",
            {"pad_token_id": 9999, "eos_token_id": [2, 9999]},
            ("model.tokenizer.beyond_embeddings", "error"),
        ),
    ],
)
def test_tokens_that_disagree(folder, file, values, found):
    change(folder, file, **values)
    assert ids(anatomy.inspect(str(folder))).get(found[0]) == found[1]


def test_several_stop_tokens_of_which_one_closes_the_turn_are_fine(folder):
    change(folder, "generation_config.json", eos_token_id=[0, 2])
    assert "model.tokenizer.end_of_turn" not in ids(anatomy.inspect(str(folder)))


def test_templates_missing_named_and_without_a_known_end(folder):
    (folder / "chat_template.jinja").unlink()
    assert ids(anatomy.inspect(str(folder)))["model.chat_template.missing"] == "warning"
    named = [{"name": "tool", "template": "x"}, {"name": "default", "template": "{{ messages[0].content }}<|im_end|>"}]
    change(folder, "tokenizer_config.json", chat_template=named)
    body = anatomy.inspect(str(folder))
    assert body.chat_template == named[1]["template"] and "model.chat_template.end_unknown" not in ids(body)
    change(folder, "tokenizer_config.json", chat_template="{{ messages[0].content }}\n")
    assert ids(anatomy.inspect(str(folder)))["model.chat_template.end_unknown"] == "unknown"


def test_no_tokenizer_is_unknown_not_fine(folder):
    (folder / "tokenizer.json").unlink()
    assert ids(anatomy.inspect(str(folder)))["model.tokenizer.missing"] == "unknown"


def test_qwen_like_defaults(tmp_path):
    body = anatomy.inspect(str(write_tiny_model(tmp_path / "m")))
    change(tmp_path / "m", "config.json", model_type="qwen3", architectures=["Qwen3ForCausalLM"], head_dim=16)
    found = anatomy.inspect(str(tmp_path / "m"))
    evidence = next(each.evidence for each in found.findings if each.id == "model.tensors.contradict")
    assert evidence["missing"] == 4 and any("q_norm" in each for each in evidence["examples"])
    assert found.vocab == body.vocab
