"""The memory benchmark: what a row is read as, and that no estimate looks at who measured it or what was measured."""

from __future__ import annotations

import csv
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import measured, memory
from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.model import anatomy
from tests.model.test_anatomy import LLAMA_3_2_3B

pytestmark = pytest.mark.slow

CONFIGS = {
    "meta-llama/Llama-3.2-3B": LLAMA_3_2_3B,
    "Qwen/Qwen2.5-0.5B-Instruct": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "openai-community/gpt2": {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12,
        "n_positions": 1024, "vocab_size": 50257, "activation_function": "gelu_new",
    },
}  # fmt: skip
BASE = {
    "row_id": "a-1", "source": "somebody", "source_path": "somewhere/results.json",
    "model_id": "meta-llama/Llama-3.2-3B", "method": "LORA", "r": "16", "target_modules": "q_proj v_proj",
    "n_trainable": "", "quant": "none", "weight_dtype": "bfloat16", "optimizer": "adamw_torch", "per_device_batch": "4",
    "grad_accum": "1", "seq_len": "1024", "seq_note": "", "grad_ckpt": "False", "attention_impl": "sdpa",
    "loss_impl": "HF full logits", "n_gpus": "1", "sharding": "none", "gpu": "NVIDIA L40S",
    "framework": "transformers 5.13.1", "published_value": "20.5", "published_unit": "GiB", "peak_gb": "20.5",
    "peak_kind": "max_memory_reserved", "grade": "A", "note": "", "longest_batch_tokens": "700", "autocast": "False",
    "kbit_prepared": "False", "adapter_dtype": "float32", "lora_dropout": "0", "stack": "hf", "scored": "yes",
}  # fmt: skip
CHANGES = [
    {},
    {"method": "full", "grad_ckpt": "True", "gpu": "A100-80GB", "peak_kind": "nvidia-smi used"},
    {"method": "QLoRA", "quant": "bnb nf4 double-quant", "peak_kind": "max_memory_allocated", "autocast": ""},
    {"method": "OSF", "target_modules": "all linear", "n_trainable": "1000000", "r": ""},
    {"method": "PROMPT_TUNING", "note": "{'num_virtual_tokens': 200} reserved_avg=12.5 GiB"},
    {"model_id": "Qwen/Qwen2.5-0.5B-Instruct", "quant": "gptq int4 (g128)", "grade": "B", "optimizer": "adamw_8bit"},
    {"model_id": "openai-community/gpt2", "method": "DoRA", "autocast": "True", "framework": "transformers 4.48.1"},
]
TABLE = [{**BASE, **change, "row_id": f"row-{number}"} for number, change in enumerate(CHANGES)]


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        (folder / f"{name.replace('/', '__')}.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def scored(configs, tmp_path):
    """Estimates of a table, as the benchmark reads it from a file."""

    def of(table):
        files.set_roots(["/"])
        path = tmp_path / "rows.csv"
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(BASE))
            writer.writeheader()
            writer.writerows(table)
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        scratch = tmp_path / f"scratch-{random.random()}"
        scratch.mkdir()
        return memory.score(rows, memory.Models(configs, scratch))

    return of


@pytest.fixture(scope="module")
def bodies(configs, tmp_path_factory):
    files.set_roots(["/"])
    models = memory.Models(configs, tmp_path_factory.mktemp("bodies"))
    return {name: models.get(name) for name in CONFIGS}


@pytest.mark.parametrize("seed", [1, 2])
def test_estimates_know_nothing_of_who_measured_or_what(scored, seed):
    chance = random.Random(seed)
    expected = {json.dumps(change, sort_keys=True): found for change, found in zip(CHANGES, scored(TABLE), strict=True)}
    scrambled = []
    for change in CHANGES:
        row = {**BASE, **change}
        for column in ("row_id", "source", "source_path", "published_value", "published_unit", "seq_note"):
            row[column] = chance.choice(["", "x", str(chance.random()), "peft-MetaMathQA"])
        row["peak_gb"] = str(chance.uniform(0.1, 90))
        row["note"] = row["note"].replace("12.5", str(chance.random()))
        scrambled.append((json.dumps(change, sort_keys=True), row))
    chance.shuffle(scrambled)
    for (key, _), found in zip(scrambled, scored([row for _, row in scrambled]), strict=True):
        assert (found.likely, found.high, found.kind) == (
            expected[key].likely, expected[key].high, expected[key].kind,
        )  # fmt: skip
    assert len({round(each.likely, 6) for each in expected.values()}) == len(CHANGES)


def test_columns_that_identify_a_row_are_not_read():
    assert not {"row_id", "source", "source_path", "published_value", "published_unit", "peak_gb", "peak_kind", "grade",
                "scored", "stack"} & set(measured.READ)  # fmt: skip


