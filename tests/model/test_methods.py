"""The arithmetic of adapter costs: the table's terms, known counts, refusals, and what must hold for any size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftsmith.errors import PeftsmithError
from peftsmith.model import methods
from peftsmith.model.methods_delta import factorise
from peftsmith.model.methods_table import Sum, parse, rows
from peftsmith.model.modules import Module

HALF = methods.Numbers(wide=2, adapter=4, autocast=False, dropout=False)
AUTOCAST = methods.Numbers(wide=2, adapter=4, autocast=True, dropout=False)
CAST = methods.Numbers(wide=2, adapter=2, autocast=False, dropout=False)
FULL = methods.Numbers(wide=4, adapter=4, autocast=False, dropout=False)
FORMATS = (HALF, AUTOCAST, CAST, FULL)
# Options with which a method takes any module whose widths are multiples of 64.
OPTIONS = {
    "C3A": {"block_size": 32}, "FOURIERFT": {"n_frequency": 64}, "WAVEFT": {"n_frequency": 64},
    "VBLORA": {"vector_length": 32}, "SHIRA": {"r": 2}, "TRAINABLE_TOKENS": {"token_indices": [1, 2]},
}  # fmt: skip
SIZES = methods.Sizes(hidden=2048, layers=22, heads=32, kv_heads=4, head_dim=64, vocab=32000, intermediate=5632)
LLAMA_3_8B = methods.Sizes(hidden=4096, layers=32, heads=32, kv_heads=8, head_dim=128, vocab=128256, intermediate=14336)


def linear(inputs: int, outputs: int, name: str = "model.layers.0.self_attn.q_proj", *, bias: bool = False) -> Module:
    shapes = {"weight": (outputs, inputs), **({"bias": (outputs,)} if bias else {})}
    return Module(name, "linear", inputs, outputs, shapes, "Linear")


MODULES = [method for method in methods.METHODS if method not in methods.WHOLE_MODEL]
widths = st.integers(min_value=1, max_value=40).map(lambda number: 64 * number)


def test_terms_are_read_and_summed():
    assert parse("4Ni + 2io - 2No + 5") == Sum({"Ni": 4.0, "io": 2.0, "No": -2.0, "": 5.0})
    assert parse("4Ni + 2io - 2No + 5").line({"i": 3, "o": 7}) == (12.0 - 14.0, 42.0 + 5.0)
    assert parse("- 2Ni + 0.5ir").line({"i": 3, "r": 4}) == (-6.0, 6.0)
    assert parse("0") == Sum({})


@pytest.mark.parametrize("text", ["", "Ni", "4Ni * 2", "4 Ni", "+"])
def test_what_is_no_sum_of_terms_is_refused(text):
    with pytest.raises(ValueError, match="not a sum"):
        parse(text)


def test_every_row_has_every_format():
    for name, row in rows().items():
        assert set(row) == {"half", "autocast", "cast", "full"}, name


def test_lora_keeps_its_own_float32_input_beside_a_half_precision_base():
    cost = methods.cost("LORA", linear(2048, 256), {"r": 16}, HALF)
    assert cost.trainable == 16 * (2048 + 256)
    assert (cost.saved_per_token, cost.saved) == (4 * 2048 + 4 * 16, 0)
    assert cost.shared_input_per_token == 0
    assert cost.temporaries(10) == max(10 * 8 * 256, 10 * (4 * 2048 + 2 * 256))


def test_lora_in_one_format_keeps_the_input_that_others_share():
    for numbers, number in ((CAST, 2), (FULL, 4)):
        cost = methods.cost("LORA", linear(2048, 256), {"r": 16}, numbers)
        assert cost.saved_per_token == number * (2048 + 16)
        assert cost.shared_input_per_token == number * 2048


def test_autocast_keeps_half_precision_copies_of_the_factors():
    cost = methods.cost("LORA", linear(2048, 256), {"r": 16}, AUTOCAST)
    assert (cost.saved_per_token, cost.saved) == (2 * (2048 + 16), 2 * 16 * (2048 + 256))


def test_dropout_keeps_a_copy_and_a_mask_of_a_byte():
    plain = methods.cost("LORA", linear(2048, 256), {"r": 16}, FULL)
    dropped = methods.cost("LORA", linear(2048, 256), {"r": 16}, methods.Numbers(4, 4, False, True))
    assert dropped.saved_per_token == plain.saved_per_token + 2048
    assert dropped.shared_input_per_token == 0


def test_a_rank_pattern_counts_for_the_modules_it_ends():
    options = {"r": 8, "rank_pattern": {"layers.0.self_attn.q_proj": 32, "v_proj": 4}}
    assert methods.cost("LORA", linear(64, 64), options, HALF).trainable == 32 * 128
    assert methods.cost("LORA", linear(64, 64, "m.v_proj"), options, HALF).trainable == 4 * 128
    assert methods.cost("LORA", linear(64, 64, "m.k_proj"), options, HALF).trainable == 8 * 128


def test_alike_layers_are_worked_out_once_but_a_pattern_may_tell_them_apart():
    names = [f"model.layers.{number}.self_attn.q_proj" for number in range(12)]
    modules = {name: linear(64, 64, name) for name in names}
    numbers = methods.Numbers(2, 4, False, False)
    plain = methods.costs("LORA", modules, {"r": 8}, numbers)
    assert {cost.trainable for cost in plain.values()} == {8 * 128}
    one = methods.costs("LORA", modules, {"r": 8, "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2}}, numbers)
    assert [name for name in names if one[name].trainable == 2 * 128] == [names[1]]
    third = methods.costs("IA3", modules, {"target_modules": names, "feedforward_modules": r".*\.3\..*"}, numbers)
    assert third == {
        name: methods.cost("IA3", module, {"feedforward_modules": r".*\.3\..*"}, numbers)
        for name, module in modules.items()
    }
    assert third[names[3]] != third[names[4]]


def test_a_delta_weight_is_kept_whole():
    cost = methods.cost("LOHA", linear(4096, 1024), {}, HALF)
    assert cost.trainable == 2 * 8 * (4096 + 1024)
    assert cost.saved == 4 * 4096 * 1024 + 4


def test_known_adapters_of_whole_models():
    prompts = methods.whole_model("PROMPT_TUNING", LLAMA_3_8B, {"num_virtual_tokens": 20}, HALF, [])
    assert (prompts.trainable, prompts.tokens, prompts.key_tokens) == (20 * 4096, 20, 0)
    prefix = methods.whole_model("PREFIX_TUNING", LLAMA_3_8B, {"num_virtual_tokens": 20}, HALF, [])
    assert (prefix.trainable, prefix.tokens, prefix.key_tokens) == (20 * 2 * 32 * 1024, 0, 20)
    adapted = [linear(4096, 4096, f"layers.{i}.q_proj") for i in range(32)]
    assert methods.trainable("LORA", LLAMA_3_8B, {"r": 8}, adapted) == 32 * 8 * 8192
    assert methods.trainable("VERA", LLAMA_3_8B, {}, adapted) == 32 * (4096 + 256)
    vera = methods.whole_model("VERA", LLAMA_3_8B, {}, HALF, adapted)
    assert (vera.frozen, vera.frozen_bytes) == (256 * 8192, 4 * 256 * 8192)


@pytest.mark.parametrize("method", ["GALORE", "lora", "", "X"])
def test_an_unknown_method_is_refused(method):
    with pytest.raises(PeftsmithError, match="no cost is known"):
        methods.cost(method, linear(64, 64), {}, HALF)
    with pytest.raises(PeftsmithError, match="no cost is known"):
        methods.whole_model(method, SIZES, {}, HALF, [])


@pytest.mark.parametrize(
    ("method", "module", "options", "cause"),
    [
        ("LORA", linear(64, 64), {"r": 0}, "rank"),
        ("LORA", Module("norm", "norm", 64, 0, {"weight": (64,)}), {}, "does not adapt norm"),
        ("LORA", Module("conv", "conv", 8, 8, {"weight": (8, 1, 4)}), {}, "grouped"),
        ("LORA", linear(64, 64), {"kasa_config": {"x": 1}}, "variant"),
        ("LOHA", Module("c_attn", "conv1d", 64, 192, {"weight": (64, 192)}), {}, "does not adapt conv1d"),
        ("C3A", linear(60, 64), {"block_size": 32}, "multiple of 32"),
        ("VBLORA", linear(64, 60), {"vector_length": 32}, "multiple of 32"),
        ("ROAD", linear(64, 60), {}, "multiple of 64"),
        ("ROAD", linear(64, 64), {"variant": "road_3"}, "variant"),
        ("OFT", linear(64, 64), {"r": 4}, "either"),
        ("BOFT", linear(64, 64), {"boft_block_num": 4}, "either"),
        ("PSOFT", linear(16, 64), {}, "exceeds"),
        ("SHIRA", linear(16, 16), {}, "more entries"),
        ("FOURIERFT", linear(16, 16), {}, "frequencies"),
        ("WAVEFT", linear(64, 64), {"proportional_parameters": True}, "proportional"),
        ("LOKR", linear(64, 64), {"use_effective_conv2d": True}, "effective"),
        ("PREFIX_TUNING", linear(64, 64), {}, "does not adapt single modules"),
    ],
)
def test_what_peft_would_refuse_is_refused(method, module, options, cause):
    with pytest.raises(PeftsmithError, match=cause):
        methods.cost(method, module, options, HALF)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("PROMPT_TUNING", {}), ("P_TUNING", {"num_virtual_tokens": 0}), ("ADAPTION_PROMPT", {}), ("XLORA", {}),
        ("ADAPTION_PROMPT", {"adapter_len": 4, "adapter_layers": 99}), ("SHADOW", {"shadow_model": "some/model"}),
        ("CARTRIDGE", {"num_virtual_tokens": 2, "num_frozen_tokens": 3}),
    ],
)  # fmt: skip
def test_a_model_wide_method_without_what_it_needs_is_refused(method, options):
    with pytest.raises(PeftsmithError):
        methods.whole_model(method, SIZES, options, HALF, [])


@given(st.sampled_from(MODULES), widths, widths, st.sampled_from(FORMATS), st.booleans(), st.integers(0, 10**6))
def test_costs_are_never_negative_and_bounds_are_bounds(method, inputs, outputs, numbers, dropout, tokens):
    module = linear(inputs, outputs)
    if method == "TRAINABLE_TOKENS":
        module = Module("embed_tokens", "embedding", inputs, outputs, {"weight": (inputs, outputs)})
    numbers = methods.Numbers(numbers.wide, numbers.adapter, numbers.autocast, dropout)
    cost = methods.cost(method, module, OPTIONS.get(method, {}), numbers)
    figures = (cost.trainable, cost.frozen, cost.frozen_bytes, cost.saved_per_token, cost.saved)
    assert min(figures) >= 0
    assert 0 <= cost.shared_input_per_token <= cost.saved_per_token
    assert 0 <= cost.temporaries(tokens) <= cost.temporary_per_token * tokens + cost.temporary + 1
    # temporaries count beyond the frozen layer's own output and gradient, which grow with the tokens too
    own = numbers.wide * max(inputs, outputs)
    assert cost.temporaries(tokens) <= cost.temporaries(tokens + 1) + own


@given(
    st.sampled_from(["LORA", "LOHA", "HRA", "VERA", "DELORA", "DEFT", "HIRA", "UNILORA"]),
    st.integers(1, 30), widths, widths, st.sampled_from(FORMATS),
)  # fmt: skip
def test_a_higher_rank_never_costs_less(method, half, inputs, outputs, numbers):
    less, more = (
        methods.cost(method, linear(inputs, outputs), {"r": rank}, numbers) for rank in (2 * half, 2 * half + 2)
    )
    assert less.trainable <= more.trainable
    assert less.saved <= more.saved
    assert less.saved_per_token <= more.saved_per_token


@given(st.integers(1, 5000), st.integers(-1, 64).filter(lambda factor: factor))
def test_factors_multiply_to_the_width(width, factor):
    small, large = factorise(width, factor)
    assert small * large == width
    assert small <= large or small == factor
