"""Our parameter counts and the table of bytes against real PEFT adapters: one module each, and a tiny Llama."""

from __future__ import annotations

import json
import random
import subprocess
from dataclasses import asdict
from math import ceil
from pathlib import Path

import pytest

from peftsmith.model import methods
from peftsmith.model.methods_base import Options
from peftsmith.model.methods_defaults import DEFAULTS
from peftsmith.model.methods_table import rows
from peftsmith.model.modules import Module

pytestmark = pytest.mark.training

FORMATS = {"half": (2, 4, False), "autocast": (2, 4, True), "cast": (2, 2, False), "full": (4, 4, False)}
SIZES = methods.Sizes(hidden=64, layers=3, heads=4, kv_heads=2, head_dim=24, vocab=208, intermediate=96)
# Variants of each method that take another row of the table or count otherwise; sizes are drawn to suit their blocks.
VARIANTS = [
    ("LORA", {"r": 6}), ("LORA", {"r": 4, "lora_bias": True}), ("LORA", {"r": 4, "use_dora": True}),
    ("LORA", {"r": 4, "use_rslora": True, "init_lora_weights": "pissa"}), ("ADALORA", {"init_r": 5, "total_step": 9}),
    ("LOHA", {"r": 3}), ("LOKR", {"r": 3, "decompose_factor": 4}), ("LOKR", {"r": 200}),
    ("LOKR", {"r": 2, "decompose_both": True}), ("OFT", {"oft_block_size": 8}), ("OFT", {"r": 4, "oft_block_size": 0}),
    ("OFT", {"oft_block_size": 8, "coft": True}), ("OFT", {"oft_block_size": 16, "block_share": True}),
    ("OFT", {"oft_block_size": 8, "use_cayley_neumann": False}), ("OFT", {"oft_block_size": 7}),
    ("OFT", {"oft_block_size": 8, "use_cayley_neumann": False, "block_share": True}),
    ("BOFT", {"boft_block_size": 8}), ("BOFT", {"boft_block_size": 0, "boft_block_num": 4}), ("HRA", {"r": 4}),
    ("HRA", {"r": 4, "apply_GS": True}), ("FOURIERFT", {"n_frequency": 500}), ("WAVEFT", {"n_frequency": 500}),
    ("C3A", {"block_size": 16}), ("SHIRA", {"r": 5}), ("HIRA", {"r": 5}), ("RANDLORA", {"r": 7}),
    ("DEFT", {"r": 5}), ("DEFT", {"r": 5, "decomposition_method": "qr"}), ("DEFT", {"r": 5, "para": True}),
    ("DEFT", {"r": 5, "para": True, "decomposition_method": "qr"}), ("PSOFT", {"r": 12}),
    ("PSOFT", {"r": 12, "use_cayley_neumann": True}), ("PVERA", {"r": 20}), ("VERA", {"r": 20}),
    ("TINYLORA", {"r": 3, "u": 16}), ("UNILORA", {"r": 3, "theta_d_length": 100}), ("DELORA", {"r": 5}),
    ("OSF", {"effective_rank": 20}), ("OSF", {}), ("MISS", {"r": 16}), ("MISS", {"r": 7}),
    ("MISS", {"r": 16, "init_weights": "bat"}), ("MISS", {"r": 16, "init_weights": "mini", "mini_r": 8}),
    ("GRALORA", {"r": 8}), ("GRALORA", {"r": 8, "hybrid_r": 4}), ("ROAD", {"group_size": 16}),
    ("ROAD", {"group_size": 16, "variant": "road_2"}), ("ROAD", {"group_size": 16, "variant": "road_4"}),
    ("LILY", {"r": 5, "num_B": 3}), ("ADAMSS", {"r": 30, "num_subspaces": 4}), ("PEANUT", {"r": 5}),
    ("PEANUT", {"r": 5, "depth": 2}), ("BEFT", {}), ("SUPERTUNING", {"sparsity": 0.9}),
    ("SUPERTUNING", {"sparsity": 0.9, "r": 4, "lora_alpha": 8}), ("VBLORA", {"vector_length": 16, "num_vectors": 32}),
    ("IA3", {"feedforward_modules": []}), ("IA3", {"feedforward_modules": ["proj"]}), ("GLORA", {"r": 5}),
    ("GLORA", {"config_A_B": "vector"}), ("GLORA", {"config_A_B": "constant"}), ("GLORA", {"config_A_B": "none"}),
    ("FROD", {"sparse_rate": 0.05}), ("LN_TUNING", {}), ("LORA", {"r": 6, "frozen_a": True}),
]  # fmt: skip
# Other kinds of modules and what a bias changes: parameters only.
KINDS = [
    ("LORA", {"r": 4}, "embedding", False), ("LORA", {"r": 4}, "conv1d", True), ("LORA", {"r": 4}, "conv", True),
    ("LORA", {"r": 4, "use_dora": True}, "embedding", False), ("LORA", {"r": 4, "bias": "lora_only"}, "linear", True),
    ("LORA", {"r": 4, "target_parameters": ["proj.weight"]}, "experts", False), ("HIRA", {"r": 4}, "embedding", False),
    ("HIRA", {"r": 4}, "conv", True), ("LOHA", {"r": 4}, "conv", True), ("LOKR", {"r": 4}, "conv", True),
    ("OFT", {"oft_block_size": 8}, "embedding", False), ("OFT", {"oft_block_size": 9}, "conv", True),
    ("BOFT", {"boft_block_size": 4, "bias": "boft_only"}, "linear", True), ("BOFT", {}, "conv", True),
    ("HRA", {"r": 4}, "conv", True), ("IA3", {"feedforward_modules": []}, "conv", True),
    ("VERA", {"r": 8}, "conv1d", True),
    ("ADALORA", {"init_r": 4, "total_step": 9}, "conv", True), ("TINYLORA", {}, "embedding", False),
    ("TRAINABLE_TOKENS", {"token_indices": [1, 5, 7]}, "embedding", False), ("LN_TUNING", {}, "norm", False),
    ("GLORA", {"r": 4, "config_D_E": "vector"}, "linear", True), ("ADAMSS", {"r": 30}, "linear", True),
    ("POLY", {"r": 4, "n_splits": 2, "n_tasks": 3}, "linear", False), ("OSF", {"effective_rank": 0.25}, "linear", True),
]  # fmt: skip
# Methods whose adapter dropout changes what is kept; the option's name and variants.
DROPOUT = [
    ("LORA", {"r": 4, "lora_dropout": 0.1}), ("LORA", {"r": 4, "lora_bias": True, "lora_dropout": 0.1}),
    ("LORA", {"r": 4, "use_dora": True, "lora_dropout": 0.1}), ("VERA", {"r": 16, "vera_dropout": 0.1}),
    ("ADALORA", {"init_r": 4, "total_step": 9, "lora_dropout": 0.1}), ("PVERA", {"r": 16, "pvera_dropout": 0.1}),
    ("RANDLORA", {"r": 8, "randlora_dropout": 0.1}), ("TINYLORA", {"tinylora_dropout": 0.1}),
    ("UNILORA", {"unilora_dropout": 0.1}), ("VBLORA", {"vector_length": 16, "vblora_dropout": 0.1}),
    ("GRALORA", {"r": 8, "gralora_dropout": 0.1}), ("GRALORA", {"r": 8, "hybrid_r": 4, "gralora_dropout": 0.1}),
    ("DELORA", {"module_dropout": 0.1}), ("HIRA", {"r": 4, "hira_dropout": 0.1}), ("FROD", {"frod_dropout": 0.1}),
    ("MISS", {"r": 16, "miss_dropout": 0.1}), ("MISS", {"r": 7, "miss_dropout": 0.1}),
    ("MISS", {"r": 16, "init_weights": "mini", "mini_r": 8, "miss_dropout": 0.1}), ("DEFT", {"deft_dropout": 0.1}),
    ("DEFT", {"decomposition_method": "qr", "deft_dropout": 0.1}), ("DEFT", {"para": True, "deft_dropout": 0.1}),
    ("PSOFT", {"r": 8, "psoft_dropout": 0.1}), ("PSOFT", {"r": 8, "use_cayley_neumann": True, "psoft_dropout": 0.1}),
    ("SUPERTUNING", {"sparsity": 0.9, "r": 4, "lora_alpha": 8, "lora_dropout": 0.1}),
    ("LORA", {"r": 4, "lora_dropout": 0.1, "frozen_a": True}),
]  # fmt: skip
ATTENTION = ["q_proj", "v_proj"]
MODELS = [
    ("PROMPT_TUNING", {"num_virtual_tokens": 7}), ("P_TUNING", {"num_virtual_tokens": 7}),
    ("P_TUNING", {"num_virtual_tokens": 7, "encoder_hidden_size": 40}),
    ("P_TUNING", {"num_virtual_tokens": 7, "encoder_hidden_size": 40, "encoder_reparameterization_type": "LSTM"}),
    ("MULTITASK_PROMPT_TUNING", {"num_virtual_tokens": 7, "num_tasks": 3, "num_ranks": 2}),
    ("PREFIX_TUNING", {"num_virtual_tokens": 7}), ("CARTRIDGE", {"num_virtual_tokens": 7, "num_frozen_tokens": 2}),
    ("PREFIX_TUNING", {"num_virtual_tokens": 7, "prefix_projection": True, "encoder_hidden_size": 40}),
    ("CPT", {"num_virtual_tokens": 2, "cpt_token_ids": [1, 2], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 1]}),
    ("ADAPTION_PROMPT", {"adapter_len": 5, "adapter_layers": 2}), ("SHADOW", {}),
    ("SHADOW", {"shadow_hidden_size": 32, "r": 4}),
    ("SHADOW", {"share_embeddings": False, "shadow_num_hidden_layers": 2}),
    ("LILY", {"r": 8, "stride_A": 2, "target_modules": ATTENTION}),
    ("TINYLORA", {"weight_tying": 0.5, "target_modules": ATTENTION}),
    ("VBLORA", {"vector_length": 8, "num_vectors": 32, "target_modules": ATTENTION}),
    ("UNILORA", {"target_modules": ATTENTION}), ("VERA", {"r": 16, "target_modules": ATTENTION}),
    ("PVERA", {"r": 16, "target_modules": ATTENTION}), ("RANDLORA", {"r": 16, "target_modules": ATTENTION}),
    ("FROD", {"target_modules": ATTENTION}), ("POLY", {"target_modules": ATTENTION, "n_tasks": 3}),
    ("LORA", {"target_modules": ATTENTION, "r": 3, "rank_pattern": {"layers.1.self_attn.q_proj": 9}}),
]  # fmt: skip