def test_what_a_row_says_does_count(scored):
    def likely(**change):
        return scored([{**BASE, **change}])[0].likely

    plain = likely()
    assert likely(r="64") > plain and likely(longest_batch_tokens="800") > plain
    assert likely(grad_ckpt="True") < plain and likely(quant="bnb nf4") < plain


def test_a_refused_row_is_reported_and_ends_nothing(scored, capsys):
    table = [
        {**BASE, "row_id": "no-config", "model_id": "no/such"}, {**BASE, "row_id": "no-peak", "peak_gb": "OOM"},
        {**BASE, "row_id": "no-length", "seq_len": "", "longest_batch_tokens": "?"}, {**BASE, "row_id": "fine"},
        {**BASE, "row_id": "two-gpus", "n_gpus": "2"}, {**BASE, "row_id": "no-kind", "peak_kind": "estimate"},
        {**BASE, "row_id": "no-method", "method": "no idea", "r": ""},
    ]  # fmt: skip
    assert [each.row["row_id"] for each in scored(table)] == ["fine"]
    said = capsys.readouterr().err
    assert all(row["row_id"] in said for row in table if row["row_id"] != "fine") and "fine:" not in said


METHODS = [
    ("DoRA", "lora", {"use_dora": True}), ("rsLoRA", "lora", {"use_rslora": True}), ("LoftQ", "lora", {}),
    ("PiSSA", "lora", {}), ("OLoRA", "lora", {}), ("lora+", "lora", {}), ("LoRA-FA", "lora", {}),
    ("QDoRA", "lora", {"use_dora": True}), ("QLoRA 4bit", "lora", {}), ("(IA)^3", "ia3", {}), ("IA3", "ia3", {}),
    ("full", "full", {}), ("Full AMP", "full", {}), ("full_ft", "full", {}), ("full+full+galore128", "full", {}),
    ("Freeze/LoRA", "lora", {}), ("freeze", "lora", {}), ("adapter", "lora", {}), ("P-Tuning v2", "prefix_tuning", {}),
    ("LLaMA-Adapter", "adaption_prompt", {}), ("prompt-tuning", "prompt_tuning", {}), ("unsloth+lora+q4", "lora", {}),
    ("TRAINABLE_TOKENS", "trainable_tokens", {}), ("LoKr", "lokr", {}), ("xyz", "lora", {}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "method", "told"), METHODS)
def test_names_of_methods(bodies, text, method, told):
    found = measured.request_of({**BASE, "method": text}, bodies[BASE["model_id"]])
    assert found.method == method and told.items() <= found.options.items()


QUANTISERS = [
    ("", "none"), ("none", "none"), ("16-bit", "none"), ("bnb nf4", "nf4"), ("bnb nf4 double-quant", "nf4_double"),
    ("bnb 4bit", "nf4"), ("4-bit", "nf4"), ("bnb int8", "int8"), ("8-bit", "int8"), ("LLM.int8()", "int8"),
    ("gptq int4 (g128)", "gptq4"), ("GPTQ-8bit", "gptq8"), ("gptq int3", "gptq3"), ("AWQ", "awq4"), ("HQQ", "hqq4"),
    ("hqq 2-bit", "hqq2"), ("EETQ", "eetq8"), ("FP8", "fp8"), ("aqlm 2bit", "aqlm2"), ("mxfp4", "mxfp4"),
    ("quanto int4", "hqq4"), ("torchao int8", "int8"), ("2-bit", "hqq2"), ("bnb fp4", "nf4"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "quantization"), QUANTISERS)
def test_names_of_quantisers(bodies, text, quantization):
    body = bodies[BASE["model_id"]]
    request = measured.request_of({**BASE, "quant": text}, body)
    assert request.quantization == quantization
    plain = memory.memory.estimate(body, measured.request_of(BASE, body)).terms["weights"]
    assert (memory.memory.estimate(body, request).terms["weights"] < plain) == (quantization != "none")


OPTIMISERS = [
    ("", "adamw_torch"), ("AdamW(torch foreach)", "adamw_torch"), ("adamw_torch_fused", "adamw_torch_fused"),
    ("adamw_bnb_8bit", "adamw_8bit"), ("adamw_torch_8bit", "adamw_8bit"),
    ("PagedAdamW 32bit (bnb)", "paged_adamw_32bit"), ("paged_adamw_8bit", "paged_adamw_8bit"),
    ("lora-fa", "lora_fa"), ("Lion", "lion_32bit"), ("lion_8bit", "lion_8bit"),
    ("galore_adamw", "adafactor"), ("Adafactor", "adafactor"), ("muon", "lion_32bit"), ("SGD", "sgd"),
    ("sophia", "adamw_torch"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "optimizer"), OPTIMISERS)
