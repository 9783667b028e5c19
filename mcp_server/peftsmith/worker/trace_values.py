"""Answers to questions about values, which tensors on the meta device do not have.

Knows: how one operation that needs values is carried out on made-up ones, and which results go back to meta.
Does not know: which model asks, or what a trace records. Shapes that depend on values become those of the made-up ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

STD = 0.02  # of made-up weights and activations: the usual initializer_range
# An operation on more elements than this (the whole of a large embedding) is refused: it would take minutes.
LARGEST = 1 << 28


class Values(TorchDispatchMode):
    """Lets code that was written for real tensors run on meta tensors; `asked` counts the made-up answers."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.answer(function, args, kwargs or {})

    def answer(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of an operation, on made-up values where the meta device has no result."""
        try:
            return function(*args, **kwargs)
        except (NotImplementedError, RuntimeError) as error:
            if not _lacks_values(error, args, kwargs):
                raise
        self.asked += 1
        return on_made_up(function, args, kwargs)


def _lacks_values(error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    tensors = [each for each in torch.utils._pytree.tree_iter((args, kwargs)) if isinstance(each, torch.Tensor)]
    on_meta = [each for each in tensors if each.device.type == "meta"]
    if not on_meta or sum(each.numel() for each in on_meta) > LARGEST:
        return False
    text = str(error)
    return isinstance(error, NotImplementedError) or "meta" in text.lower() or "data-dependent" in text


def on_made_up(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Carry out one operation with numbers in place of meta tensors. Results that would be on meta are put there."""
    originals: dict[int, torch.Tensor] = {}

    def filled(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.device.type != "meta":
            return value
        made = made_up(value)
        originals[id(made)] = value
        kept.append(made)
        return made

    kept: list[torch.Tensor] = []
    given = {id(each) for each in torch.utils._pytree.tree_iter((args, kwargs)) if isinstance(each, torch.Tensor)}
    to_meta = "device" not in kwargs or torch.device(kwargs["device"] or "meta").type == "meta"
    stays = {**kwargs, "device": None} if to_meta and "device" in kwargs else kwargs
    result = function(*tree_map(filled, args), **tree_map(filled, stays))

    def back(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or id(value) in given:
            return value
        if id(value) in originals:
            return originals[id(value)]
        return torch.empty_like(value, device="meta") if to_meta else value

    return tree_map(back, result)


def made_up(like: torch.Tensor) -> torch.Tensor:
    """Numbers of this shape: small normal ones, zeros for whole numbers, true for truth values."""
    if like.is_floating_point() or like.is_complex():
        return torch.randn(like.shape, dtype=like.dtype) * STD
    if like.dtype == torch.bool:
        return torch.ones(like.shape, dtype=torch.bool)
    return torch.zeros(like.shape, dtype=like.dtype)
