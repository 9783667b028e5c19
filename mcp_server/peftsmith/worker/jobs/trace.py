"""The memory of a training step, from the real classes: traced on the meta device and replayed through an allocator.

Knows: the job's arguments, how few layers stand for many, and what was stood in for.
Does not know: how the model is made (trace_model.py), a step is written down (trace_step.py), or memory is managed
(allocator.py).
"""

from __future__ import annotations

import gc
import time
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from peftsmith.worker import allocator, trace_model, trace_step, trace_values
from peftsmith.worker.child import Report

# Layers of each kind: all of them up to the second number; of more, both numbers are traced and extended in a line.
LAYERS = (16, 32)
FEW_LAYERS = (2, 3)  # where real weights are needed
_BY_TASK = ("POLY", "MULTITASK_PROMPT_TUNING")  # methods whose every row says which task it belongs to


def run(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    """config (config.json), task, dtype, method (None or {"peft_type", ...PEFT's config fields}), adapter_dtype,
    autocast, quantization (None or {"kind", "double", "group"}), kbit_prepared, batch, length, padded, attention
    ("sdpa", "flash"), checkpointing, loss ("stock", "trl_chunked", "liger"), optimizer, frozen (names of adapter
    parameters that do not train, such as "lora_A"), loop ("trainer": transformers and TRL move the whole model to the
    device; "released": so, and the logits go with the model's output; "bare": a loop of one's own, where buffers
    that PEFT made on the processor stay there).

    Returns allocated and reserved (bytes), trainable, how ("traced" or "layer-cut"), layers, substitutions, seconds.
    """
    began = time.monotonic()
    gc.freeze()  # the libraries' own objects: without it every collection walks through all of them
    _, whole = trace_model.cut(arguments["config"], None)
    try:
        sizes, layers, substitutions = _extrapolated(arguments, whole, LAYERS, "meta", report)
        how = "traced"
    except (NotImplementedError, RuntimeError) as error:
        if arguments.get("quantization"):
            raise
        report("layer-cut", {"because": str(error)[:200]})
        sizes, layers, substitutions = _extrapolated(arguments, whole, FEW_LAYERS, "cpu", report)
        how = "layer-cut"
    return {
        **{name: round(size) for name, size in sizes.items()},
        "how": how,
        "layers": {"traced": layers, "whole": list(whole.values())},
        "substitutions": substitutions,
        "seconds": round(time.monotonic() - began, 2),
    }


def _extrapolated(
    arguments: dict[str, Any], whole: dict[str, int], layers: tuple[int, int], device: str, report: Report
) -> tuple[dict[str, float], list[int], list[str]]:
    """Sizes of the whole model; kinds with more than layers[1] layers are traced with both counts and extended."""
    few, more = layers
    base = {kind: count if count <= more else few for kind, count in whole.items()}
    first, substitutions = one(arguments, base, device, report)
    total: dict[str, float] = dict(first)
    for kind, count in whole.items():
        if count > base[kind]:
            other, _ = one(arguments, {**base, kind: more}, device, report)
            steps = (count - few) / (more - few)
            total = {name: total[name] + (other[name] - first[name]) * steps for name in total}
    return total, list(base.values()), substitutions


def one(
    arguments: dict[str, Any], counts: dict[str, int], device: str, report: Report
) -> tuple[dict[str, int], list[str]]:
    """Sizes for a model with these layers, and what was stood in for. `device` is where the adapter is set up."""
    report("trace", {"layers": sum(counts.values())})
    model, substitutions = _model(arguments, counts, device)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    model.train()
    with trace_step.recorded() as log:
        asked = trace_step.run(
            log,
            model,
            lambda: _output(model, arguments),
            optimizer=arguments.get("optimizer") or "adamw_torch",
            autocast=trace_model.DTYPES[arguments["dtype"]] if arguments.get("autocast") else None,
            held=arguments.get("loop") != "released",
        )
        peak = allocator.replay(log.events)
    if asked:
        substitutions.append("branches that depend on values (taken as false)")
    if log.made_up:
        substitutions.append("operations that meta tensors lack (made-up numbers)")
    gc.collect()
    return {"allocated": peak.allocated, "reserved": peak.reserved, "trainable": trainable}, substitutions


def _model(arguments: dict[str, Any], counts: dict[str, int], device: str) -> tuple[nn.Module, list[str]]:
    """The adapted model on the meta device. Methods whose set-up needs numbers get real weights for a moment
    ("cpu")."""
    dtype = trace_model.DTYPES[arguments["dtype"]]
    adapter = trace_model.DTYPES[arguments.get("adapter_dtype") or "float32"]
    substitutions = ["attention kernel"]
    model = _base(arguments, counts, dtype, device, substitutions)
    if device != "meta":
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.02)
        wrapped = trace_values.to_meta(
            trace_model.adapt(model, arguments.get("method"), adapter, arguments.get("task"))
        )
    else:
        with trace_values.set_up() as values:
            wrapped = trace_model.adapt(model, arguments.get("method"), adapter, arguments.get("task"))
        bare = arguments.get("loop") == "bare"
        wrapped = trace_values.parameters_to_meta(wrapped) if bare else trace_values.to_meta(wrapped)
        if values.asked:
            substitutions.append("numbers that the method's set-up works out")
    for name, parameter in wrapped.named_parameters():
        if any(part in arguments.get("frozen", ()) for part in name.split(".")):
            parameter.requires_grad_(False)
    return _prepared(wrapped, arguments), substitutions


def _base(
    arguments: dict[str, Any], counts: dict[str, int], dtype: torch.dtype, device: str, substitutions: list[str]
) -> nn.Module:
    config, _ = trace_model.cut(arguments["config"], counts)
    masked = bool(arguments.get("padded")) and arguments.get("attention") != "flash"
    model = trace_model.build(
        config, arguments.get("task"), dtype, device=device, masked=masked, flash=arguments.get("attention") == "flash"
    )
    quantization = arguments.get("quantization")
    if quantization:
        trace_model.quantise(model, quantization, dtype)
        substitutions.append("quantised linear layers")
    if arguments.get("method") is not None:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    if arguments.get("kbit_prepared"):
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.float()
    return model


def _prepared(model: nn.Module, arguments: dict[str, Any]) -> nn.Module:
    if arguments.get("checkpointing"):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        how: dict[str, Any] = {"use_reentrant": False}
        if arguments.get("autocast"):  # a backward pass suspends function modes: recomputation has to enter its own
            dtype = trace_model.DTYPES[arguments["dtype"]]
            how["context_fn"] = lambda: (nullcontext(), trace_step.Autocast(dtype))
        base.gradient_checkpointing_enable(how)
        base.enable_input_require_grads()
    return model


def _output(model: nn.Module, arguments: dict[str, Any]) -> Any:
    """A batch through the model: an output with a loss."""
    batch, length = int(arguments["batch"]), int(arguments["length"])
    ids = torch.empty((batch, length), dtype=torch.long, device="meta")
    inputs = {"input_ids": ids, "attention_mask": torch.empty_like(ids)}
    if (arguments.get("method") or {}).get("peft_type") in _BY_TASK:
        inputs["task_ids"] = torch.empty((batch,), dtype=torch.long, device="meta")
    loss = arguments.get("loss") or "stock"
    if loss in ("trl_chunked", "liger"):
        return trace_model.without_logits(model, inputs, loss, int(model.config.get_text_config().vocab_size))
    if arguments.get("task") == "sequence-classification":
        ids = torch.empty((batch,), dtype=torch.long, device="meta")
    return model(**inputs, labels=ids)