def numbers(case: dict) -> methods.Numbers:
    return methods.Numbers(*FORMATS[case["format"]], dropout=any("dropout" in name for name in case["options"]))


def module(case: dict) -> Module:
    i, o = case["inputs"], case["outputs"]
    shapes = {
        "linear": {"weight": (o, i)}, "conv1d": {"weight": (i, o)}, "embedding": {"weight": (i, o)},
        "conv": {"weight": (o, i, 3, 3)}, "norm": {"weight": (i,)}, "experts": {"weight": (2, o, i)},
        "layernorm": {"weight": (i,), "bias": (i,)},
    }[case["kind"]]  # fmt: skip
    if case["bias"]:
        shapes["bias"] = (o,)
    kind = "norm" if "norm" in case["kind"] else case["kind"]
    return Module("proj", kind, i, o, shapes, "LlamaRMSNorm" if case["kind"] == "norm" else "")


def cases() -> list[dict]:
    chance = random.Random(20)
    drawn = [
        {"method": method, "options": options, "kind": "linear", "bias": False, "format": name,
         "inputs": 16 * chance.randrange(4, 16), "outputs": 16 * chance.randrange(8, 16), "tokens": tokens}
        for method, options in VARIANTS + DROPOUT
        for name in FORMATS
        for tokens in (2 * chance.randrange(5, 20), 2 * chance.randrange(150, 300))
    ]  # fmt: skip
    return drawn + [
        {"method": method, "options": options, "kind": kind, "bias": bias, "format": "full",
         "inputs": 64, "outputs": 96, "tokens": 0}
        for method, options, kind, bias in KINDS
    ] + [
        {"method": method, "options": options, "kind": kind, "bias": False, "format": name,
         "inputs": 96, "outputs": 64, "tokens": 40}
        for method, options, kind in (
            ("LORA", {"r": 4}, "embedding"), ("HIRA", {"r": 4}, "embedding"),
            ("TRAINABLE_TOKENS", {"token_indices": [1, 5, 7]}, "embedding"),
            ("LORA", {"r": 4, "target_parameters": ["proj.weight"]}, "experts"), ("LN_TUNING", {}, "norm"),
            ("LN_TUNING", {}, "layernorm"),
        )
        for name in FORMATS
    ]  # fmt: skip


