"""Whether an adapter is sound: its config, its tensors' names, shapes and values, what lies beside it.

Knows: PEFT's adapter_config.json and how it names LoRA's tensors; reads safetensors by hand, never a pickle.
Does not know: the base model, or how well the adapter does its task. Serving verdicts come from portable.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftsmith import files
from peftsmith.adapter import portable, weights
from peftsmith.adapter.checks import judge_names, judge_ranks, judge_values, pattern_values
from peftsmith.adapter.naming import Kind, kind_of, module_of, saved_modules
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding
from peftsmith.knowledge import methods, starts
from peftsmith.model import headers
from peftsmith.model.headers import Tensor

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_FULL_WEIGHTS = ("model.safetensors", "model-*.safetensors", "pytorch_model*.bin", "model.safetensors.index.json")
_QUANTISED_COPIES = ("bnb-4bit", "bnb-8bit", "-gptq", "-awq", "-int4", "-int8", "-4bit", "-8bit")

Config = Mapping[str, Any]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Report:
    """`size` (bytes) and `parameters` are of all tensors; `scale` is B·A's factor: alpha/r or alpha/√r."""

    folder: Path
    method: str
    rank: int | None
    alpha: float | None
    scale: float | None
    base: str
    revision: str | None
    modules: int
    parameters: int
    size: int
    dtypes: tuple[str, ...]
    serving: dict[str, portable.Verdict]
    findings: list[Finding]

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "method": self.method,
            "rank": self.rank,
            "alpha": self.alpha,
            "scale": self.scale,
            "base_model": self.base,
            "base_revision": self.revision,
            "adapted_modules": self.modules,
            "parameters": self.parameters,
            "bytes": self.size,
            "dtypes": list(self.dtypes),
            "serving": {engine: verdict.to_json() for engine, verdict in self.serving.items()},
        }


def inspect(folder: Path) -> Report:
    """Look at the adapter in `folder`. Raises PeftsmithError when there is none, or its config cannot be read."""
    config = _config(folder)
    found = [*_judge_config(config), *_judge_folder(folder)]
    tensors, faults = _tensors(folder)
    found += faults
    method = files.clean(str(config.get("peft_type") or "unknown"), 50).upper()
    if tensors:
        found += judge_names(tensors, config, method)
        found += judge_values(folder, tensors)
        if method == "LORA":
            found += judge_ranks(tensors, config)
    shape = _shape(config, tensors, method, safetensors=any(tensor.elements for tensor in tensors.values()))
    serving = portable.verdicts(shape)
    rank, alpha = shape.rank, _number(config.get("lora_alpha"))
    return Report(
        folder=folder,
        method=method,
        rank=rank,
        alpha=alpha,
        scale=alpha / (math.sqrt(rank) if shape.rslora else rank) if rank and alpha is not None else None,
        base=files.clean(str(config.get("base_model_name_or_path") or ""), 300),
        revision=files.clean(str(config["revision"]), 100) if config.get("revision") else None,
        modules=len({module_of(name) for name in tensors if kind_of(name) is Kind.A}),
        parameters=sum(tensor.elements for tensor in tensors.values()),
        size=sum(tensor.size for tensor in tensors.values()),
        dtypes=shape.dtypes,
        serving=serving,
        findings=[*found, *portable.findings(serving, shape)],
    )


def lora_b_is_zero(folder: Path) -> bool:
    """True when the adapter has lora_B tensors and all of them are zero; cheap for one that is not."""
    tensors = [t for name, t in headers.read_file(folder / WEIGHTS).items() if kind_of(name) is Kind.B]
    return bool(tensors) and all(weights.is_zero(folder, tensor) for tensor in tensors)


def check_checkpoints(folder: Path) -> list[Finding]:
    """Every checkpoint-* in `folder` must hold adapter weights and no base weights; empty when that is so."""
    checkpoints = sorted(path for path in folder.glob("checkpoint-*") if path.is_dir())
    if not checkpoints:
        return [finding("adapter.checkpoint.none", f"There is no checkpoint in {folder}.")]
    found = []
    for path in checkpoints:
        full = sorted({item.name for pattern in _FULL_WEIGHTS for item in path.glob(pattern)})
        try:
            tensors = headers.read_file(path / WEIGHTS)
            saved = saved_modules(_config(path))
        except PeftsmithError as error:
            found.append(finding("adapter.checkpoint.unreadable", f"{path.name}: {error.cause}.", folder=str(path)))
            continue
        foreign = [name for name in tensors if kind_of(name, saved) is Kind.FOREIGN]
        if full or foreign:
            shown = [files.clean(name, 200) for name in [*full, *foreign][:5]]
            message = f"{path.name} holds base weights as well as the adapter: {', '.join(shown)}."
            found.append(finding("adapter.checkpoint.base_weights", message, folder=str(path), names=shown))
    return found


