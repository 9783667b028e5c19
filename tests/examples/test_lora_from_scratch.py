"""examples/lora_from_scratch.py against PEFT: the same logits, gradients, training steps and merged weights."""

from __future__ import annotations

import ast
import json
import os
import subprocess

import pytest

from tests.conftest import REPOSITORY

EXAMPLE = REPOSITORY / "examples" / "lora_from_scratch.py"
# Both sides get the same base and the same random A and B; every figure is the largest absolute difference.
COMPARE = """
import copy, json, sys
import torch
import lora_from_scratch as own
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
shape = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, attention_bias=True)
base = LlamaForCausalLM(LlamaConfig(**shape)).double()
targets, r, alpha = ["q_proj", "v_proj", "down_proj"], 4, 12
ids = torch.randint(0, 64, (3, 9))
told = {}
for rslora in (False, True):
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=targets, use_rslora=rslora, lora_dropout=0.0,
                        task_type="CAUSAL_LM")
    theirs = get_peft_model(copy.deepcopy(base), config)
    mine = own.inject(copy.deepcopy(base), targets, r, alpha, rslora=rslora)
    pairs = []
    for name, layer in mine.named_modules():
        if isinstance(layer, own.LoRALinear):
            other = theirs.get_submodule("base_model.model." + name)
            a, b = other.lora_A["default"].weight, other.lora_B["default"].weight
            torch.nn.init.normal_(b, std=0.3)
            with torch.no_grad():
                layer.lora_A.copy_(a)
                layer.lora_B.copy_(b)
            pairs.append((layer, a, b, name))
    start = base(ids).logits
    out, want = mine(ids, labels=ids), theirs(input_ids=ids, labels=ids)
    out.loss.backward(); want.loss.backward()
    trained = [name for name, value in mine.named_parameters() if value.requires_grad]
    seen = {
        "layers": len(pairs),
        "trained": len(trained),
        "count": sum(v.numel() for v in mine.parameters() if v.requires_grad) - theirs.get_nb_trainable_parameters()[0],
        "moved": float((out.logits - start).abs().max()),
        "logits": float((out.logits - want.logits).abs().max()),
        "gradients": max(float((one.grad - other.grad).abs().max())
                         for layer, a, b, _ in pairs for one, other in ((layer.lora_A, a), (layer.lora_B, b))),
        "gradient_size": min(float(layer.lora_A.grad.abs().max()) for layer, *_ in pairs),
        "base_gradients": sum(v.grad is not None for n, v in mine.named_parameters() if "lora_" not in n),
    }
    for model in (mine, theirs):
        optimizer = torch.optim.AdamW([v for v in model.parameters() if v.requires_grad], lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
    after = mine(ids).logits
    seen["trained_logits"] = float((after - theirs(input_ids=ids).logits).abs().max())
    own.save(mine, "adapter.pt")
    fresh = own.inject(copy.deepcopy(base), targets, r, alpha, rslora=rslora)
    seen["fresh_equals_base"] = float((fresh(ids).logits - start).abs().max())
    own.load(fresh, "adapter.pt")
    seen["reloaded"] = float((fresh(ids).logits - after).abs().max())
    merged, want = own.merge(mine), theirs.merge_and_unload()
    seen["same_names"] = list(merged.state_dict()) == list(want.state_dict()) == list(base.state_dict())
    seen["merged"] = max(float((merged.state_dict()[n] - v).abs().max()) for n, v in want.state_dict().items())
    seen["merged_logits"] = float((merged(ids).logits - after).abs().max())
    told["rslora" if rslora else "lora"] = seen
try:
    own.inject(copy.deepcopy(base), ["nowhere"], r, alpha)
except ValueError as error:
    told["refused"] = str(error)
print(json.dumps(told))
"""


def test_it_imports_torch_only_and_is_short():
    text = EXAMPLE.read_text(encoding="utf-8")
    modules = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in (
            [each.name for each in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert modules == {"__future__", "collections", "math", "pathlib", "torch"}
    assert len(text.splitlines()) <= 110


@pytest.mark.training
def test_it_equals_peft(training_python, tmp_path):
    done = subprocess.run(
        [training_python, "-c", COMPARE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(EXAMPLE.parent), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert "nowhere" in told["refused"]
    for kind in ("lora", "rslora"):
        seen = told[kind]
        assert (seen["layers"], seen["trained"], seen["count"]) == (6, 12, 0)
        assert seen["moved"] > 1e-2 and seen["gradient_size"] > 1e-6 and seen["base_gradients"] == 0
        for name in (
            "logits",
            "gradients",
            "trained_logits",
            "reloaded",
            "merged",
            "merged_logits",
            "fresh_equals_base",
        ):
            assert seen[name] < 1e-10, (kind, name, seen[name])  # float64
        assert seen["same_names"]