def tiny_llama() -> list[Module]:
    out = {"q_proj": 96, "v_proj": 48}
    return [
        Module(f"model.layers.{layer}.self_attn.{leaf}", "linear", 64, out[leaf], {"weight": (out[leaf], 64)})
        for layer in range(3)
        for leaf in ATTENTION
    ]


SUMS = [
    {"method": method, "options": {**options, "target_modules": ATTENTION}, "format": name}
    for method, options in (
        ("LORA", {"r": 4}), ("VERA", {"r": 16}), ("LOHA", {"r": 4}), ("OFT", {"oft_block_size": 8}),
        ("IA3", {"feedforward_modules": []}), ("MISS", {"r": 8}), ("SHIRA", {"r": 3}), ("DELORA", {"r": 4}),
    )
    for name in ("half", "full")
]  # fmt: skip
SUM_TOKENS = 2 * 24


@pytest.fixture(scope="module")
def real(training_python):
    asked = {
        "defaults": {method: list(options) for method, options in DEFAULTS.items()},
        "modules": cases(),
        "models": [{"method": method, "options": options} for method, options in MODELS],
        "sums": SUMS,
        "sizes": asdict(SIZES),
    }
    script = Path(__file__).with_name("with_methods.py")
    done = subprocess.run(
        [training_python, str(script)], input=json.dumps(asked), capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_type_that_peft_has_is_priced(real):
    assert set(methods.METHODS) == set(real["types"])


def test_defaults_are_pefts(real):
    ours = {method: dict(options) for method, options in DEFAULTS.items()}
    assert json.loads(json.dumps(ours)) == real["defaults"]


def test_trainable_parameters_of_a_module(real):
    wrong = []
    for case, found in zip(cases(), real["modules"], strict=True):
        wrapped = module(case)
        cost = methods.cost(case["method"], wrapped, case["options"], numbers(case))
        once = methods.whole_model(case["method"], SIZES, case["options"], numbers(case), [wrapped])
        ours = cost.trainable + once.trainable
        if ours != found["trainable"]:
            wrong.append((case, ours, found["trainable"]))
    assert not wrong


def test_trainable_parameters_of_a_model(real):
    ours = [methods.trainable(method, SIZES, options, tiny_llama()) for method, options in MODELS]
    assert ours == [found["trainable"] for found in real["models"]]


def test_what_autograd_keeps(real):
    wrong = []
    for case, found in zip(cases(), real["modules"], strict=True):
        if not case["tokens"]:
            continue
        cost = methods.cost(case["method"], module(case), case["options"], numbers(case))
        ours = cost.saved_per_token * case["tokens"] + cost.saved
        theirs = found["saved"]
        if abs(ours - theirs) > 0.02 * theirs + 16:
            wrong.append((case, ours, theirs))
        # experts get routed tokens, which no other module shares
        if case["kind"] != "experts" and cost.shared_input_per_token * case["tokens"] != found["shared"]:
            wrong.append((case, "shared", cost.shared_input_per_token, found["shared"]))
    assert not wrong


def test_what_a_tiny_llama_keeps_is_the_sum_of_its_modules_with_shared_inputs_once(real):
    wrong = []
    for case, theirs in zip(SUMS, real["sums"], strict=True):
        ours, before = 0.0, ""
        for wrapped in tiny_llama():
            cost = methods.cost(case["method"], wrapped, case["options"], numbers(case))
            ours += cost.saved_per_token * SUM_TOKENS + cost.saved
            layer = wrapped.name.rpartition(".")[0]
            ours -= cost.shared_input_per_token * SUM_TOKENS if layer == before else 0
            before = layer
        if abs(ours - theirs) > 0.02 * theirs:
            wrong.append((case, ours, theirs))
    assert not wrong


def test_temporaries(real):
    wrong = []
    for case, found in zip(cases(), real["modules"], strict=True):
        if not case["tokens"]:
            continue
        cost = methods.cost(case["method"], module(case), case["options"], numbers(case))
        ours, theirs = cost.temporaries(case["tokens"]), found["temporary"]
        assert ours <= ceil(cost.temporary_per_token * case["tokens"] + cost.temporary) + 1
        if "norm" not in case["kind"] and abs(ours - theirs) > 0.1 * theirs:
            wrong.append((case, ours, theirs))
    assert not wrong


def test_every_row_of_the_table_is_measured_here():
    used = set()
    for case in (case for case in cases() if case["tokens"]):
        options = Options(case["method"], case["options"], numbers(case))
        row = methods._MODULE[case["method"]](module(case), options).row
        dropped = f"{row}+dropout"
        used.add(dropped if options.numbers.dropout and dropped in rows() else row)
    # POLY's router needs task ids, which a module alone does not get
    assert set(rows()) - used == {"POLY"}
