"""A training job as the memory estimate takes it, and what of it cannot be estimated.

Knows: the fields, their limits, and which models and values have formulas.
Does not know: the formulas (memory.py, activations.py, methods.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from peftsmith.errors import PeftsmithError
from peftsmith.knowledge import methods as known
from peftsmith.model import methods, targets, weights
from peftsmith.model.anatomy import Anatomy
from peftsmith.model.losses import LOSSES
from peftsmith.model.methods_defaults import DEFAULTS

LORA_RANK = 16
PRECISION_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
OPTIMIZERS = (
    "adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adafactor", "sgd",
    "lion_32bit", "lion_8bit", "lora_fa",
)  # fmt: skip
QUANTIZATIONS = ("none", *weights.PER_PARAMETER)
TASKS = ("sft", "dpo", "grpo", "classification", "seq2seq")
SHARDINGS = ("none", "ddp", "zero2", "zero3", "fsdp2")
CHOICES: Mapping[str, tuple[str, ...]] = {
    "precision": tuple(PRECISION_BYTES),
    "quantization": QUANTIZATIONS,
    "optimizer": OPTIMIZERS,
    "loss": LOSSES,
    "device": ("cuda", "cpu"),
    "attention": ("sdpa", "flash", "eager"),
    "task": TASKS,
    "sharding": SHARDINGS,
    "offload": ("none", "optimizer", "all"),
}
_LARGEST = {
    "batch_size": 65536, "sequence_length": 1 << 24, "gpus": 65536, "generations": 4096, "completion_length": 1 << 24,
    "target_length": 1 << 24, "device_bytes": 1 << 50,
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """A training job. Lengths in tokens (the longest row of a batch), batch in rows on one device.

    `method` is "full" or a PEFT type in any case ("lora", "ia3", "prompt_tuning"); "qlora" is LoRA on an NF4 base with
    double quantisation. `rank` None means 16 for LoRA and PEFT's own default for any other method. `options` are
    further fields of PEFT's config class. `targets` is a preset, a list of names, or any other value that PEFT takes.
    The last fields default to what the generated scripts do: autocast with bf16 and fp16, adapters in float32 (TRL
    casts those on a quantised base to bf16), no k-bit preparation, SDPA.
    `quantization` None means: as the base is stored. `padded` None means: when a batch has more than one row.
    `flattened`: the sequences of a batch are laid end to end into one, as packed rows are.
    `device_bytes` is the device's memory, near which the allocator gives back what it caches; None: there is room.
    `target_length` is the decoder's length of a seq2seq row, `completion_length` and `generations` are GRPO's.
    """

    method: str = "lora"
    rank: int | None = None
    targets: str | list[str] = "all-linear"
    batch_size: int = 1
    sequence_length: int = 1024
    precision: str = "bf16"
    gradient_checkpointing: bool = True
    optimizer: str = "adamw_torch_fused"
    loss: str = "trl_chunked"
    device: str = "cuda"
    quantization: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    task: str = "sft"
    autocast: bool | None = None
    adapter_bytes: int | None = None
    kbit_prepared: bool = False
    dropout: bool = False
    attention: str = "sdpa"
    padded: bool | None = None
    flattened: bool = False
    accumulates: bool = False
    target_length: int | None = None
    completion_length: int = 512
    generations: int = 8
    labels: int = 2
    gpus: int = 1
    sharding: str = "none"
    offload: str = "none"
    device_bytes: int | None = None

    @property
    def peft_type(self) -> str | None:
        """PEFT's own name of the method; None for full fine-tuning."""
        name = self.method.upper()
        return None if name == "FULL" else "LORA" if name == "QLORA" else name

    @property
    def method_options(self) -> dict[str, Any]:
        """Fields of the method's config, the rank under its own name there; a method without one has none. OFT takes a
        number of blocks (r) or their size, the other is then 0."""
        rank = LORA_RANK if self.rank is None and self.peft_type == "LORA" else self.rank
        named = next((name for name in ("init_r", "r") if name in DEFAULTS.get(self.peft_type or "", ())), None)
        if rank is None or named is None:
            return dict(self.options)
        if self.peft_type == "OFT":
            return {
                **self.options,
                **({"r": 0} if self.options.get("oft_block_size") else {"r": rank, "oft_block_size": 0}),
            }
        return {named: rank, **self.options}

    def laid_out(self) -> Request:
        """The step as the model sees it. A flattened batch is one sequence; without FlashAttention a mask of its length
        squared keeps its rows apart (transformers' masking_utils.py, packed_sequence_mask_function)."""
        if not self.flattened:
            return self
        return replace(
            self,
            batch_size=1,
            sequence_length=self.batch_size * self.sequence_length,
            padded=self.attention != "flash",
            flattened=False,
        )

    @property
    def base_format(self) -> str | None:
        """The quantisation asked for: stated, or implied by "qlora"."""
        return "nf4_double" if self.quantization is None and self.method.lower() == "qlora" else self.quantization


