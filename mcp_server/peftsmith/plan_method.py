"""The part of a plan that says what is trained, and what all parts of a plan have in common.

Knows: the fields of `method`, how they are held against PEFT's own config classes, what text a plan may hold.
Does not know: the other parts of a plan (plan.py), or whether method, task and base go together (project/fitness.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from peftsmith.knowledge import method_options, methods

# Control characters, and the line separators that YAML would fold into a space.
_PLAIN = re.compile(r"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]*")

LONGEST_TEXT = 20_000  # characters
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
ShortText = Annotated[str, Field(min_length=1, max_length=500)]


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


class Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @field_validator("*", mode="after")
    @classmethod
    def _no_control_characters(cls, value: object) -> object:
        if any(not _PLAIN.fullmatch(text) for text in _texts(value)):
            raise ValueError("control characters and line separators are not allowed in a plan")
        return value


class Quantization(Part):
    """bitsandbytes quantisation of the frozen base (QLoRA)."""

    bits: Literal[4, 8] = 4
    type: Literal["nf4", "fp4"] = "nf4"
    double: bool = True


class Method(Part):
    """What is trained: `peft_type` is PEFT's name of the method, or FULL for all weights (with the reason why).

    rank, alpha, dropout and target_modules are what PEFT's config calls r, lora_alpha and so on; null leaves them to
    PEFT. Where a plan is silent on them they get the method's defaults (knowledge/methods.toml). `config` holds any
    other field of that config under PEFT's own name; each is checked against PEFT's types
    (knowledge/peft_methods.json).
    """

    peft_type: ShortText = "LORA"
    rank: Annotated[int, Field(ge=1, le=4096)] | None = None
    alpha: Annotated[int, Field(ge=1, le=65536)] | None = None
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    target_modules: Annotated[list[ShortText], Field(min_length=1, max_length=500)] | ShortText | None = None
    config: Annotated[dict[str, Any], Field(max_length=100)] = {}
    quantization: Quantization | None = None
    reason: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, document: Any) -> Any:
        peft_type = document.get("peft_type", "LORA") if isinstance(document, dict) else methods.FULL
        if peft_type not in (*methods.names(), *methods.bottlenecks()):
            return document
        known = methods.method(peft_type)
        if known.with_rank and document.get("rank") and isinstance(document.get("config", {}), dict):
            document = {**document, "config": {**known.with_rank, **document.get("config", {})}}
        return {**known.defaults, **document}

    @model_validator(mode="after")
    def _fits_peft(self) -> Method:
        faults = method_options.faults_of(self.peft_type, self.first_class(), self.config)
        if self.peft_type == methods.FULL and not self.reason:
            faults.append("full fine-tuning needs method.reason: why an adapter is not enough")
        if self.peft_type == methods.FULL and self.quantization is not None:
            faults.append("quantised weights cannot be trained: full fine-tuning takes no quantization")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def first_class(self) -> dict[str, Any]:
        """rank, alpha, dropout and target_modules as far as the plan sets them, by these names."""
        named = {name: getattr(self, name) for name in ("rank", "alpha", "dropout", "target_modules")}
        return {name: value for name, value in named.items() if value is not None}

    def options(self) -> dict[str, Any]:
        """Everything that the plan sets, by the names of PEFT's config class. Empty for full fine-tuning."""
        if self.peft_type == methods.FULL:
            return {}
        names = methods.method(self.peft_type).names
        return {names[name]: value for name, value in self.first_class().items()} | self.config

    @property
    def full(self) -> bool:
        return self.peft_type == methods.FULL
