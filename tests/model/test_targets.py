"""Target modules: PEFT's matching, exact counts from dimensions, findings, serving verdicts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from peftsmith.errors import PeftsmithError
from peftsmith.model import anatomy, serving, target_findings, targets

TINYLLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632,
    "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
    "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def tinyllama(tmp_path_factory):
    from peftsmith import files

    files.set_roots(["/"])
    folder = tmp_path_factory.mktemp("tinyllama")
    (folder / "config.json").write_text(json.dumps(TINYLLAMA), encoding="utf-8")
    return anatomy.inspect(str(folder))


def ids(found) -> list[str]:
    return [each.id for each in found]


def test_the_seeds_wrong_number_is_right_here(tinyllama):
    """4,194,304 is often quoted for q and v at rank 8; PEFT really trains 1,126,400."""
    (choice,) = targets.find(tinyllama, rank=8, preset="query-value")
    assert choice.trainable == 1_126_400 and choice.value == ["q_proj", "v_proj"]
    assert choice.modules == 44 and choice.layers_matched == choice.layers_present == 22
    assert choice.share == pytest.approx(1_126_400 / (1_100_048_384 + 1_126_400))


def test_all_presets_in_order(tinyllama):
    found = targets.find(tinyllama, rank=16)
    assert [each.preset for each in found] == [name for name in targets.PRESETS if name != "experts"]
    assert found[3].value == "all-linear" and found[3].trainable == found[1].trainable + found[2].trainable
    assert all(json.loads(json.dumps(each.to_json()))["trainable"] == each.trainable for each in found)


def test_changing_a_choice_changes_no_preset(tinyllama):
    targets.find(tinyllama, rank=8, preset="attention")[0].value.append("x")
    (again,) = targets.find(tinyllama, rank=8, preset="attention")
    assert again.value == ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (["q_proj"], 22),
        (["model.layers.3.self_attn.q_proj"], 1),
        (["self_attn.q_proj", "layers.0.mlp.up_proj"], 23),
        (["proj"], 0),
        (["_proj"], 0),
        ("q_proj", 0),
        (r".*\.q_proj", 22),
        (r"model\.layers\.[01]\..*_proj", 14),
        ("all-linear", 154),
        ("ALL-LINEAR", 154),
        (["lm_head"], 1),
        (["embed_tokens", "lm_head"], 2),
    ],
)
def test_matching_as_peft_does(tinyllama, value, count):
    assert len(targets.match(tinyllama, value)) == count


def test_unmatched_names(tinyllama):
    assert targets.unmatched(tinyllama, ["q_proj", "W_pack", "c_attn"]) == ["W_pack", "c_attn"]
    assert targets.unmatched(tinyllama, "q_proj") == ["q_proj"]
    assert targets.unmatched(tinyllama, "all-linear") == []


@pytest.mark.parametrize(
    ("value", "rank", "expected"),
    [
        (["q_proj", "v_proj"], 8, []),
        (["W_pack"], 8, ["model.targets.no_match"]),
        (["q_proj", "W_pack"], 8, ["model.targets.unmatched"]),
        (r"model\.layers\.\d\..*q_proj", 8, ["model.targets.layers_partial"]),
        (["q_proj", "self_attn"], 8, ["model.targets.unmatched", "model.targets.not_adaptable"]),
        (r".*layers\.\d+\.self_attn.*", 4, ["model.targets.not_adaptable"]),
        (["q_proj", "input_layernorm"], 4, ["model.targets.unmatched", "model.targets.not_adaptable"]),
        (["q_proj", "lm_head"], 8, ["model.targets.head", "model.targets.embeddings_saved"]),
        (["k_proj"], 300, ["model.targets.rank_too_high", "model.targets.share_high"]),
        ("all-linear", 16, ["model.targets.share_high"]),
        ("all-linear", 256, ["model.targets.share_too_high"]),
    ],
)
def test_findings(tinyllama, value, rank, expected):
    assert ids(target_findings.judge(tinyllama, value, rank)) == expected


def test_tied_ends_are_an_error(tiny_model):
    body = anatomy.inspect(str(tiny_model))
    for name in ("lm_head", "embed_tokens"):
        assert "model.targets.tied_head" in ids(target_findings.judge(body, ["q_proj", name], 1))
    assert targets.count(body, ["lm_head"], 4) == 4 * (64 + body.vocab)


@pytest.mark.parametrize("rank", [0, -1, 4097, True, 1.5, "8"])
def test_ranks_that_cannot_be(tinyllama, rank):
    with pytest.raises(PeftsmithError, match="rank"):
        targets.find(tinyllama, rank=rank)


def test_a_wrong_preset_and_a_broken_pattern(tinyllama):
    with pytest.raises(PeftsmithError, match="preset"):
        targets.find(tinyllama, rank=8, preset="all")
    for pattern in ("(", "x" * 20_001):
        with pytest.raises(PeftsmithError) as caught:
            targets.match(tinyllama, pattern)
        assert "names" in caught.value.next_step


def test_an_unknown_architecture_gets_no_guess(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**TINYLLAMA, "model_type": "own"}), encoding="utf-8")
    body = anatomy.inspect(str(tmp_path))
    assert targets.find(body, rank=8) == []
    with pytest.raises(PeftsmithError, match="not known exactly"):
        targets.count(body, ["q_proj"], 8)


@pytest.mark.parametrize(("rank", "flag"), [(1, "1"), (8, "8"), (24, "32"), (256, "256"), (400, "512")])
def test_vllm_takes_only_some_ranks(rank, flag):
    assert serving.verdicts("llama", rank, ends_adapted=False)["vllm"].endswith(f"--max-lora-rank {flag}")


def test_serving_limits():
    assert serving.verdicts("llama", 513, ends_adapted=False)["vllm"].startswith("merge: rank 513")
    assert serving.verdicts("llama", 8, ends_adapted=False)["ollama"].startswith("ok")
    assert serving.verdicts("qwen2", 8, ends_adapted=False)["ollama"].startswith("convert")
    refused = serving.verdicts("llama", 8, ends_adapted=True)
    assert [name for name, verdict in refused.items() if verdict.startswith("merge")] == [
        "vllm",
        "sglang",
        "llama.cpp",
        "ollama",
    ]


def test_a_head_that_peft_would_not_leave_out_is_never_reached_by_a_preset(tmp_path):
    """ChatGLM names no output embeddings, so PEFT's "all-linear" takes its output_layer too."""
    config = {
        "model_type": "chatglm", "architectures": ["ChatGLMModel"], "multi_query_attention": True, "num_layers": 2,
        "multi_query_group_num": 2, "add_qkv_bias": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (choice,) = targets.find(anatomy.inspect(str(tmp_path)), rank=8, preset="all-linear")
    assert choice.modules == 8 and choice.value != "all-linear"


def test_what_peft_refuses_is_an_error(tinyllama):
    config = {"target_modules": ["q_proj"], "layers_pattern": "layers"}
    assert "model.targets.refused" in {each.id for each in targets.own(tinyllama, config, rank=8).findings}


def test_embeddings_that_are_saved_with_the_adapter_are_named_with_their_size(tinyllama):
    found = {
        each.id: each
        for each in targets.own(tinyllama, {"target_modules": ["q_proj", "embed_tokens"]}, rank=8).findings
    }
    assert found["model.targets.embeddings_saved"].evidence["bytes"] == 2 * tinyllama.vocab * tinyllama.hidden


def test_tied_embeddings_that_both_get_the_adapter_are_no_error(tinyllama):
    tied = replace(
        tinyllama,
        tied_embeddings=True,
        skeleton=replace(tinyllama.skeleton, tied={"lm_head.weight": "model.embed_tokens.weight"}),
    )
    both = {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}
    assert "model.targets.tied_head" not in {each.id for each in targets.own(tied, both, rank=8).findings}
    del both["ensure_weight_tying"]
    assert "model.targets.tied_head" in {each.id for each in targets.own(tied, both, rank=8).findings}


def test_the_rank_is_halved_until_a_preset_is_small_enough(tinyllama):
    [least] = [targets.find(tinyllama, rank=1, preset="query-value")[0].share]
    found = targets.smallest(tinyllama, rank=16, most_share=least)
    assert found is not None and found.rank == 1
    assert targets.smallest(tinyllama, rank=16, most_share=least / 2) is None


def test_rank_pattern_counts(tinyllama):
    plain, other = (
        targets.find(tinyllama, rank=8, preset="query-value", rank_pattern=pattern)[0].trainable
        for pattern in (None, {"q_proj": 16})
    )
    layers, width = tinyllama.layers, tinyllama.heads * tinyllama.head_dim
    assert other - plain == layers * 8 * (tinyllama.hidden + width)
