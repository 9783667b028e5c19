"""Precise memory: the real classes traced in a training environment, kept on disk, for a model and a request.

Knows: how a request is put as a trace, how a traced figure becomes an estimate with ranges, and where it is cached.
Does not know: how a trace works (worker/jobs/trace.py), or formulas (memory.py): what cannot be traced is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.model import memory, methods, targets
from peftsmith.model.anatomy import Anatomy
from peftsmith.model.request import Request, check
from peftsmith.worker import client

if TYPE_CHECKING:
    from peftsmith.machine.environment import Environment

SECONDS = 300.0
_FORMAT = 6
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_TASKS = {"sft": "causal-lm", "dpo": "causal-lm", "classification": "sequence-classification", "seq2seq": "seq2seq"}
_QUANTISERS: Mapping[str, dict[str, Any]] = {
    "nf4": {"kind": "nf4"},
    "nf4_double": {"kind": "nf4", "double": True},
    "fp4": {"kind": "fp4"},
    "int8": {"kind": "int8"},
    "gptq4": {"kind": "gptq"},
    "awq4": {"kind": "awq"},
    "fp8": {"kind": "fp8"},
}
# Fields without which PEFT refuses a config, where the request does not say them.
_NEEDED: Mapping[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 1000},
    "PROMPT_TUNING": {"num_virtual_tokens": 20},
    "P_TUNING": {"num_virtual_tokens": 20},
    "PREFIX_TUNING": {"num_virtual_tokens": 20},
    "TRAINABLE_TOKENS": {"token_indices": [0], "target_modules": ["embed_tokens"]},
    "ADAPTION_PROMPT": {"adapter_len": 10, "adapter_layers": 1},
    "CARTRIDGE": {"num_virtual_tokens": 20},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 20},
}
# A traced run differs from a real one by kernels' workspaces and the history of its batches.
SPREAD = (0.97, 1.0, 1.06)


def estimate(
    anatomy: Anatomy, request: Request, environment: Environment, *, frozen: tuple[str, ...] = (), loop: str = "trainer"
) -> tuple[memory.Estimate, dict[str, Any]]:
    """The analytic estimate with its figures replaced by traced ones, and how they were traced. `frozen` names adapter
    parameters that an optimiser leaves alone (lora_A with LoRA-FA). `loop` "trainer" moves the whole model to the
    device, as transformers and TRL do; in a "bare" loop after from_pretrained(device_map=...) buffers that PEFT made on
    the processor stay there and are copied for every forward pass.

    Raises PeftsmithError for what cannot be traced: a library that fails, a method without a trace, a GRPO task.
    """
    check(anatomy, request)
    traced = trace({**arguments_of(anatomy, request), "frozen": list(frozen), "loop": loop}, environment)
    found = memory.estimate(anatomy, request)
    low, likely, high = memory.CUDA_CONTEXT
    allocated, reserved = (
        memory.Range(*(int(traced[name] * factor) for factor in SPREAD)) for name in ("allocated", "reserved")
    )
    device = memory.Range(reserved.low + low, reserved.likely + likely, reserved.high + high)
    about = {name: traced[name] for name in ("how", "layers", "substitutions", "seconds")}
    precise = replace(
        found, allocated=allocated, reserved=reserved, device=device, trainable=traced["trainable"], moment="traced"
    )
    return precise, about


def trace(arguments: dict[str, Any], environment: Environment) -> dict[str, Any]:
    """What worker/jobs/trace.py returns for `arguments`; cached by arguments and library versions."""
    key = files.sha256_json([_FORMAT, arguments, environment.key])[:32]
    place = files.cache_folder("traces") / f"{key}.json"
    if place.is_file():
        kept = files.read_json(place, largest=1 << 20)
        if isinstance(kept, dict) and {"allocated", "reserved", "how"} <= kept.keys():
            return kept
    answer = client.call(environment, "trace", arguments, timeout=SECONDS)
    files.write_json(place, answer)
    return answer


def arguments_of(anatomy: Anatomy, request: Request) -> dict[str, Any]:
    """The request as the trace job takes it. Raises PeftsmithError for what has no trace."""
    if request.task not in _TASKS or request.device != "cuda" or request.attention == "eager" or request.gpus > 1:
        raise PeftsmithError(
            "There is no trace for this: precise mode covers one GPU, fused attention, and no GRPO",
            value={"task": request.task, "device": request.device, "gpus": request.gpus},
            next_step="Leave precise out: the formulas cover it.",
        )
    request = request.laid_out()
    numbers = memory.numbers_of(anatomy, request)
    stored = request.base_format
    if stored not in (None, "none", *_QUANTISERS):
        raise PeftsmithError(
            "There is no trace for a base in this format", value=stored, next_step="Leave precise out: the formulas do."
        )
    return {
        "config": dict(anatomy.config),
        "task": _TASKS[request.task],
        "dtype": _DTYPES[request.precision],
        "method": _method(anatomy, request),
        "adapter_dtype": "float32" if numbers.adapter == 4 else "bfloat16",
        "autocast": numbers.autocast,
        "quantization": _QUANTISERS.get(stored) if stored and stored != "none" else None,
        "kbit_prepared": request.kbit_prepared and not numbers.autocast,
        "batch": request.batch_size * (2 if request.task == "dpo" else 1),
        "length": request.sequence_length,
        "padded": numbers.masked,
        "attention": request.attention,
        "checkpointing": request.gradient_checkpointing,
        "loss": request.loss if request.loss in ("trl_chunked", "liger") else "stock",
        "optimizer": request.optimizer,
    }


def _method(anatomy: Anatomy, request: Request) -> dict[str, Any] | None:
    kind = request.peft_type
    if kind is None:
        return None
    fields: dict[str, Any] = {"peft_type": kind, **_NEEDED.get(kind, {})}
    if kind == "OFT":  # takes one of the two
        fields |= {"r": 0} if request.options.get("oft_block_size") else {"oft_block_size": 0}
    if (kind not in methods.WHOLE_MODEL or kind == "XLORA") and "target_modules" not in fields:
        fields |= targets.fields_of(anatomy, request.targets, kind)
    if request.dropout and kind == "LORA":
        fields["lora_dropout"] = 0.1
    return {**fields, **request.method_options}
