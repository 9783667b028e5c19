"""Method and quantisation against the base's architecture: what PEFT or bitsandbytes cannot do there is refused."""

from __future__ import annotations

import pytest

from peftsmith.project import fitness
from tests.project.plans import make

FOUR, EIGHT = {"bits": 4}, {"bits": 8}
NORMS = ".*norm"
PREFIX = {"peft_type": "PREFIX_TUNING", "config": {"num_virtual_tokens": 4}}
DORA = {"rank": 4, "config": {"use_dora": True}, "quantization": EIGHT}


def refused(task, config, method, precision="fp32"):
    data = {"data__format": "question_answering"} if task == "question_answering" else {}
    data = {"data__format": "seq2seq"} if task == "seq2seq" else data
    wanted = make(task, method=method, training__precision=precision, **data)
    return [each.id for each in fitness.judge(wanted, config) if each.severity == "error"]


@pytest.mark.parametrize(
    ("model_type", "method", "precision", "expected"),
    [
        ("gpt2", {"peft_type": "LOHA", "rank": 4}, "fp32", ["plan.method.architecture"]),
        ("gpt2", {"peft_type": "OSF"}, "fp32", ["plan.method.architecture"]),
        ("gpt2", {"peft_type": "LILY", "rank": 4}, "fp32", ["plan.method.architecture"]),
        # Quantised, GPT-2's layers are linear ones; what merges has to merge into the base as it is published.
        ("gpt2", {"peft_type": "LILY", "rank": 4, "quantization": FOUR}, "fp32", []),
        ("gpt2", {"peft_type": "MISS", "rank": 4, "quantization": FOUR}, "fp32", ["plan.method.architecture"]),
        ("gpt2", {"peft_type": "VERA", "rank": 4}, "fp32", []),
        ("qwen2", {"peft_type": "C3A", "config": {"block_size": 16}, "quantization": FOUR}, "bf16",
         ["plan.method.architecture"]),
        ("llama", {"peft_type": "C3A", "config": {"block_size": 16}, "quantization": FOUR}, "bf16", []),
        ("gpt_neox", {"peft_type": "GRALORA", "rank": 4, "quantization": FOUR}, "bf16", ["plan.method.architecture"]),
        ("opt", {"peft_type": "ROAD", "quantization": FOUR}, "bf16", ["plan.method.architecture"]),
        ("opt", {"peft_type": "ROAD", "quantization": FOUR}, "fp32", []),
        ("lfm2", {"peft_type": "ROAD", "quantization": FOUR}, "bf16", ["plan.method.architecture"]),
        ("llama", {"peft_type": "ROAD", "quantization": FOUR}, "bf16", []),
        ("llama", {"peft_type": "SHIRA", "rank": 4, "quantization": EIGHT}, "fp32", ["plan.method.quantised"]),
        ("mamba", {"peft_type": "P_TUNING", "config": {"num_virtual_tokens": 4}}, "fp32", ["plan.method.architecture"]),
        ("falcon_h1", {"peft_type": "SHADOW"}, "fp32", ["plan.method.architecture"]),
        ("falcon_h1", {"peft_type": "LN_TUNING", "target_modules": NORMS}, "fp32", ["plan.method.targets"]),
        ("falcon_h1", {"peft_type": "LN_TUNING", "target_modules": ["input_layernorm"]}, "fp32", []),
    ],
)  # fmt: skip
def test_what_a_method_cannot_do_with_an_architecture(model_type, method, precision, expected):
    assert refused("chat", {"model_type": model_type}, method, precision) == expected


def test_a_prefix_needs_heads_that_share_the_width():
    sizes = {"model_type": "t5", "d_model": 512, "num_heads": 8, "d_kv": 64}
    assert refused("seq2seq", sizes, PREFIX) == []
    assert refused("seq2seq", {**sizes, "num_heads": 6}, PREFIX) == ["plan.method.architecture"]
    assert refused("seq2seq", {"model_type": "umt5"}, PREFIX) == ["plan.method.architecture"]
    assert refused("question_answering", sizes, PREFIX) == ["plan.method.architecture"]
    assert refused("question_answering", {"model_type": "bert"}, PREFIX) == []


@pytest.mark.parametrize(
    ("kind", "bits", "expected"), [("cpu", EIGHT, ["plan.method.option"]), ("cpu", FOUR, []), ("cuda", EIGHT, [])]
)
def test_dora_on_eight_bits_is_for_a_gpu(kind, bits, expected):
    wanted = make("chat", method={**DORA, "quantization": bits})
    assert [each.id for each in fitness.on_device(wanted, {"kind": kind, "capability": None})] == expected
