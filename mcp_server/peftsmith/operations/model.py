"""Operations on base models, and on adapters of them.

Knows: parameters and descriptions of inspecting a base, finding target modules, inspecting an adapter.
Does not know: how it is done: every body resolves its paths, imports its stage and calls one function.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from peftsmith import files
from peftsmith.operations.parameters import Exact, Model, Preset, Result, Revision, result_of


def inspect_model(model: Model, revision: Revision = None, exact: Exact = False) -> Result:
    """What a base model is, read from config.json, the tokenizer files and the safetensors or GGUF headers without
    loading a weight: architecture, exact parameter count, linear modules, tied embeddings, quantisation, chat template,
    special tokens, licence, whether access is gated."""
    from peftsmith.model import skeleton

    body = skeleton.inspect(model, revision, files.resolve("."), exact_modules=exact)
    return result_of(body.findings, model=body.to_json())


def find_target_modules(
    model: Model,
    rank: Annotated[int, Field(ge=1, description="LoRA rank.")] = 16,
    preset: Annotated[Preset | None, Field(description="Only this choice; all of them when left out.")] = None,
    method: Annotated[str, Field(description="PEFT type to count trainable parameters for.")] = "lora",
    include: Annotated[
        Literal["router", "head", "tower"] | None, Field(description="Also adapt these; never done unasked.")
    ] = None,
    most_share: Annotated[
        float | None, Field(gt=0, le=1, description="Name the choice that trains at most this share of all parameters.")
    ] = None,
    config: Annotated[
        dict[str, Any] | None,
        Field(description="Judge these fields of a PEFT config as well: target_modules, target_parameters and so on."),
    ] = None,
    rank_pattern: Annotated[
        dict[str, int] | None, Field(description="Other ranks by module name ending or pattern, as in LoraConfig.")
    ] = None,
    exact: Exact = False,
    revision: Revision = None,
) -> Result:
    """Which modules an adapter should reach, as the exact value for PEFT, with layers matched out of layers present,
    exact trainable parameters and share at this rank, and which servers can serve it."""
    from peftsmith.model import skeleton, targets

    body = skeleton.inspect(model, revision, files.resolve("."), exact_modules=exact)
    found = targets.find(
        body,
        rank=rank,
        preset=preset,
        include=(include,) if include else (),
        method=method.upper(),
        rank_pattern=rank_pattern,
    )
    if config:
        found.append(targets.own(body, config, rank=rank, method=method.upper(), rank_pattern=rank_pattern))
    fitting = targets.smallest(body, rank=rank, most_share=most_share, method=method.upper()) if most_share else None
    return result_of(
        [*body.findings, *(f for choice in found for f in choice.findings)],
        model=body.id,
        rank=rank,
        choices=[choice.to_json() for choice in found],
        within_share={"preset": fitting.preset, "rank": fitting.rank} if fitting else None,
    )


def inspect_adapter(
    adapter: Annotated[str, Field(description="Folder with adapter_config.json and adapter_model.safetensors.")],
) -> Result:
    """Whether an adapter is sound (tensors present, lora_B not zero, no NaN, base named) and which servers can
    serve it."""
    from peftsmith.adapter import inspect

    report = inspect.inspect(files.resolve(adapter))
    return result_of(report.findings, adapter=report.to_json())
