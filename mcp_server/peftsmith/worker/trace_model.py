"""The model of a trace: real transformers and PEFT classes on the meta device, with stand-ins for CUDA's own kernels.

Knows: how a config is cut to a few layers of every kind, what quantised kernels and chunked losses keep on CUDA.
Does not know: attention and dropout on CUDA (trace_kernels.py), how a step runs or is written down (trace_step.py).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from peftsmith.worker import shrink, table, trace_kernels

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PEFT_TASKS = {"sequence-classification": "SEQ_CLS", "seq2seq": "SEQ_2_SEQ_LM"}
PER_WEIGHT = {"nf4": 0.5, "fp4": 0.5, "int8": 1.0, "gptq": 0.5, "awq": 0.5, "fp8": 1.0}


class Unpack(torch.autograd.Function):
    """A product with quantised weights: they are unpacked for a moment, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, outputs: int, dtype: torch.dtype) -> torch.Tensor:
        ctx.shape, ctx.dtype = (outputs, x.shape[-1]), dtype
        weight = torch.empty(ctx.shape, dtype=dtype, device=x.device)
        return (x.to(dtype) @ weight.T).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        weight = torch.empty(ctx.shape, dtype=ctx.dtype, device=grad.device)
        return (grad.to(ctx.dtype) @ weight).to(grad.dtype), None, None


