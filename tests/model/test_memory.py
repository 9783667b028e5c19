"""Memory: terms that can be checked by hand, order, limits, what fits."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.model import anatomy, answers, fits, geometry, memory, peak, weights
from peftsmith.model.request import Request, with_details
from tests.model.test_anatomy import LLAMA_3_2_3B

GIB = 1 << 30


def described(folder, **changes):
    files.set_roots(["/"])
    (folder / "config.json").write_text(json.dumps({**LLAMA_3_2_3B, **changes}), encoding="utf-8")
    return anatomy.inspect(str(folder))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return described(tmp_path_factory.mktemp("llama"))


def test_weights_adapter_and_optimiser_by_hand(llama):
    found = memory.estimate(llama, memory.Request(rank=16, targets="query-value"))
    trainable = 28 * 16 * ((3072 + 3072) + (3072 + 1024))
    assert found.trainable == trainable
    assert found.terms["weights"] == 2 * 3_212_749_824
    assert found.terms["adapter"] == 4 * trainable and found.terms["optimizer"] == 8 * trainable
    assert "gradients" not in found.terms  # zeroed before the forward pass, unless they are accumulated
    both = memory.estimate(llama, memory.Request(rank=16, targets="query-value", accumulates=True))
    assert both.terms["gradients"] == 4 * trainable
    assert sum(found.terms.values()) == pytest.approx(found.allocated.likely, abs=2)


def test_four_bit_weights_by_hand(llama):
    found = memory.estimate(llama, memory.Request(method="qlora"))
    linear = 28 * (2 * 3072 * 3072 + 2 * 3072 * 1024 + 3 * 3072 * 8192)
    assert found.terms["weights"] == pytest.approx(
        linear * (0.5 + 1 / 64 + 1 / 4096) + 2 * (3_212_749_824 - linear), rel=1e-6
    )
    assert found.terms["adapter"] == 2 * found.trainable


def test_a_published_measurement(llama):
    """PEFT's MetaMathQA benchmark, LoRA r=32 on q and v of Llama-3.2-3B: 20.72 GiB reserved at 4 x 712 tokens."""
    request = memory.Request(
        rank=32, targets="query-value", batch_size=4, sequence_length=712, gradient_checkpointing=False, loss="stock",
        autocast=False, optimizer="adamw_torch",
    )  # fmt: skip
    found = memory.estimate(llama, request)
    assert found.reserved.likely / GIB == pytest.approx(20.72, rel=0.03)
    assert found.reserved.low < 20.72 * GIB < found.reserved.high


def test_order_of_choices(llama):
    def needs(**changes):
        return memory.estimate(
            llama, replace(memory.Request(batch_size=4, sequence_length=2048), **changes)
        ).device.likely

    assert needs(method="qlora") < needs() < needs(gradient_checkpointing=False)
    assert needs(loss="trl_chunked") < needs(loss="stock")
    assert needs(optimizer="paged_adamw_8bit") < needs(optimizer="adamw_8bit") < needs()
    assert needs(precision="bf16") < needs(precision="fp32")
    assert needs(targets="query-value") < needs(targets="all-linear", rank=64)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 64), st.integers(8, 8192), st.sampled_from(["lora", "qlora"]),
    st.sampled_from(["fp32", "bf16", "fp16"]), st.booleans(), st.sampled_from(["cuda", "cpu"]),
    st.sampled_from(["stock", "trl_chunked"]),
)  # fmt: skip
def test_more_tokens_never_take_less_and_ranges_are_in_order(
    llama, batch, length, method, precision, again, device, loss
):
    request = memory.Request(
        method=method, batch_size=batch, sequence_length=length, precision=precision, gradient_checkpointing=again,
        device=device, loss=loss,
    )  # fmt: skip
    found = memory.estimate(llama, request)
    for each in (found.allocated, found.reserved, found.device):
        assert 0 < each.low <= each.likely <= each.high
    assert found.allocated.likely <= found.reserved.likely <= found.device.likely
    longer = memory.estimate(llama, replace(request, sequence_length=length + 8))
    assert longer.device.high >= found.device.high
    assert json.loads(json.dumps(found.to_json()))["trainable"] == found.trainable


def test_what_fits_is_the_largest_that_fits(llama):
    request = memory.Request(batch_size=2, sequence_length=1024)
    fitting = fits.what_fits(llama, request, 24)
    high = [
        memory.estimate(llama, replace(request, batch_size=fitting["largest_batch"] * n)).device.high / GIB
        for n in (1, 2)
    ]
    assert high[0] <= 24 < high[1]
    high = [
        memory.estimate(llama, replace(request, sequence_length=fitting["longest_sequence"] + n)).device.high / GIB
        for n in (0, 8)
    ]
    assert high[0] <= 24 < high[1] and fitting["fits"] and fitting["changes"] == []


