"""LoRA in one file, with torch and nothing else, to see what it is.

A linear layer W stays frozen; beside it two thin matrices learn the change:

    y = W x + b + scaling * B (A x)        A: r x in,  B: out x r,  scaling = alpha / r  (rsLoRA: alpha / sqrt r)

B starts as zeros, so that training starts from the base model itself. Since the change is only B A, it can be added to
W afterwards: the merged model has the shapes of the base and costs nothing more. (Hu et al. 2021, arXiv 2106.09685;
rsLoRA: Kalajdzievski 2023, arXiv 2312.03732.) tests/examples/test_lora_from_scratch.py proves it equal to PEFT.

    model = inject(model, ["q_proj", "v_proj"], r=8, alpha=16)      # then train model as always
    save(model, "adapter.pt")
    merge(model)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn


class LoRALinear(nn.Module):
    """A frozen linear layer and its learned change of rank r; dropout falls on the change's input only."""

    def __init__(self, base: nn.Linear, r: int, alpha: float, dropout: float = 0.0, rslora: bool = False) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scaling = alpha / math.sqrt(r) if rslora else alpha / r
        self.dropout = nn.Dropout(dropout)
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.lora_A = nn.Parameter(torch.empty(r, base.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r, **like))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        change = nn.functional.linear(nn.functional.linear(self.dropout(x), self.lora_A), self.lora_B)
        return self.base(x) + change * self.scaling

    def merged(self) -> nn.Linear:
        """The base layer with the change added to its weight."""
        with torch.no_grad():
            self.base.weight += self.scaling * (self.lora_B @ self.lora_A)
        return self.base


def inject(
    model: nn.Module, targets: Iterable[str], r: int, alpha: float, dropout: float = 0.0, rslora: bool = False
) -> nn.Module:
    """Freeze the model and put a LoRALinear in the place of each linear layer whose last name is a target."""
    model.requires_grad_(False)
    names = set(targets)
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if name in names and isinstance(child, nn.Linear)
    ]
    if not found:
        raise ValueError(f"no linear layer is called {' or '.join(sorted(names))}")
    for parent, name, child in found:
        setattr(parent, name, LoRALinear(child, r, alpha, dropout, rslora))
    return model


def merge(model: nn.Module) -> nn.Module:
    """Put the merged linear layers back into their places."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoRALinear):
                setattr(parent, name, child.merged())
    return model


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """What training has changed, and nothing of the base."""
    return {name: value for name, value in model.state_dict().items() if name.endswith((".lora_A", ".lora_B"))}


def save(model: nn.Module, path: Path | str) -> None:
    torch.save(adapter_state(model), path)


def load(model: nn.Module, path: Path | str) -> None:
    """Read an adapter back into a model that inject() has prepared in the same way."""
    state = torch.load(path, weights_only=True)
    missing = adapter_state(model).keys() - state.keys()
    if missing:
        raise ValueError(f"the file lacks {sorted(missing)}")
    model.load_state_dict(state, strict=False)
