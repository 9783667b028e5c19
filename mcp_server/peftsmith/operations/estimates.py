"""Estimates before anything is paid for: memory, time, cost.

Knows: parameters and descriptions of the two estimates.
Does not know: how it is done: every body resolves its paths, imports its stage and calls one function.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from peftsmith import files
from peftsmith.operations.parameters import Method, Model, Preset, Rank, Result, Revision, result_of

Optimizer = Literal[
    "adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adafactor", "sgd",
    "lion_32bit", "lion_8bit",
]  # fmt: skip


def estimate_memory(
    model: Model,
    method: Method = "lora",
    rank: Rank = None,
    target_modules: Preset = "all-linear",
    batch_size: Annotated[int, Field(ge=1, description="Rows on the device in one step.")] = 1,
    sequence_length: Annotated[int, Field(ge=8, description="Tokens in the longest row.")] = 1024,
    precision: Literal["fp32", "bf16", "fp16"] = "bf16",
    quantization: Annotated[
        Literal["none", "nf4", "nf4_double", "fp4", "int8"] | None,
        Field(description="How the base is held; as it is stored when left out."),
    ] = None,
    gradient_checkpointing: bool = True,
    optimizer: Optimizer = "adamw_torch_fused",
    loss: Annotated[
        Literal["trl_chunked", "stock", "fused", "liger"], Field(description="stock holds all logits.")
    ] = "trl_chunked",
    attention: Literal["sdpa", "flash", "eager"] = "sdpa",
    task: Literal["sft", "dpo", "grpo", "classification", "seq2seq"] = "sft",
    gpus: Annotated[int, Field(ge=1, description="Devices; the answer is for one of them.")] = 1,
    sharding: Literal["none", "ddp", "zero2", "zero3", "fsdp2"] = "none",
    offload: Literal["none", "optimizer", "all"] = "none",
    details: Annotated[
        dict[str, Any] | None,
        Field(
            description="Seldom needed: packing, autocast, kbit_prepared, dropout, accumulates, target_length, "
            "completion_length, generations, labels; any other name is a field of PEFT's config, such as use_dora."
        ),
    ] = None,
    fits_gib: Annotated[float | None, Field(gt=0, description="Memory there is, in GiB: then says what fits.")] = None,
    gpu: Annotated[str | None, Field(description="Or a GPU by name, such as L4 or A100-80GB.")] = None,
    alternatives: Annotated[bool, Field(description="Also compare other ways to do the same job.")] = False,
    precise: Annotated[bool, Field(description="Trace the real classes (needs a training environment).")] = False,
    measured_gib: Annotated[
        float | None, Field(gt=0, description="Peak of a finished run: compared with the estimate.")
    ] = None,
    revision: Revision = None,
) -> Result:
    """How much memory fine-tuning will take: allocated, reserved and whole device with a range each, the terms it is
    made of, what it assumes, what would fit in `fits_gib` or on `gpu`, and what else could be done. An estimate."""
    from peftsmith.model import answers, skeleton
    from peftsmith.model.request import Request, with_details

    body = skeleton.inspect(model, revision, files.resolve("."))
    request = Request(
        method=method,
        rank=rank,
        targets=target_modules,
        batch_size=batch_size,
        sequence_length=sequence_length,
        precision=precision,
        quantization=quantization,
        gradient_checkpointing=gradient_checkpointing,
        optimizer=optimizer,
        loss=loss,
        attention=attention,
        task=task,
        gpus=gpus,
        sharding=sharding,
        offload=offload,
    )
    answer = answers.memory_answer(
        body,
        with_details(request, details or {}),
        gib=fits_gib,
        gpu=gpu,
        alternatives=alternatives,
        precise=precise,
        measured_gib=measured_gib,
        project=files.resolve("."),
    )
    return result_of([*body.findings, *answer.findings], **answer.parts)


def estimate_time(
    model: Model,
    tokens: Annotated[int, Field(ge=1, description="Tokens of the training rows, without padding (audit_dataset).")],
    gpu: Annotated[str, Field(description="A GPU by name, such as L4, RTX 4090 or A100-80GB.")],
    epochs: Annotated[float, Field(gt=0)] = 1.0,
    padding: Annotated[float, Field(ge=0, lt=1, description="Share of a batch that is padding; 0 when packed.")] = 0.0,
    method: Method = "lora",
    rank: Rank = None,
    batch_size: Annotated[int, Field(ge=1)] = 1,
    sequence_length: Annotated[int, Field(ge=8)] = 1024,
    gradient_checkpointing: bool = True,
    gpus: Annotated[int, Field(ge=1)] = 1,
    evaluation_tokens: Annotated[int, Field(ge=0)] = 0,
    evaluations: Annotated[int, Field(ge=0)] = 0,
    price_per_hour: Annotated[float | None, Field(gt=0, description="Of one GPU, in your currency.")] = None,
    watts: Annotated[float | None, Field(gt=0, description="That one GPU draws.")] = None,
    revision: Revision = None,
) -> Result:
    """How long training will take on a GPU, as a range, from FLOPs and bytes; with cost and energy for a price and a
    power that you give. An estimate: measure a few steps before you pay for many."""
    from peftsmith.model import memory, skeleton, speed

    body = skeleton.inspect(model, revision, files.resolve("."))
    request = memory.Request(
        method=method, rank=rank, batch_size=batch_size, sequence_length=sequence_length,
        gradient_checkpointing=gradient_checkpointing, gpus=gpus,
    )  # fmt: skip
    work = speed.Work(tokens, epochs, padding, evaluation_tokens, evaluations)
    found = speed.estimate(body, request, work, speed.gpu(gpu), price_per_hour=price_per_hour, watts=watts)
    return result_of(body.findings, estimate=found)
