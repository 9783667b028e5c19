"""One thing wrong with an adapter at a time, and a sound one about which nothing is said."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import time

import pytest

from peftsmith.adapter import inspect, weights
from peftsmith.errors import PeftsmithError
from peftsmith.model import headers
from tests.adapter.make import HIDDEN, PREFIX, RANK, encode, lora, noise, write, write_safetensors, zeros

Q = f"{PREFIX}.0.self_attn.q_proj"


def ids(folder):
    return [item.id for item in inspect.inspect(folder).findings]


def test_a_sound_adapter(tmp_path):
    report = inspect.inspect(write(tmp_path / "a", lora(dtype="BF16")))
    assert report.findings == []
    assert (report.modules, report.parameters, report.size) == (4, 4 * 2 * RANK * HIDDEN, 4 * 2 * RANK * HIDDEN * 2)
    assert (report.rank, report.alpha, report.scale) == (RANK, 8.0, 2.0)
    assert {engine: verdict.serves for engine, verdict in report.serving.items()} == dict.fromkeys(
        ("transformers", "vllm", "sglang", "llama.cpp", "ollama"), "yes"
    )
    assert "--max-lora-rank 8 " in report.serving["vllm"].how
    json.dumps(report.to_json(), allow_nan=False)


def test_lora_b_zero(tmp_path):
    tensors = {n: zeros((HIDDEN, RANK)) if "lora_B" in n else t for n, t in lora(dtype="F32").items()}
    assert "adapter.lora_b.zero" in ids(write(tmp_path / "all", tensors))
    assert inspect.lora_b_is_zero(tmp_path / "all")
    one = {**lora(), f"{Q}.lora_B.weight": zeros((HIDDEN, RANK))}
    report = inspect.inspect(write(tmp_path / "one", one))
    partly = next(item for item in report.findings if item.id == "adapter.lora_b.partly_zero")
    assert (partly.evidence["zero"], partly.evidence["tensors"]) == (1, 4)
    assert not inspect.lora_b_is_zero(tmp_path / "one")


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(tmp_path, dtype, value):
    values = [0.5] * (HIDDEN * RANK - 1) + [value]
    tensors = {**lora(dtype=dtype), f"{Q}.lora_A.weight": (dtype, (RANK, HIDDEN), encode(values, dtype))}
    broken = next(item for item in inspect.inspect(write(tmp_path / "a", tensors)).findings if "not_finite" in item.id)
    assert broken.evidence["elements"] == {f"{Q}.lora_A.weight": 1}


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [("F32", 3.4028234e38), ("F16", 65504.0), ("F64", 1.7e308), ("BF16", struct.unpack("<f", b"\x00\x00\x7f\x7f")[0])],
)
def test_the_largest_finite_values_are_finite(tmp_path, dtype, largest):
    values = [largest, -largest] * (HIDDEN * RANK // 2)
    folder = write(
        tmp_path / "a", {**lora(dtype=dtype), f"{Q}.lora_A.weight": (dtype, (RANK, HIDDEN), encode(values, dtype))}
    )
    assert not any("not_finite" in name for name in ids(folder))


def test_a_type_that_was_not_checked_is_unknown(tmp_path):
    report = inspect.inspect(
        write(tmp_path / "a", {**lora(), f"{Q}.lora_A.weight": ("I8", (RANK, HIDDEN), b"\1" * 32)})
    )
    assert [item.severity for item in report.findings if item.id == "adapter.values.unchecked"] == ["unknown"]


def test_a_file_of_forty_bytes_is_empty(tmp_path):
    folder = write(tmp_path / "a", {})
    assert (folder / "adapter_model.safetensors").stat().st_size == 40
    assert ids(folder)[0] == "adapter.weights.empty"
    gathered = {name: (dtype, (0,), b"") for name, (dtype, _, _) in lora().items()}
    assert "adapter.weights.empty" in ids(write(tmp_path / "b", gathered))


def test_pickles_are_refused_unopened(tmp_path):
    folder = write(tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    report = inspect.inspect(folder)
    assert report.findings[0].id == "adapter.weights.pickle"
    assert {verdict.serves for verdict in report.serving.values()} == {"no"}


def test_weights_missing_truncated_or_not_there_at_all(tmp_path):
    folder = write(tmp_path / "a")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert "adapter.weights.broken" in ids(folder)
    assert {verdict.serves for verdict in inspect.inspect(folder).serving.values()} == {"no"}
    path.unlink()
    assert "adapter.weights.missing" in ids(folder)
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "adapter")
    with pytest.raises(PeftsmithError, match=r"not an adapter.*run/adapter"):
        inspect.inspect(tmp_path / "run")
    (folder / "adapter_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(PeftsmithError, match="not a JSON object"):
        inspect.inspect(folder)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("", "adapter.base.unnamed"),
        (None, "adapter.base.unnamed"),
        ("unsloth/llama-3-8b-bnb-4bit", "adapter.base.quantised_copy"),
        ("/home/me/models/llama", "adapter.base.local_path"),
        ("../llama", "adapter.base.local_path"),
    ],
)
def test_a_base_that_servers_will_not_find(tmp_path, base, expected):
    found = inspect.inspect(write(tmp_path / "a", base_model_name_or_path=base)).findings
    assert [(item.id, item.rows) for item in found if item.id.startswith("adapter.base")] == [(expected, (25,))]


def test_a_base_folder_that_exists_is_only_worth_a_word(tmp_path):
    found = inspect.inspect(write(tmp_path / "a", base_model_name_or_path=str(tmp_path))).findings
    assert [item.severity for item in found if item.id == "adapter.base.local_path"] == ["info"]
    assert "adapter.base.unpinned" in ids(write(tmp_path / "b", revision=None))


def test_embeddings_and_base_weights(tmp_path):
    embedding = {"base_model.model.model.embed_tokens.weight": noise((100, HIDDEN))}
    report = inspect.inspect(write(tmp_path / "a", {**lora(), **embedding}))
    saved = next(item for item in report.findings if item.id == "adapter.embeddings.saved")
    assert saved.evidence == {"bytes": 3200, "total": report.size}
    assert {e: v.serves for e, v in report.serving.items()}["llama.cpp"] == "merge"
    base = {f"{Q}.base_layer.weight": noise((HIDDEN, HIDDEN))}
    assert "adapter.base_weights.inside" in ids(write(tmp_path / "b", {**lora(), **base}))
    head = {"base_model.model.score.weight": noise((3, HIDDEN))}
    named = ids(write(tmp_path / "c", {**lora(), **head}, modules_to_save=["score"]))
    assert "adapter.modules_to_save.present" in named and "adapter.base_weights.inside" not in named


def test_ranks(tmp_path):
    assert "adapter.rank.mismatch" in ids(write(tmp_path / "a", r=8))
    assert "adapter.rank.mismatch" not in ids(write(tmp_path / "b", r=8, rank_pattern={"q_proj|v_proj": RANK}))
    fused = {**lora(), f"{PREFIX}.0.mlp.experts.lora_A.weight": noise((RANK * 3, HIDDEN))}
    fused[f"{PREFIX}.0.mlp.experts.lora_B.weight"] = noise((HIDDEN, RANK * 3))
    assert "adapter.rank.mismatch" in ids(write(tmp_path / "c", fused))
    assert "adapter.rank.mismatch" not in ids(write(tmp_path / "d", fused, target_parameters=["mlp.experts.up_proj"]))
    swapped = {**lora(), f"{Q}.lora_B.weight": noise((HIDDEN, RANK + 1))}
    assert "adapter.rank.mismatch" in ids(write(tmp_path / "e", swapped))


def test_what_is_missing_in_the_file(tmp_path):
    tensors = lora()
    del tensors[f"{Q}.lora_B.weight"]
    assert "adapter.tensors.unpaired" in ids(write(tmp_path / "a", tensors))
    report = inspect.inspect(write(tmp_path / "b", target_modules=["q_proj", "v_proj", "gate_proj"]))
    absent = next(item for item in report.findings if item.id == "adapter.targets.without_weights")
    assert absent.evidence["names"] == ["gate_proj"]
    assert ids(write(tmp_path / "c", target_modules="(a+)+$")) == ids(write(tmp_path / "d"))


def test_a_model_beside_the_adapter(tmp_path):
    folder = write(tmp_path / "a")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    found = next(item for item in inspect.inspect(folder).findings if item.id == "adapter.folder.model_beside")
    assert found.rows == (37,) and found.evidence["files"] == ["config.json"]


def test_other_methods_are_unknown_not_passed(tmp_path):
    report = inspect.inspect(
        write(tmp_path / "a", {"prompt_embeddings": noise((4, HIDDEN))}, peft_type="PROMPT_TUNING")
    )
    assert (report.findings[0].id, report.findings[0].severity) == ("adapter.method.unchecked", "unknown")
    assert report.serving["vllm"].serves == "merge"


@pytest.mark.parametrize(
    ("config", "verdicts"),
    [
        ({"init_lora_weights": "olora"}, {"transformers": "yes", "vllm": "merge", "ollama": "merge"}),
        ({"use_dora": True}, {"vllm": "merge", "sglang": "merge", "llama.cpp": "merge", "ollama": "merge"}),
        ({"bias": "all"}, {"vllm": "merge"}),
        ({"lora_bias": True}, {"vllm": "merge"}),
        ({"trainable_token_indices": [1]}, {"vllm": "merge", "sglang": "merge"}),
        ({"modules_to_save": ["lm_head"]}, {"vllm": "merge", "ollama": "merge"}),
        ({"use_rslora": True}, {"vllm": "yes", "sglang": "repair", "llama.cpp": "repair", "ollama": "repair"}),
        ({"alpha_pattern": {"q_proj": 16}}, {"vllm": "repair", "llama.cpp": "repair"}),
    ],
)
def test_serving_verdicts(tmp_path, config, verdicts):
    report = inspect.inspect(write(tmp_path / "a", lora(dtype="BF16"), **config))
    got = {engine: verdict.serves for engine, verdict in report.serving.items()}
    assert {engine: got[engine] for engine in verdicts} == verdicts
    assert got["transformers"] == "yes"
    wanted = "adapter.serving.scale_lost" if "repair" in verdicts.values() else "adapter.serving.needs_merge"
    finding = next(item for item in report.findings if item.id == wanted)
    if "use_rslora" in config:
        assert finding.evidence["lora_b_factor"] == 2.0 and report.scale == 4.0


def test_a_rank_above_vllm_and_float32_for_sglang(tmp_path):
    report = inspect.inspect(write(tmp_path / "a", lora(rank=520), r=520))
    assert report.serving["vllm"].serves == "merge"
    assert report.serving["sglang"].serves == "convert" and "F32" in report.serving["sglang"].reasons[0]
    assert "adapter.serving.needs_conversion" in [item.id for item in report.findings]


def test_hostile_names_are_shown_clean(tmp_path):
    report = inspect.inspect(
        write(tmp_path / "a", {**lora(), "evil\x1b[31m\u202e.weight": noise((2,))}, peft_type="LORA")
    )
    text = json.dumps([item.to_json() for item in report.findings], ensure_ascii=False)
    assert "evil" in text and "\x1b" not in text and "\u202e" not in text


def checkpoint(folder, step, tensors=None):
    return write(folder / f"checkpoint-{step}", tensors)


def test_checkpoints(tmp_path):
    assert [item.severity for item in inspect.check_checkpoints(tmp_path)] == ["unknown"]
    checkpoint(tmp_path, 10)
    (tmp_path / "checkpoint-10" / "optimizer.pt").write_bytes(b"x")
    assert inspect.check_checkpoints(tmp_path) == []
    checkpoint(tmp_path, 20, {**lora(), "base_model.model.model.norm.weight": noise((HIDDEN,))})
    write_safetensors(checkpoint(tmp_path, 30) / "model.safetensors", {"x": noise((2,))})
    (checkpoint(tmp_path, 40) / "adapter_model.safetensors").unlink()
    found = {item.evidence["folder"].rpartition("/")[2]: item.id for item in inspect.check_checkpoints(tmp_path)}
    assert found == {
        "checkpoint-20": "adapter.checkpoint.base_weights",
        "checkpoint-30": "adapter.checkpoint.base_weights",
        "checkpoint-40": "adapter.checkpoint.unreadable",
    }


def test_chunks_do_not_change_the_count(tmp_path, monkeypatch):
    values = [1.0] * 1000
    values[0] = values[511] = values[512] = values[999] = math.nan
    write_safetensors(tmp_path / "x.safetensors", {"x": ("F32", (1000,), encode(values, "F32"))})
    tensor = headers.read_file(tmp_path / "x.safetensors")["x"]
    assert weights.look(tmp_path, tensor).not_finite == 4
    monkeypatch.setattr(weights, "_CHUNK", 64)
    assert weights.look(tmp_path, tensor).not_finite == 4


@pytest.mark.slow
def test_forty_megabytes_take_about_a_second(tmp_path):
    block = noise((1024, 16), "BF16")[2] * 20
    tensors = {}
    for layer in range(32):
        tensors[f"{PREFIX}.{layer}.self_attn.q_proj.lora_A.weight"] = ("BF16", (16, 20480), block)
        tensors[f"{PREFIX}.{layer}.self_attn.q_proj.lora_B.weight"] = ("BF16", (20480, 16), block)
    folder = write(tmp_path / "a", tensors, r=16, target_modules=["q_proj"])
    assert (folder / "adapter_model.safetensors").stat().st_size > 40_000_000
    began = time.process_time()
    assert inspect.inspect(folder).findings == []
    assert time.process_time() - began < 3


@pytest.mark.training
def test_an_adapter_that_peft_wrote(tmp_path, training_python, tiny_model):
    code = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(model, config, autocast_adapter_dtype=False)
model.save_pretrained(sys.argv[2] + "/untrained")
for name, parameter in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter)
model.save_pretrained(sys.argv[2] + "/trained")
"""
    subprocess.run(
        [training_python, "-c", code, str(tiny_model), str(tmp_path)], check=True, capture_output=True, timeout=300
    )
    untrained, trained = inspect.inspect(tmp_path / "untrained"), inspect.inspect(tmp_path / "trained")
    assert "adapter.lora_b.zero" in [item.id for item in untrained.findings]
    assert [item.id for item in trained.findings] == ["adapter.base.local_path"]
    assert (trained.modules, trained.rank, trained.dtypes) == (14, 4, ("BF16",))


def test_an_adapter_for_more_layers_is_served_by_peft_alone(tmp_path):
    folder = write(tmp_path / "a", layer_replication=[[0, 2], [1, 2]], init_lora_weights=True)
    seen = {engine: each.serves for engine, each in inspect.inspect(folder).serving.items()}
    assert seen == {"transformers": "yes", "vllm": "no", "sglang": "no", "llama.cpp": "no", "ollama": "no"}