class ChunkedLoss(torch.autograd.Function):
    """A loss that never holds all logits: one tile of them, and the gradient of the hidden states in float32."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, rows: int, columns: int, copies: int) -> torch.Tensor:
        tiles = [torch.empty((rows, columns), dtype=hidden.dtype, device=hidden.device) for _ in range(copies)]
        ctx.save_for_backward(torch.empty(hidden.shape, dtype=torch.float32, device=hidden.device))
        ctx.dtype = hidden.dtype
        del tiles
        return torch.empty((), dtype=torch.float32, device=hidden.device)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return ctx.saved_tensors[0].to(ctx.dtype), None, None, None


class Quantised(nn.Linear):
    """A frozen linear layer with packed weights and scales."""

    def __init__(self, inputs: int, outputs: int, kind: str, dtype: torch.dtype, *, double: bool, group: int) -> None:
        super().__init__(1, 1, bias=False, device="meta")
        self.in_features, self.out_features, self.computes_in = inputs, outputs, dtype
        weights = inputs * outputs
        packed = torch.empty(int(weights * PER_WEIGHT[kind]), dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(packed, requires_grad=False)
        scales = _scales(kind, inputs, outputs, double=double, group=group)
        self.scales = nn.Parameter(torch.empty(scales, dtype=torch.uint8, device="meta"), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Unpack.apply(x, self.out_features, self.computes_in)


def _scales(kind: str, inputs: int, outputs: int, *, double: bool, group: int) -> int:
    weights = inputs * outputs
    if kind in ("nf4", "fp4"):
        return weights // 64 + weights // (64 * 64) if double else 4 * weights // 64
    if kind in ("gptq", "awq"):
        return int(2.5 * outputs * (1 if group == -1 else -(-inputs // group))) + 4 * inputs
    return 4 * outputs


def without_logits(model: nn.Module, inputs: dict[str, Any], loss: str, vocab: int) -> Any:
    """The model's output with the loss of TRL 1.16 (tiles of 4096 x 32768) or Liger (chunks of tokens, all logits of
    each and their gradient)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    base.set_output_embeddings(nn.Identity())
    try:
        output = model(**inputs)
    finally:
        base.set_output_embeddings(head)
    hidden = output.logits
    tokens = hidden.shape[0] * hidden.shape[1]
    if loss == "liger":
        chunks = 1 << max(0, -(-vocab // hidden.shape[-1]) - 1).bit_length()
        rows, columns, copies = -(-tokens // chunks), vocab, 3
    else:
        rows, columns, copies = min(tokens, 4096), min(vocab, 32768), 1
    output.loss = ChunkedLoss.apply(hidden, rows, columns, copies)
    return output


def cut(document: dict[str, Any], counts: dict[str, int] | None) -> tuple[Any, dict[str, int]]:
    """(config with `counts` layers of each kind, layers of each kind in the whole model). None: two of each kind."""
    config = table.config_of(copy.deepcopy(document))
    text = config.get_text_config()
    name = next(each for each in shrink.COUNTS if isinstance(getattr(text, each, None), int))
    layers = getattr(text, name)
    lists = {key: value for key, value in vars(text).items() if isinstance(value, list) and len(value) == layers}
    kinds = [repr([each[index] for each in lists.values()]) for index in range(layers)]
    first = getattr(text, "first_k_dense_replace", 0) or 0
    if 0 < first < layers and not lists:
        kinds = ["dense" if index < first else "rest" for index in range(layers)]
    whole = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    wanted = dict(counts) if counts is not None else {kind: min(2, number) for kind, number in whole.items()}
    left, kept = dict(wanted), []
    for index, kind in enumerate(kinds):
        if left.get(kind, 0) > 0:
            kept.append(index)
            left[kind] -= 1
    for key, value in lists.items():
        setattr(text, key, [value[index] for index in kept])
    setattr(text, name, len(kept))
    if 0 < first < layers and not lists:
        text.first_k_dense_replace = wanted.get("dense", 0)
    return config, whole


def build(
    config: Any, task: str | None, dtype: torch.dtype, *, device: str, masked: bool, flash: bool = False
) -> nn.Module:
    """The model in this number format, nothing initialised. `masked`: attention gets a mask (rows are padded); `flash`:
    FlashAttention is asked for instead of SDPA."""
    attention = trace_kernels.implementation(table.class_of(config, task), flash=flash)
    for part in shrink.parts(config):
        part._attn_implementation = attention
        part.traced_mask = masked
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = table.class_of(config, task)(config)
    finally:
        torch.set_default_dtype(before)
    model.tie_weights()
    model.config.use_cache = False
    return model.to(dtype)


def quantise(model: nn.Module, how: dict[str, Any], dtype: torch.dtype) -> int:
    """Put packed stand-ins where a quantiser would; returns how many. The output head stays as it is."""
    head = model.get_output_embeddings()
    replaced = 0
    for name, module in list(model.named_modules()):
        shape = _sizes(module)
        if shape is not None and module is not head and shape[1] > 1:
            stand_in = Quantised(
                *shape, how["kind"], dtype,
                double=bool(how.get("double")), group=int(how.get("group") or 128),
            )  # fmt: skip
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, stand_in)
            replaced += 1
    return replaced


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of what quantisers replace: linear layers, and GPT-2's Conv1D, which lies the other way (trans-
    formers' integrations/bitsandbytes.py, replace_with_bnb_linear)."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return (int(module.nx), int(module.nf)) if isinstance(module, Conv1D) else None


def adapt(
    model: nn.Module, method: dict[str, Any] | None, adapter_dtype: torch.dtype, task: str | None = None
) -> nn.Module:
    """Wrap with PEFT; adapter weights in `adapter_dtype`. None: everything trains."""
    if method is None:
        return model
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    fields = dict(method)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(fields.pop("peft_type"))]
    rank = fields.pop("rank", None)
    named = next((name for name in ("init_r", "r") if name in kind.__dataclass_fields__), None)
    if rank is not None and named is not None:
        fields.setdefault(named, rank)
    if "adapters" in fields:  # X-LoRA mixes adapters, which PEFT numbers; nobody needs their checkpoints here
        expert = {"r": rank or 8, "target_modules": fields.pop("target_modules", None)}
        fields["adapters"] = {str(number): expert for number in range(len(fields["adapters"]))}
        fields["hidden_size"] = fields.get("hidden_size") or model.config.get_text_config().hidden_size
    fields.setdefault("task_type", _PEFT_TASKS.get(task or "", "CAUSAL_LM"))
    config = kind(**fields)
    wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=adapter_dtype == torch.float32)
    if adapter_dtype != torch.float32:  # PEFT itself makes adapters float32; TRL casts those on a quantised base
        for parameter in wrapped.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.data = parameter.data.to(adapter_dtype)
    return wrapped