def test_changes_come_cheapest_first_and_end_where_it_fits(llama):
    request = memory.Request(batch_size=16, sequence_length=2048, gradient_checkpointing=False)
    fitting = fits.what_fits(llama, request, 8)
    assert not fitting["fits"]
    assert [next(iter(each["set"])) for each in fitting["changes"]][:3] == [
        "gradient_checkpointing",
        "method",
        "optimizer",
    ]
    assert [each["fits"] for each in fitting["changes"]] == [False] * (len(fitting["changes"]) - 1) + [True]


def test_nothing_fits_into_nothing(llama):
    fitting = fits.what_fits(llama, memory.Request(), 0.5)
    assert fitting["largest_batch"] is None and fitting["longest_sequence"] is None
    assert not any(each["fits"] for each in fitting["changes"])


@pytest.mark.parametrize("gib", [0, -1, float("inf"), float("nan")])
def test_impossible_memory(llama, gib):
    with pytest.raises(PeftsmithError, match="GiB"):
        fits.what_fits(llama, memory.Request(), gib)


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 0}, {"rank": -3}, {"batch_size": 0}, {"batch_size": True}, {"sequence_length": 0},
        {"precision": "int3"}, {"optimizer": "lion"}, {"method": "dora"}, {"loss": "?"}, {"device": "tpu"},
        {"targets": ["W_pack"]},
        {"sequence_length": 1 << 40},
    ],
)  # fmt: skip
def test_impossible_requests(llama, changes):
    with pytest.raises(PeftsmithError) as caught:
        memory.estimate(llama, replace(memory.Request(), **changes))
    assert caught.value.next_step


@pytest.mark.parametrize("changes", [{"model_type": "own"}, {"architectures": ["LlamaForDreaming"]}])
def test_no_modules_no_guess(tmp_path, changes):
    with pytest.raises(PeftsmithError, match="would be a guess"):
        memory.estimate(described(tmp_path, **changes), memory.Request())


def test_what_was_not_verified_is_unknown(tmp_path, llama):
    gemma = described(tmp_path, model_type="gemma2", architectures=["Gemma2ForCausalLM"])
    found = memory.estimate(gemma, memory.Request(sequence_length=200_000))
    assert {each.id: each.severity for each in found.findings} == {
        "model.memory.unverified": "unknown",
        "model.memory.beyond_positions": "warning",
    }
    assert memory.estimate(llama, memory.Request()).findings == []


@pytest.mark.training
@pytest.mark.parametrize(
    ("batch", "length", "checkpointing", "modules", "measured", "within"),
    [
        (2, 64, False, "all-linear", 1584, 0.07),
        (8, 64, False, "all-linear", 2849, 0.07),
        (8, 64, True, "all-linear", 2151, 0.07),
        (2, 256, False, "query-value", 2292, 0.15),
    ],
)
def test_measured_on_the_cpu(smollm2, batch, length, checkpointing, modules, measured, within):
    """Peak resident sets in MiB of two TRL steps (fp32, rank 16, rows of one length, two threads)."""
    request = memory.Request(
        targets=modules,
        batch_size=batch,
        sequence_length=length,
        precision="fp32",
        gradient_checkpointing=checkpointing,
        device="cpu",
    )
    found = memory.estimate(anatomy.inspect(str(smollm2)), request).device
    assert found.likely / (1 << 20) == pytest.approx(measured, rel=within)
    assert found.low < measured * (1 << 20) < found.high


def test_layer_norm_under_autocast_carries_float32_through_bitsandbytes(tmp_path, llama):
    """torch's layer_norm answers in float32 under autocast, and Linear4bit in its input's format; RMS norms do not."""
    code = described(
        tmp_path, architectures=["GPTBigCodeForCausalLM"], model_type="gpt_bigcode", n_embd=2048, n_layer=24,
        n_head=16, n_inner=8192, n_positions=2048, vocab_size=49280, activation_function="gelu_pytorch_tanh",
    )  # fmt: skip
    tokens = 4 * 2048
    request = memory.Request(
        method="qlora", targets=["c_attn"], batch_size=4, sequence_length=2048, loss="stock_narrow", attention="flash"
    )
    found = memory.estimate(code, request)
    assert found.terms["activations"] == 4 * tokens * 2048 * 24
    assert found.terms["loss"] == 16 * 49280 * tokens
    plain = memory.estimate(code, replace(request, method="lora"))
    assert plain.terms["activations"] == 2 * tokens * 2048 * 24
    alone = memory.estimate(code, replace(request, autocast=False))
    assert alone.terms["activations"] == 2 * tokens * 2048 * 24 and alone.terms["loss"] == 8 * 49280 * tokens
    mean_square = memory.estimate(
        llama, memory.Request(method="qlora", batch_size=4, sequence_length=2048, loss="stock")
    )
    assert mean_square.terms["activations"] == 2 * tokens * 3072 * 28


