"""Runs in the training environment: what transformers and PEFT really make of a config, as one JSON document.

python with_peft.py FOLDER CASES_JSON: builds each case's model, saves it under FOLDER, and reports its parameters,
linear modules, and for each (target_modules, rank) the adapted modules and trainable parameters of get_peft_model.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM


def report(folder: Path, case: dict) -> dict:
    config = AutoConfig.for_model(case["model_type"], **case["config"])
    if case.get("save", True):
        model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    folder.mkdir(exist_ok=True)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    found = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tied": config.tie_word_embeddings,
        "linear": {
            name: [m.in_features, m.out_features] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)
        },
        "modules": [name for name, _ in model.named_modules() if name],
        "adapted": [],
    }
    for value, rank in case["targets"]:
        with torch.device("meta"):
            tuned = get_peft_model(
                copy.deepcopy(model), LoraConfig(r=rank, target_modules=value, task_type="CAUSAL_LM")
            )
        trainable, every = tuned.get_nb_trainable_parameters()
        names = [
            name.removeprefix("base_model.model.") for name, m in tuned.named_modules() if isinstance(m, LoraLayer)
        ]
        found["adapted"].append({"trainable": trainable, "all": every, "modules": names})
    return found


def saved_bytes(folder: Path, case: dict) -> int:
    """Bytes of unique storages that autograd keeps for the backward pass of one forward pass on the CPU."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, case["dtype"]))
    model = get_peft_model(
        model, LoraConfig(r=case["rank"], target_modules=case["targets"], task_type="CAUSAL_LM")
    ).train()
    known = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(0, 200, (case["batch"], case["length"]))
    mask = torch.ones_like(ids)
    if case["batch"] > 1:
        mask[0, -3:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if case.get("packed"):  # as TRL's collator lays sequences out, with two rows in each
        half = case["length"] // 2
        places = torch.cat([torch.arange(half), torch.arange(case["length"] - half)]).repeat(case["batch"])
        inputs = {"input_ids": ids.view(1, -1), "position_ids": places.view(1, -1), "use_cache": False}
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=case["autocast"]),
    ):
        output = model.base_model.model.model(**inputs)
    assert output.last_hidden_state.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    base, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    answer = {name: report(base / name, case) for name, case in cases["models"].items()}
    kept = [saved_bytes(base / case["model"], case) for case in cases["saved"]]
    print(json.dumps({"models": answer, "saved": kept}))
