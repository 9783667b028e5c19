"""A model's real classes as a table of modules: built on the meta device, without a weight, then walked.

Knows: how a config becomes its class for a task, and the JSON shape of model/modules.py.
Does not know: what the table is used for. Runs no code of a model's repository.
"""

from __future__ import annotations

from typing import Any

# In the order in which a config without architectures is tried.
TASKS = {
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "image-text": "AutoModelForImageTextToText",
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
}
LARGEST_TABLE = 200_000


def config_of(document: dict[str, Any]) -> Any:
    """The config object of a config.json. Raises ValueError for a type that the installed transformers lacks."""
    from transformers import CONFIG_MAPPING

    body = {key: value for key, value in document.items() if key not in ("quantization_config", "auto_map")}
    kind = body.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"transformers {_version('transformers')} has no model type {str(kind)[:80]!r}")
    return CONFIG_MAPPING[kind].from_dict(body)


def class_of(config: Any, task: str | None) -> Any:
    """The class that the task's Auto class takes for this config; without a task the config's own architecture."""
    import transformers

    if task is None:
        for name in getattr(config, "architectures", None) or []:
            found = getattr(transformers, name, None)
            if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
                return found
    for auto in [TASKS[task]] if task else TASKS.values():
        mapping = getattr(transformers, auto)._model_mapping
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise ValueError(f"{type(config).__name__} has no class for {task or 'any of ' + ', '.join(TASKS)}")


def build(config: Any, task: str | None) -> Any:
    """The model on the meta device, its embeddings tied as they would be."""
    import torch

    with torch.device("meta"):
        model = class_of(config, task)(config)
    model.tie_weights()
    return model


def table(model: Any) -> dict[str, Any]:
    """The JSON of model/modules.py for a built model."""
    rows: list[list[Any]] = []
    containers: list[str] = []
    tied: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        own = dict(module.named_parameters(recurse=False))
        if len(rows) > LARGEST_TABLE:
            raise ValueError(f"the model has more than {LARGEST_TABLE} modules")
        if not own:
            if name:
                containers.append(name)
            continue
        for leaf, parameter in own.items():
            path = f"{name}.{leaf}" if name else leaf
            if first.setdefault(id(parameter), path) != path:
                tied[path] = first[id(parameter)]
        kind, inputs, outputs = kind_of(module, own)
        rows.append([name, kind, inputs, outputs, {k: list(v.shape) for k, v in own.items()}, type(module).__name__])
    return {
        "architecture": type(model).__name__,
        "model_type": model.config.model_type,
        "source": "classes",
        "modules": rows,
        "containers": containers,
        "tied": tied,
    }


def kind_of(module: Any, own: dict[str, Any]) -> tuple[str, int, int]:
    """(kind, inputs, outputs) of a module with parameters of its own."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, torch.nn.Linear):
        return "linear", module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return "conv1d", int(module.weight.shape[0]), int(module.weight.shape[1])
    if isinstance(module, torch.nn.Embedding):
        return "embedding", module.num_embeddings, module.embedding_dim
    if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d):
        return "conv", module.in_channels, module.out_channels
    shapes = [tuple(parameter.shape) for parameter in own.values()]
    if sum(len(shape) == 3 for shape in shapes) and _is_experts(module, own):
        return "experts", 0, 0
    if set(own) <= {"weight", "bias"} and all(len(shape) == 1 for shape in shapes):
        return "norm", 0, 0
    return "other", 0, 0


def _is_experts(module: Any, own: dict[str, Any]) -> bool:
    fused = any(name.startswith(("gate_up_proj", "down_proj", "up_proj", "gate_proj", "w1", "w2")) for name in own)
    return fused or "Expert" in type(module).__name__


def versions() -> dict[str, str]:
    return {name: _version(name) for name in ("torch", "transformers", "peft")}


def _version(name: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(name)