def test_a_recomputed_block_by_hand(llama):
    """Liger's loss holds no logits, so that a block's backward pass is the highest moment: what q and v adapters,
    norms, attention and MLP keep, two gradients beside that of the product, the block's output and its gradient."""
    request = memory.Request(
        targets="query-value", rank=8, batch_size=1, sequence_length=4096, loss="liger", attention="flash",
        autocast=False, padded=False, optimizer="adamw_torch",
    )  # fmt: skip
    found = memory.estimate(llama, request)
    norms, attention, mlp = 2 * 4 * 3072, 2 * (2 * 3072 + 2 * 1024) + 4 * 24, 3 * 2 * 8192
    adapters = 2 * (4 * 3072 + 4 * 8)
    gradients, stream = 3 * 2 * 8192 + 2 * 3072, 2 * 3072
    assert found.moment == "backward"
    assert found.terms["recomputed_block"] == 4096 * (norms + attention + mlp + adapters + gradients + stream)
    full = peak.passes(memory.job_of(llama, replace(request, method="full", optimizer="sgd")))
    assert [each.temporary for each in full] == [4096 * (2 * 2 * 8192 + 2 * 3072)]  # the trained base's product is gone


def test_what_config_json_leaves_out_is_the_class_default():
    def of(**config):
        return geometry.geometry(config, heads=12, kv_heads=12, head_dim=64)

    assert of(model_type="gpt2").activation == "gelu_new" and of(model_type="gpt2").dropout
    assert not of(model_type="gpt2", resid_pdrop=0.0).dropout and not of(model_type="gpt2").rotary
    assert of(model_type="gpt2", activation_function="relu").activation == "relu"
    assert of(model_type="phi3").rotary and not of(model_type="falcon", alibi=True).rotary


def test_full_fine_tuning_reserves_its_logits_beside_the_step(llama):
    request = memory.Request(
        method="full", batch_size=1, sequence_length=2048, loss="stock", optimizer="adamw_torch", attention="flash"
    )
    found = memory.estimate(llama, request)
    base = 2 * 3_212_749_824
    logits = 14 * 128256 * 2048
    beside = 5 * base + logits + memory.CUBLAS_WORKSPACE
    assert found.moment == "step" and found.terms["optimizer"] == 2 * base
    assert found.reserved.likely == pytest.approx(beside, rel=1e-6)
    full = memory.estimate(llama, replace(request, device_bytes=beside))
    assert found.allocated == full.allocated and full.allocated.likely <= full.reserved.likely < beside


def test_tokens_of_a_tied_embedding_keep_a_copy_of_the_head(llama):
    """PEFT's MetaMathQA benchmark, 2 tokens of Llama-3.2-3B: 19.5 GiB reserved at 4 x 712 tokens."""
    request = memory.Request(
        method="trainable_tokens", targets=["embed_tokens"], options={"token_indices": [0, 1]}, batch_size=4,
        sequence_length=712, gradient_checkpointing=False, loss="stock", autocast=False, optimizer="adamw_torch",
    )  # fmt: skip
    found = memory.estimate(llama, request)
    assert found.trainable == 2 * 3072 and found.terms["method"] == 2 * 128256 * 3072
    assert found.reserved.likely / GIB == pytest.approx(19.5, rel=0.01)


def test_methods_that_are_not_made_for_linear_layers_find_their_modules(llama):
    norms = memory.estimate(llama, memory.Request(method="ln_tuning"))
    assert norms.trainable == (2 * 28 + 1) * 3072
    named = memory.estimate(llama, memory.Request(method="ln_tuning", targets=["input_layernorm"]))
    assert named.trainable == 28 * 3072
    with pytest.raises(PeftsmithError, match="match nothing"):
        memory.estimate(llama, memory.Request(method="ln_tuning", targets=["ln_f"]))
    tokens = memory.Request(method="trainable_tokens", options={"token_indices": [5]})
    assert memory.estimate(llama, tokens).trainable == 3072


