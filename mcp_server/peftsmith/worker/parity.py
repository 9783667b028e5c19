"""Do two models say the same? Comparisons of logits, and an adapter that is loud enough for them to be sharp.

Knows: how to load a base with an adapter, fixed input tokens, what the adapter's effect is, tolerances.
Does not know: where the models come from (jobs/twin.py).
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A merge rounds each weight to its type once: 2^-8 relative in bfloat16, against an effect of the size of the weights
# themselves. In float32 it is the order of sums that differs, most with methods of many bases (RandLoRA).
MERGE_TOLERANCE = {"float32": 3e-3, "float16": 2e-2, "bfloat16": 1e-1}
_BY_TASK = ("POLY", "MULTITASK_PROMPT_TUNING")
_SHARE = 0.1  # of a number's own size, where that is larger
_PROJECTION = re.compile(r"base_model\.[a-z]+_[AB]")
_LOUD = 0.02  # root mean square of an amplified adapter's weight change: as large as the twin's own weights


def reload_tolerance(*, rounded: bool, in_steps: bool) -> float:
    """How far logits may differ after reloading, as a share of the adapter's effect.

    Reloading changes nothing, so that only the order of float32 sums may differ. But a prompt that is trained in 16
    bits (`rounded`) is saved as the rounded sum of its parts, in steps of 0.4 %; and where the base answers `in_steps`,
    values that nearly agree part: in 8 bits its layers' inputs are rounded to 0.8 %, and another expert may be chosen.
    """
    if not rounded:
        return 1e-3
    return 1e-1 if in_steps else 1e-2


def chooses_experts(model: Any) -> bool:
    """Are there experts among which each token's are chosen?"""
    text = model.config.get_text_config()
    return any(getattr(text, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts"))


def probe_ids(vocab: int, tokens: Sequence[int] = ()) -> Any:
    """Two rows of 24 token ids spread over the vocabulary, the same every time; shape (2, 24).

    The first ones are `tokens`, where an adapter changes only some.
    """
    import torch

    spread = (torch.arange(48) * 7919 + 11) % vocab
    return torch.cat([torch.tensor(list(tokens[:24]), dtype=spread.dtype), spread])[:48].reshape(2, 24)


def logits(model: Any, ids: Any) -> Any:
    """Float32 logits of a model in evaluation mode without gradients; (rows, length, vocabulary), or (rows, labels).

    An encoder-decoder that writes gets the same tokens to read and to write. A model for question answering has two
    logits at each place: (rows, length, start and end). A method that is told the task of a row takes the first row for
    the first task, and so on.
    """
    import torch

    model.eval()
    extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder and not _points(model) else {}
    if getattr(getattr(model, "active_peft_config", None), "peft_type", None) in _BY_TASK:
        extra["task_ids"] = torch.arange(len(ids))
    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids), **extra)
    if _points(model):
        return torch.stack([outputs.start_logits, outputs.end_logits], dim=-1).float()
    return outputs.logits.float()


def logits_without(model: Any, ids: Any) -> Any:
    """The same without the adapter. PEFT cannot switch off a learnt prompt where the base does not generate; the base
    inside has none."""
    if model.active_peft_config.is_prompt_learning:
        return logits(model.get_base_model(), ids)
    with model.disable_adapter():
        return logits(model, ids)


def _points(model: Any) -> bool:
    """Does the model say where an answer starts and ends?"""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "ForQuestionAnswering" in type(inner).__name__


def vocabulary(model: Any) -> int:
    """How many tokens the model's embedding has."""
    return int(model.get_input_embeddings().weight.shape[0])


def difference(left: Any, right: Any) -> float:
    """The largest difference; of two lengths (virtual tokens have logits as well) the last positions count."""
    if left.dim() == 3 and left.shape[1] != right.shape[1]:
        common = min(left.shape[1], right.shape[1])
        left, right = left[:, -common:], right[:, -common:]
    return float((left - right).abs().max())


@dataclass(frozen=True)
class Loader:
    """How the scripts load a model: the Auto class, the labels of its head (empty where it has none), and other names
    for a checkpoint's weights where the class needs them."""

    model_class: str = "AutoModelForCausalLM"
    labels: tuple[str, ...] = ()
    key_mapping: dict[str, str] | None = None

    @property
    def points(self) -> bool:
        """Whether the model says where an answer starts and ends."""
        return self.model_class == "AutoModelForQuestionAnswering"

    @property
    def new_head(self) -> bool:
        """Whether the base lacks the head, so that it is trained whole."""
        return bool(self.labels) or self.points

    def whole(self, folder: Path, **options: Any) -> Any:
        """from_pretrained as the scripts call it."""
        import transformers

        if self.key_mapping:
            options["key_mapping"] = self.key_mapping
        return getattr(transformers, self.model_class).from_pretrained(folder, **options)

    def load(self, folder: Path, dtype: Any, quantization: Any = None, *, as_it_is: bool = False) -> Any:
        """A fresh model from `folder`, its weights rounded to `dtype` (and quantised), then computed in float32.

        `as_it_is` leaves them in `dtype`: an adapter that starts by changing its base must meet it as in training.
        """
        options: dict[str, Any] = {} if quantization is None else {"quantization_config": quantization}
        if self.labels:
            options |= {"num_labels": len(self.labels)}
        model = self.whole(folder, dtype=dtype, **options)
        return model if as_it_is else in_float32(model)