def test_names_of_optimisers(bodies, text, optimizer):
    assert measured.request_of({**BASE, "optimizer": text}, bodies[BASE["model_id"]]).optimizer == optimizer


def test_names_of_modules_that_a_model_fuses(bodies):
    def targets(text, model="openai-community/gpt2"):
        return measured.request_of({**BASE, "target_modules": text}, bodies[model]).targets

    assert targets("q_proj k_proj v_proj") == "attention" and targets("gate_proj up_proj down_proj") == "mlp"
    assert targets("q_proj, gate_proj") == "all-linear" and targets("qkv(query,value)") == "query-value"
    assert targets("c_attn") == ["c_attn"]
    assert targets("q v", BASE["model_id"]) == ["q_proj", "v_proj"] and targets("all linear") == "all-linear"


def test_numbers_of_trainable_parameters_tell_what_a_row_leaves_out(bodies):
    body = bodies[BASE["model_id"]]
    told = measured.request_of({**BASE, "r": "", "n_trainable": str(28 * 24 * (2 * 3072 + 3072 + 1024))}, body)
    assert told.rank == 24
    tokens = {"method": "TRAINABLE_TOKENS", "target_modules": "model.embed_tokens", "n_trainable": "6144"}
    assert measured.request_of({**BASE, **tokens}, body).options["token_indices"] == [0, 1]


def test_options_without_a_formula_are_left_out(bodies):
    found = measured.request_of({**BASE, "note": "{'arrow_config': {}}"}, bodies[BASE["model_id"]])
    assert found.method == "lora" and not found.options


def test_a_row_that_contradicts_itself_is_read_by_its_loss_and_named(scored, bodies, tmp_path, capsys):
    row = {
        **BASE, "model_id": "openai-community/gpt2", "target_modules": "c_attn", "framework": "transformers 4.48.1",
        "loss_impl": "HF full logits (fp32 upcast)", "quant": "bnb nf4",
    }  # fmt: skip
    body = bodies["openai-community/gpt2"]
    assert measured.contradicts_itself(row, body) and measured.request_of(row, body).autocast
    for change in ({"autocast": "True"}, {"method": "full"}, {"framework": "transformers 5.1"}):
        assert not measured.contradicts_itself({**row, **change}, body)
    memory.doubtful(scored([row, BASE]), Known(body))
    assert "1 rows state a float32 loss without autocast" in capsys.readouterr().out


def test_empty_cells_are_told_by_what_else_a_row_says(bodies):
    body = bodies[BASE["model_id"]]
    said = {
        "weight_dtype": "fp32 weights, bf16-mixed autocast",
        "autocast": "",
        "kbit_prepared": "",
        "lora_dropout": "?",
    }
    found = measured.request_of({**BASE, **said}, body)
    assert found.autocast and found.precision == "fp32" and not found.kbit_prepared and not found.dropout
    said = {"weight_dtype": "bf16; prepare_model_for_kbit_training", "autocast": "", "kbit_prepared": ""}
    found = measured.request_of({**BASE, **said}, body)
    assert found.kbit_prepared and not found.autocast
    assert measured.request_of({**BASE, "r": "r=32.0", "per_device_batch": "2.0"}, body).rank == 32
    assert measured.request_of({**BASE, "gpu": "A100-40GB"}, body).device_bytes == 40 << 30
    assert measured.request_of({**BASE, "gpu": "a cluster"}, body).device_bytes is None


CELLS = st.one_of(
    st.sampled_from(["", "?", "none", "True", "unsloth", "flash_attention_3", "flex", "liger", "8", "16.0", "-1", "nan",
                     "fp32", "bf16", "int4", "hqq", "galore", "dora", "IA3", "q v", "{'r': 'x'}", "{broken"]),
    st.text(max_size=12),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from([name for name in measured.READ if name != "model_id"]), CELLS, max_size=5))
def test_any_cell_is_estimated_or_refused_with_a_reason(bodies, cells):
    body = bodies["Qwen/Qwen2.5-0.5B-Instruct"]
    row = {**BASE, "model_id": "Qwen/Qwen2.5-0.5B-Instruct", **cells}
    try:
        found = memory.estimated(row, Known(body))
    except (PeftsmithError, ValueError) as refused:
        assert str(refused)
        return
    assert 0 < found.likely <= found.high


class Known:
    """Models of which one is known."""

    def __init__(self, body: anatomy.Anatomy):
        self.body = body

    def get(self, model_id):
        return self.body
