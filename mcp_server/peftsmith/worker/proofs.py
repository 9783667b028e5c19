"""What the twin's scripts must have left on disk and in memory, each as evidence or as a Disproved.

Knows: what an adapter's files hold, what training changes, which parameters a plan means, when a merge is right.
Does not know: the order of the proofs or how the scripts are run (jobs/twin.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftsmith.worker import parity
from peftsmith.worker.book import Disproved


@dataclass(frozen=True)
class Wanted:
    """What the plan says of its scripts. `result` is the folder that train.py leaves: adapter, or model when all
    weights are trained. `plain_lora` means that its trainable parameters can be counted without PEFT, `converts` that
    the adapter was trained on a changed base and is saved for the one on disk. `tasks` are named where the method is
    told the task of every row."""

    plan: dict[str, Any]
    loader: parity.Loader
    task_type: str
    result: str
    plain_lora: bool
    merges: bool
    resumes: bool
    converts: bool = False
    tasks: tuple[str, ...] = ()

    @property
    def tokens(self) -> list[int]:
        """The tokens that are trained, where nothing else is."""
        return list(self.plan["method"]["config"].get("token_indices") or ())

    @property
    def full(self) -> bool:
        return self.result == "model"


def saved_tensors(folder: Path, model: Any, wanted: Wanted) -> dict[str, Any]:
    """Evidence that a folder's weights are those of the adapter (or of the model) in safetensors, and nothing else."""
    import peft
    from safetensors import safe_open

    weights = sorted(folder.glob("*.safetensors"))
    pickled = sorted(each.name for each in folder.glob("*.bin") if "model" in each.name)
    expected_file = "model.safetensors" if wanted.full else "adapter_model.safetensors"
    if [each.name for each in weights] != [expected_file] or pickled:
        found = [each.name for each in weights] + pickled
        raise Disproved(f"{folder.name} should hold {expected_file} as its only weights", found=found)
    with safe_open(weights[0], framework="pt") as tensors:
        names = set(tensors.keys())
    if not names:
        raise Disproved(f"{folder.name} holds no tensor")
    if not wanted.full:
        foreign = sorted(names - set(peft.get_peft_model_state_dict(model)))
        if wanted.plain_lora and not wanted.loader.new_head:
            foreign += sorted(name for name in names if ".lora_" not in name)
        if foreign:
            raise Disproved(f"{folder.name} holds tensors that are not the adapter's", foreign=foreign[:5])
    return {"tensors": len(names), "bytes": weights[0].stat().st_size}


def moved(model: Any, before: dict[str, Any]) -> dict[str, Any]:
    """Evidence that training has changed what it should train, and that all of it is numbers."""
    import torch

    now = {name: each for name, each in model.named_parameters() if each.requires_grad}
    changes = {
        name: float((now[name].detach().float() - old.float()).abs().max())
        for name, old in before.items()
        if name in now and now[name].shape == old.shape and old.numel()
    }
    moved = [name for name, change in changes.items() if change > 0]
    seen = {"trainable": len(before), "moved": len(moved), "largest": max(changes.values(), default=0.0)}
    if not all(bool(torch.isfinite(each).all()) for each in now.values()):
        raise Disproved("a trained number is no number any more", **seen)
    if not moved:
        raise Disproved("no trainable number has changed: nothing was trained", **seen)
    lora_b = {name: each for name, each in now.items() if "lora_B" in name}
    if lora_b and not any(bool(each.any()) for each in lora_b.values()):
        raise Disproved("every lora_B is still zero: nothing was trained", **seen)
    return seen


def trainable(model: Any, base: Path, result: Path, wanted: Wanted) -> dict[str, Any]:
    """Evidence that what is trained is what the plan means: counted for plain LoRA, by name for other methods."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING as PREFIXES

    trained = {name: each.numel() for name, each in model.named_parameters() if each.requires_grad}
    actual = sum(trained.values())
    if wanted.full:
        frozen = [name for name, each in model.named_parameters() if not each.requires_grad]
        if frozen:
            raise Disproved("not all weights are trained", frozen=frozen[:5])
        return {"trainable": actual}
    config = json.loads((result / "adapter_config.json").read_text(encoding="utf-8"))
    converted = config.get("target_parameters") or []  # PEFT turns some targets of experts into parameters
    if wanted.plain_lora and not converted:
        method = wanted.plan["method"]
        saved = tuple(config.get("modules_to_save") or ())
        implied, unmatched = parity.implied_trainable(
            wanted.loader.load(base, "auto"), method["target_modules"], method["rank"], saved
        )
        seen = {"trainable": actual, "implied_by_plan": implied, "unmatched": unmatched}
        if actual != implied or unmatched:
            raise Disproved("the trainable parameters are not those that the plan means", **seen)
        return seen
    prefix = PREFIXES.get(peft.PeftType(config["peft_type"]), "")
    own = (prefix, "modules_to_save", "prompt_encoder", "trainable_tokens_", "adaption_")
    foreign = [name for name in trained if not any(mark and mark in name for mark in own)]
    if config.get("bias", "none") != "none":
        foreign = [name for name in foreign if not name.endswith("bias")]
    if foreign:
        raise Disproved("weights of the base are trained beside the adapter", foreign=foreign[:5])
    return {"trainable": actual, "target_parameters": sorted(converted)}


def merged_as_adapter(base: Path, adapter: Path, merged: Path, wanted: Wanted) -> dict[str, Any]:
    """Evidence that the merged model says what base and adapter say together, for an adapter that changes much."""
    import torch

    if not list(merged.glob("*.safetensors")):
        raise Disproved("merge.py left no safetensors file", found=sorted(each.name for each in merged.glob("*")))
    result = wanted.loader.whole(merged)
    dtype = result.dtype
    plain = wanted.loader.load(base, dtype)
    ids = parity.probe_ids(parity.vocabulary(plain), wanted.tokens)
    without = parity.logits(plain, ids)
    with_adapter = parity.logits(parity.load_adapter(plain, adapter), ids)
    effect = parity.difference(with_adapter, without)
    actual = parity.difference(parity.logits(result.to(torch.float32), ids), with_adapter)
    seen = {"largest_difference": actual, "adapter_effect": effect, "dtype": name_of(dtype)}
    if not (merged / "tokenizer.json").exists():
        raise Disproved("merge.py left no tokenizer beside the merged model", **seen)
    rounding = 1e-6 * float(with_adapter.abs().max())
    if not actual <= parity.MERGE_TOLERANCE.get(name_of(dtype), 1e-1) * effect + rounding:
        raise Disproved("the merged model does not say what base and adapter say together", **seen)
    return seen


def name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
