"""Do two models say the same? Comparisons of logits, and an adapter that is loud enough for them to be sharp.

Knows: how to load a base with an adapter, fixed input tokens, what the adapter's effect is, tolerances.
Does not know: where the models come from (jobs/twin.py).
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

# Reloading changes nothing, so only the order of float32 sums may differ. A merge rounds each weight to its type
# once: 2^-8 relative in bfloat16, against an effect of the size of the weights themselves.
RELOAD_TOLERANCE = 1e-3
MERGE_TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
_LOUD = 0.02  # root mean square of an amplified adapter's weight change: as large as the twin's own weights


def probe_ids(vocab: int) -> Any:
    """Two rows of 24 token ids spread over the vocabulary, the same every time; shape (2, 24)."""
    import torch

    return ((torch.arange(48) * 7919 + 11) % vocab).reshape(2, 24)


def logits(model: Any, ids: Any) -> Any:
    """Float32 logits of a model in evaluation mode without gradients; shape (rows, length, vocabulary)."""
    import torch

    model.eval()
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()


def difference(left: Any, right: Any) -> float:
    return float((left - right).abs().max())


def load_base(folder: Path, dtype: Any, quantization: Any = None) -> Any:
    """A fresh base from `folder`, its weights rounded to `dtype` (and quantised), then computed in float32."""
    import transformers

    options = {} if quantization is None else {"quantization_config": quantization}
    return in_float32(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options))


def in_float32(model: Any) -> Any:
    """The model itself, computing in float32 with the values that it has; quantised weights stay what they are.

    In 16 bits the effect of two steps drowns in rounding. (transformers refuses .float() on a quantised model.)
    """
    import torch

    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    for module in model.modules():
        if isinstance(getattr(module, "compute_dtype", None), torch.dtype):
            module.compute_dtype = torch.float32
    return model


def load_adapter(base: Any, adapter: Path) -> Any:
    import peft

    return in_float32(peft.PeftModel.from_pretrained(base, adapter))


def amplify(adapter: Path, target: Path, *, seed: int) -> None:
    """Copy a LoRA adapter with seeded noise for lora_B, so large that merging it wrongly cannot pass unnoticed.

    After two steps the true lora_B is so small that a bfloat16 merge may round all of it away.
    """
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, target)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    root = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    scale = config["lora_alpha"] / root
    tensors = load_file(adapter / "adapter_model.safetensors")
    draw = torch.Generator().manual_seed(seed)
    for name in [each for each in tensors if "lora_B" in each]:
        noise = torch.randn(tensors[name].shape, generator=draw)
        change = scale * noise @ tensors[name.replace("lora_B", "lora_A")].float()
        noise *= _LOUD / float(change.pow(2).mean().sqrt().clamp_min(1e-12))
        tensors[name] = noise.to(tensors[name].dtype).contiguous()
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})


def implied_trainable(base: Any, targets: list[str] | str, rank: int) -> tuple[int, list[str]]:
    """(LoRA parameters that `targets` at `rank` mean on this base, names in `targets` that match nothing).

    Counted from the base's own linear layers, independently of PEFT: rank x (inputs + outputs) each.
    """
    import re

    import torch

    output = base.get_output_embeddings()
    linear = {
        name: module
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and not (targets == "all-linear" and module is output)
    }
    if isinstance(targets, str):
        chosen = set(linear) if targets == "all-linear" else {name for name in linear if re.fullmatch(targets, name)}
        unmatched = [] if chosen else [targets]
    else:
        hits = {target: {n for n in linear if n == target or n.endswith(f".{target}")} for target in targets}
        chosen = set().union(*hits.values())
        unmatched = [target for target, names in hits.items() if not names]
    return sum(rank * (linear[name].in_features + linear[name].out_features) for name in chosen), unmatched
