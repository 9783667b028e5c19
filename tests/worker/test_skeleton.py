"""Twins of several architectures are legal, small, and of the same kind as the original."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap

import pytest

from tests.conftest import REPOSITORY

SCRIPT = """
    import json, sys, tempfile, torch, transformers
    from pathlib import Path
    from peftsmith.worker import skeleton
    found = {}
    for name in sys.argv[2:]:
        config = transformers.AutoConfig.for_model(name).to_dict()
        config["vocab_size"] = 1000
        config["pad_token_id"] = 0
        with tempfile.TemporaryDirectory() as folder:
            made = skeleton.build(config, Path(sys.argv[1]), Path(folder) / "twin", seed=0)
            model = transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / "twin")
            ids = torch.arange(24).reshape(2, 12)
            finite = bool(torch.isfinite(model(input_ids=ids).logits).all())
            kinds = lambda of: sorted(set(getattr(of, "layer_types", None) or []))
            found[name] = {
                **made,
                "finite": finite,
                "layer_types": kinds(model.config),
                "full_layer_types": kinds(transformers.AutoConfig.for_model(name)),
                "tied": model.config.tie_word_embeddings,
                "full_tied": config["tie_word_embeddings"],
                "widest": max(max(each.weight.shape) for name, each in model.named_modules()
                              if isinstance(each, torch.nn.Linear) and "head" not in name),
            }
    depths = []
    for layers in (2, 12, None):
        config = transformers.AutoConfig.for_model("qwen2", num_hidden_layers=20)
        skeleton.cut_down(config, layers=layers)
        depths.append(config.num_hidden_layers)
    print(json.dumps({"found": found, "depths": depths}))
"""
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
}
# Widths that differ by layer, hang on each other, or have names of their own.
ODD = ("gemma4_text", "zamba2", "rwkv")
# Each has the width of its feed-forward layers by another name.
WIDE = ("opt", "falcon", "llama4_text", "granitemoeshared", "deepseek_v3", "recurrent_gemma", "ctrl")


@pytest.mark.training
def test_every_architecture_becomes_a_small_one_of_its_own_kind(training_python, tiny_model):
    run = subprocess.run(
        [training_python, "-c", textwrap.dedent(SCRIPT), str(tiny_model), *ARCHITECTURES, *ODD, *WIDE],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "mcp_server"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    seen = json.loads(run.stdout.splitlines()[-1])
    assert seen["depths"] == [2, 12, 20]
    for name in ODD:
        assert seen["found"][name]["finite"] and seen["found"][name]["parameters"] < 20_000_000, name
        assert seen["found"][name]["layer_types"] == seen["found"][name]["full_layer_types"], name
    for name in WIDE:
        assert seen["found"][name]["finite"] and seen["found"][name]["widest"] <= 800, name
    for name in ARCHITECTURES:
        made = seen["found"][name]
        assert made["architecture"] == ARCHITECTURES[name]
        assert made["finite"], name
        assert made["parameters"] < 2_000_000, name
        assert made["layers"] == 2, name
        assert made["vocab"] == 1000
        assert made["layer_types"] == made["full_layer_types"], name
        assert made["tied"] == made["full_tied"], name