def test_oft_takes_its_rank_or_its_block_size(llama):
    def trainable(**options):
        request = memory.Request(method="oft", rank=32, targets="query-value", options=options)
        return memory.estimate(llama, request).trainable

    assert trainable() == 28 * 2 * 32 * (96 * 95 // 2)  # 32 blocks of 3072 / 32 inputs
    assert trainable(oft_block_size=32) == 28 * 2 * 96 * (32 * 31 // 2)


def test_lora_fa_trains_b_alone_and_keeps_no_input(llama):
    request = memory.Request(
        rank=32, targets="query-value", batch_size=4, sequence_length=712, gradient_checkpointing=False, autocast=False
    )
    usual, frozen = (memory.estimate(llama, replace(request, optimizer=name)) for name in ("adamw_torch", "lora_fa"))
    assert frozen.trainable == 28 * 32 * (3072 + 1024)
    assert usual.terms["activations"] - frozen.terms["activations"] == 4 * 712 * 28 * 2 * 4 * 3072
    assert frozen.terms["adapter"] == usual.terms["adapter"]


@pytest.mark.parametrize(
    ("stored", "each", "besides"),
    [("hqq4", 0.5625, 0), ("hqq2", 0.3125, 0), ("eetq8", 1.0, 2), ("aqlm2", 0.25, 2), ("gptq3", 0.375, None)],
)
def test_other_formats_by_hand(llama, stored, each, besides):
    shapes = [(3072, 3072)] * 2 + [(3072, 1024)] * 2 + [(3072, 8192)] * 2 + [(8192, 3072)]
    linear = 28 * sum(i * o for i, o in shapes)
    held = each * linear + 2 * (3_212_749_824 - linear)
    if besides is None:  # groups of 128 with a 16-bit scale and a 3-bit zero point; an index for each input
        held += 28 * sum(2.375 * i // 128 * o + 4 * i for i, o in shapes)
    else:
        books = 65536 * 8 * 2 * 7 * 28 if stored == "aqlm2" else 0
        held += besides * 28 * sum(o for _, o in shapes) + books
    found = memory.estimate(llama, memory.Request(quantization=stored))
    assert found.terms["weights"] == pytest.approx(held, rel=1e-4)


def test_a_stored_format_without_a_known_size_is_refused():
    with pytest.raises(PeftsmithError, match="not known"):
        weights.stored_format("spqr")
    assert weights.stored_format("hqq") == "hqq4" and weights.stored_format(None) is None


def test_a_405b_config_takes_milliseconds(tmp_path):
    import time

    huge = {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128}
    body = described(tmp_path, **huge, tie_word_embeddings=False)
    assert body.parameters == 405_853_388_800
    started = time.process_time()
    memory.estimate(body, memory.Request(method="qlora"))
    assert time.process_time() - started < 0.5


def test_details_reach_the_request_or_the_methods_config():
    plain = Request()
    packed = with_details(plain, {"packing": True, "kbit_prepared": True, "use_dora": True})
    assert (packed.flattened, packed.kbit_prepared, dict(packed.options)) == (True, True, {"use_dora": True})
    assert with_details(plain, {}) == plain


@pytest.mark.parametrize(("name", "value"), [("packing", 1), ("autocast", "yes"), ("labels", 2.0), ("labels", True)])
def test_details_of_the_wrong_type_are_refused(name, value):
    with pytest.raises(PeftsmithError, match=name):
        with_details(Request(), {name: value})


def test_what_does_not_fit_one_device_is_shared_out_before_rows_are_cut(llama):
    found = fits.what_fits(llama, memory.Request(method="qlora", sequence_length=4096), 3)["changes"]
    wanted = [next(iter(each["set"])) for each in found]
    assert found[-1]["fits"] and "gpus" in wanted
    assert "sequence_length" not in wanted[: wanted.index("gpus")]


def test_experts_that_bitsandbytes_leaves_whole_are_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
        "num_local_experts": 4,
    }), encoding="utf-8")  # fmt: skip
    mixture = anatomy.inspect(str(tmp_path))

    def ids(method):
        answer = answers.memory_answer(
            mixture, Request(method=method), gib=None, gpu=None, alternatives=False, precise=False, measured_gib=None,
            project=tmp_path,
        )  # fmt: skip
        return {each.id: each for each in answer.findings}

    assert "model.quantization.experts_left" not in ids("lora")
    found = ids("qlora")["model.quantization.experts_left"]
    assert found.evidence["gib"] == round(2 * 2 * 4 * 3 * 64 * 128 / GIB, 3)