# Fields that few jobs need to state, and what each may be.
DETAILS: Mapping[str, type] = {
    "autocast": bool, "kbit_prepared": bool, "dropout": bool, "accumulates": bool, "adapter_bytes": int,
    "target_length": int, "completion_length": int, "generations": int, "labels": int,
}  # fmt: skip


def with_details(request: Request, details: Mapping[str, Any]) -> Request:
    """The request with fields of DETAILS, `packing` (rows share sequences, which a batch lays into one), and, by any
    other name, fields of PEFT's config. Raises PeftsmithError for a value of the wrong type."""
    changes: dict[str, Any] = {}
    options = dict(request.options)
    for name, value in details.items():
        kind = bool if name == "packing" else DETAILS.get(name)
        if kind is None:
            options[name] = value
        elif type(value) is not kind:
            raise PeftsmithError(
                f"{name} must be {'true or false' if kind is bool else 'a whole number'}",
                value=value,
                next_step="Correct it.",
            )
        elif name == "packing":
            changes["flattened"] = value
        else:
            changes[name] = value
    return replace(request, **changes, options=options)


def check(anatomy: Anatomy, request: Request) -> None:
    """Refuse what cannot be estimated, with a PeftsmithError that says what can."""
    if request.rank is not None:
        targets.check_rank(request.rank)
    for name, largest in _LARGEST.items():
        value = getattr(request, name)
        if value is not None and (type(value) is not int or not 1 <= value <= largest):
            raise PeftsmithError(
                f"{name} must be a whole number from 1 to {largest}", value=value, next_step="Correct it."
            )
    for name, values in CHOICES.items():
        value = getattr(request, name)
        if value is not None and value not in values:
            raise PeftsmithError(
                f"There is no estimate for this {name}", value=value, next_step=f"Use {', '.join(values)}."
            )
    if request.peft_type in known.bottlenecks():
        raise PeftsmithError(
            "No memory is estimated for bottleneck adapters, so that nothing can be planned by it",
            value=request.method,
            next_step="Plan with lora; then write the method into plan.yaml, without lora's fields, and generate.",
        )
    if request.peft_type is not None and request.peft_type not in methods.METHODS:
        raise PeftsmithError(
            "There is no estimate for this method",
            value=request.method,
            next_step=f"Use full, qlora, {', '.join(name.lower() for name in methods.METHODS)}.",
        )
    if request.peft_type is None and (request.base_format or "none") != "none":
        raise PeftsmithError(
            "Full fine-tuning of quantised weights is not possible",
            value=request.base_format,
            next_step="Leave quantization out, or take qlora.",
        )
    if not anatomy.supported:
        raise PeftsmithError(
            f"The modules of {anatomy.model_type} models are not known, so its memory would be a guess",
            value=anatomy.id,
            next_step="Give the folder with the safetensors files, or a training environment (make_environment).",
        )