def in_float32(model: Any) -> Any:
    """The model itself, computing in float32 with the values that it has; quantised weights stay what they are.

    In 16 bits the effect of two steps drowns in rounding. (transformers refuses .float() on a quantised model.)
    """
    import torch

    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    for module in model.modules():
        for name in ("compute_dtype", "dtype"):  # bitsandbytes' layers, AdaMSS's
            if isinstance(vars(module).get(name), torch.dtype):
                setattr(module, name, torch.float32)
        packed = getattr(getattr(module, "weight", None), "quant_state", None)
        if packed is not None:  # some adapters work with the unpacked weights themselves
            packed.dtype = torch.float32
    return model


def load_adapter(base: Any, adapter: Path) -> Any:
    import peft

    return in_float32(peft.PeftModel.from_pretrained(base, adapter))


def amplify(adapter: Path, target: Path, *, seed: int) -> None:
    """Copy an adapter with seeded noise in it, so large that merging it wrongly cannot pass unnoticed.

    After two steps a true adapter is so small that a bfloat16 merge may round all of it away. LoRA's noise goes into
    lora_B and is as large as the weights; every other method gets noise in all of its numbers.
    """
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, target)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(adapter / "adapter_model.safetensors")
    draw = torch.Generator().manual_seed(seed)
    if config["peft_type"] == "LORA" and any("lora_B" in name for name in tensors):
        _louder_lora(tensors, config, draw)
    else:
        for name, tensor in tensors.items():
            # Projections that VeRA and its like draw by a seed are not trained, and adapters of one base share them.
            drawn = "save_projection" in config and _PROJECTION.fullmatch(name)
            if tensor.is_floating_point() and tensor.numel() and not drawn:
                size = max(_LOUD, _SHARE * float(tensor.float().pow(2).mean().sqrt()))
                noise = size * torch.randn(tensor.shape, generator=draw)
                tensors[name] = (tensor.float() + noise).to(tensor.dtype).contiguous()
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})


def _louder_lora(tensors: dict[str, Any], config: dict[str, Any], draw: Any) -> None:
    import torch

    root = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    scale = config["lora_alpha"] / root
    for name in [each for each in tensors if "lora_B" in each and each.replace("lora_B", "lora_A") in tensors]:
        noise = torch.randn(tensors[name].shape, generator=draw)
        other = tensors[name.replace("lora_B", "lora_A")].float()
        # Convolutions and block-diagonal factors have no such product.
        fits = noise.dim() == other.dim() == 2 and noise.shape[1] == other.shape[0]
        change = scale * noise @ other if fits else scale * noise
        noise *= _LOUD / float(change.pow(2).mean().sqrt().clamp_min(1e-12))
        tensors[name] = noise.to(tensors[name].dtype).contiguous()


def implied_trainable(
    base: Any, targets: list[str] | str, rank: int, saved: tuple[str, ...] = ()
) -> tuple[int, list[str]]:
    """(Parameters that LoRA on `targets` at `rank` trains on this base, names in `targets` that match nothing).

    Counted from the base's own linear layers, independently of PEFT: rank x (inputs + outputs) each. Modules whose name
    ends with one of `saved` are trained whole instead.
    """
    import re

    import torch
    from transformers.pytorch_utils import Conv1D

    output = base.get_output_embeddings()
    whole = {
        name: module for name, module in base.named_modules() if any(f".{name}".endswith(f".{each}") for each in saved)
    }
    linear = {
        name: module
        for name, module in base.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
        and not any(name == each or name.startswith(f"{each}.") for each in whole)
        and not (targets == "all-linear" and module is output)
    }
    if isinstance(targets, str):
        chosen = set(linear) if targets == "all-linear" else {name for name in linear if re.fullmatch(targets, name)}
        unmatched = [] if chosen else [targets]
    else:
        hits = {target: {n for n in linear if n == target or n.endswith(f".{target}")} for target in targets}
        chosen = set().union(*hits.values())
        unmatched = [target for target, names in hits.items() if not names]
    adapted = sum(rank * sum(linear[name].weight.shape) for name in chosen)
    return adapted + sum(p.numel() for module in whole.values() for p in module.parameters()), unmatched