def _config(folder: Path) -> Config:
    if not (folder / CONFIG).is_file():
        inner = folder / "adapter" / CONFIG
        raise PeftsmithError(
            f"This folder has no {CONFIG}, so it is not an adapter",
            value=str(folder),
            next_step=f"Give {inner.parent}." if inner.is_file() else "Give the folder that save_pretrained wrote.",
        )
    config = files.read_json(folder / CONFIG, largest=4 << 20)
    if not isinstance(config, dict):
        raise PeftsmithError(f"{CONFIG} is not a JSON object", value=str(folder), next_step="Save the adapter again.")
    return config


def _tensors(folder: Path) -> tuple[Tensors, list[Finding]]:
    found = []
    if (folder / PICKLE).exists():
        found.append(finding("adapter.weights.pickle", file=PICKLE))
    if not (folder / WEIGHTS).is_file():
        return {}, found or [finding("adapter.weights.missing", f"{folder} has no {WEIGHTS}.")]
    try:
        tensors = headers.read_file(folder / WEIGHTS)
    except PeftsmithError as error:
        return {}, [*found, finding("adapter.weights.broken", f"{error.cause}.")]
    empty = [name for name, tensor in tensors.items() if tensor.elements == 0]
    if empty or not tensors:
        what = (
            f"{len(empty)} of its {len(tensors)} tensors have no elements" if tensors else "it holds no tensor at all"
        )
        size = (folder / WEIGHTS).stat().st_size
        message = f"{WEIGHTS} ({size} bytes) is empty: {what}."
        found.append(
            finding("adapter.weights.empty", message, bytes=size, names=[files.clean(n, 200) for n in empty[:5]])
        )
    return tensors, found


def _judge_config(config: Config) -> list[Finding]:
    found = []
    base = str(config.get("base_model_name_or_path") or "").strip()
    shown = files.clean(base, 300)
    if not base:
        found.append(finding("adapter.base.unnamed"))
    elif any(mark in base.lower() for mark in _QUANTISED_COPIES):
        message = f"The adapter names {shown} as its base: a quantised copy, not the model that servers load."
        found.append(finding("adapter.base.quantised_copy", message, base=shown))
    elif not files.is_model_id(base):
        there = Path(base).is_dir()
        message = f"The adapter names the folder {shown} as its base{'' if there else ', which is not there'}."
        found.append(finding("adapter.base.local_path", message, severity="info" if there else "warning", base=shown))
    elif not config.get("revision"):
        found.append(finding("adapter.base.unpinned", f"The adapter names {shown} but no commit of it.", base=shown))
    if config.get("modules_to_save"):
        names = [files.clean(str(name), 100) for name in list(config["modules_to_save"])[:10]]
        found.append(
            finding("adapter.modules_to_save.present", f"Whole modules are saved: {', '.join(names)}.", names=names)
        )
    if str(config.get("peft_type") or "").upper() != "LORA":
        method = files.clean(str(config.get("peft_type")), 50)
        found.append(finding("adapter.method.unchecked", f"The method is {method}; only LoRA's tensors are checked."))
    return found


def _judge_folder(folder: Path) -> list[Finding]:
    beside = [name for name in ("config.json", "model.safetensors") if (folder / name).exists()]
    beside += sorted(path.name for pattern in _FULL_WEIGHTS[1:3] for path in folder.glob(pattern))
    if not beside:
        return []
    message = f"{', '.join(beside[:5])} lies beside {CONFIG}: loaders cannot tell adapter from full model."
    return [finding("adapter.folder.model_beside", message, files=beside[:5])]


def _shape(config: Config, tensors: Tensors, method: str, *, safetensors: bool) -> portable.Shape:
    rank = config.get("r") if isinstance(config.get("r"), int) and config["r"] > 0 else None
    ranks = [each for each in (rank, *pattern_values(config.get("rank_pattern"))) if isinstance(each, int)]
    adapter = [t.dtype for name, t in tensors.items() if kind_of(name) in (Kind.A, Kind.B)]
    return portable.Shape(
        peft_type=method,
        rank=rank,
        largest_rank=max(ranks, default=None),
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
        bias="lora" if config.get("lora_bias") else files.clean(str(config.get("bias") or "none"), 50),
        modules_to_save=bool(config.get("modules_to_save")),
        trainable_tokens=bool(config.get("trainable_token_indices")),
        embeddings=any(kind_of(name) is Kind.EMBEDDING for name in tensors),
        rank_pattern=bool(config.get("rank_pattern")),
        alpha_pattern=bool(config.get("alpha_pattern")),
        dtypes=tuple(sorted(set(adapter))),
        safetensors=safetensors,
        changed_base=_changed_base(config) if method == "LORA" else None,
        more_layers=bool(config.get("layer_replication")),
    )


def _changed_base(config: Config) -> str | None:
    """The start that changed the base under the adapter, and has to again wherever it is loaded."""
    changes = starts.alters_base(methods.method("LORA"), config)
    return files.clean(str(config.get("init_lora_weights")), 50) if changes else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
