"""What CUDA's own kernels keep where the meta device runs others: attention and dropout.

Knows: what fused attention saves and which of its ways a class takes, what dropout saves.
Does not know: quantised layers and losses (trace_model.py), how a step runs (trace_step.py). Meant for a process that
traces and ends: functions of torch are replaced for as long as it lives.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function

_REAL_AUTOCAST, _REAL_IS_AUTOCAST, _REAL_DTYPE = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype
ATTENTION = "peftsmith_traced"


class Attend(torch.autograd.Function):
    """What a fused attention kernel keeps: query, key, value, output, log-sum-exp and, with a mask, the bias."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: Any) -> torch.Tensor:
        out = torch.empty(
            (query.shape[0], query.shape[2], query.shape[1], value.shape[3]), dtype=query.dtype, device=query.device
        ).transpose(1, 2)
        lse = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, lse, bias)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **_: Any
) -> tuple[torch.Tensor, None]:
    """In place of SDPA and FlashAttention in transformers: (batch, heads, length, width) in, (batch, length, heads,
    width) out."""
    return fused(query, key, value, attention_mask).transpose(1, 2).contiguous(), None


def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, **rest: Any) -> Any:
    """In place of F.scaled_dot_product_attention, which autocast gives 16-bit inputs (a torch function of its own)."""
    if has_torch_function((query,)):
        return handle_torch_function(fused, (query,), query, key, value, attn_mask, **rest)
    from transformers.integrations.sdpa_attention import repeat_kv

    if attn_mask is not None and attn_mask.dtype == torch.bool:  # becomes a bias for every layer
        attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device=query.device)
    groups = query.shape[1] // key.shape[1]
    if attn_mask is not None and groups > 1:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if attn_mask is None and query.dtype == torch.float32 and groups > 1:
        return _in_full(query, repeat_kv(key, groups), repeat_kv(value, groups))
    return Attend.apply(query, key, value, attn_mask)


def _in_full(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The math kernel, which float32 with grouped queries falls back to: it keeps all probabilities."""
    return torch.softmax(query @ key.transpose(2, 3), dim=-1) @ value


def _flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> Any:
    """In place of transformers' _flash_attention_forward: (batch, length, heads, width) in and out."""
    return fused(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)).transpose(1, 2)


def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """In place of F.dropout: CUDA's kernel keeps a mask of bytes, the meta device's would keep one of the input's
    format (aten/src/ATen/native/Dropout.cpp, is_fused_kernel_acceptable)."""
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


def _autocast(device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None) -> Any:
    """In place of torch.autocast, which does not know meta tensors: where code suspends it, the trace's own mode is
    suspended (PEFT's ParamWrapper works out its product so)."""
    if device_type != "meta":
        return _REAL_AUTOCAST(device_type, dtype, enabled, cache_enabled)
    return nullcontext() if enabled else torch._C.DisableTorchFunction()


def _is_autocast(device_type: Any = None) -> bool:
    """In place of torch.is_autocast_enabled: classes ask it before they cast float32 inputs of FlashAttention to 16
    bits, which the stand-in does itself."""
    return device_type == "meta" or bool(_REAL_IS_AUTOCAST(device_type) if device_type else _REAL_IS_AUTOCAST())


def _autocast_dtype(device_type: Any) -> torch.dtype:
    return torch.bfloat16 if device_type == "meta" else _REAL_DTYPE(device_type)


_TORCH = {"autocast": _autocast, "is_autocast_enabled": _is_autocast, "get_autocast_dtype": _autocast_dtype}


def implementation(kind: Any, *, flash: bool) -> str:
    """The attention that transformers takes for a class when SDPA or FlashAttention is wanted: "eager" where the class
    has neither. Makes the stand-ins known to transformers and torch."""
    from transformers import AttentionInterface, PreTrainedModel
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, _mask)
    for name, stand_in in _TORCH.items():
        setattr(torch, name, stand_in)
    for name, stand_in in (("scaled_dot_product_attention", fused), ("dropout", dropout)):
        setattr(F, name, stand_in)
    if not (kind._supports_flash_attn if flash else kind._supports_sdpa):
        return "eager"
    home = sys.modules[kind.__module__]
    if hasattr(home, "ALL_ATTENTION_FUNCTIONS"):
        return ATTENTION
    if not flash:
        return "sdpa"
    home.__dict__["_flash_attention_forward"] = _flash
    # a check for the flash_attn package, which the stand-in does without
    PreTrainedModel._check_and_adjust_attn_implementation = lambda _, wanted, *__, **___: wanted
    return "flash_attention_2"


def _mask(batch_size: int, q_length: int, kv_length: int, *_: Any, config: Any = None, **__: Any) -> Any:
    """A mask of the right shape where rows are padded; None where the kernel needs none."""
    if not getattr(config, "traced_mask", False):
        return None
    return torch.empty((batch_size, 1, int(q_length), int(kv_length)), dtype=torch.bool, device="meta")
