"""A model as a table of its modules: the one description that headers, config.json and the real classes all lead to.

Knows: what a module is (name, kind, widths, parameters), how a skeleton is counted and written as JSON.
Does not know: where a skeleton comes from (layouts.py, stored.py, skeleton.py) or what a module is for (roles.py).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Literal

Kind = Literal["linear", "conv1d", "embedding", "conv", "norm", "experts", "other"]
Source = Literal["classes", "header", "config"]
_LAYER = re.compile(r"\.\d+\.")
KINDS: tuple[Kind, ...] = ("linear", "conv1d", "embedding", "conv", "norm", "experts", "other")


@dataclass(frozen=True)
class Module:
    """One module that has parameters of its own, by its full path in the transformers class.

    `inputs` and `outputs` in elements: features of a linear layer, channels of a convolution, (rows, width) of an
    embedding; 0 where they mean nothing. `parameters` maps own parameters (weight, bias, gate_up_proj) to shapes.
    """

    name: str
    kind: Kind
    inputs: int
    outputs: int
    parameters: Mapping[str, tuple[int, ...]]
    cls: str = ""

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @cached_property
    def alike(self) -> tuple[Hashable, ...]:
        """The same for modules that only their layer's number tells apart."""
        shapes = tuple(self.parameters.items())
        return _LAYER.sub(".0.", self.name), self.kind, self.inputs, self.outputs, self.cls, shapes

    @property
    def elements(self) -> int:
        return sum(map(prod, self.parameters.values()))


@dataclass(frozen=True)
class Skeleton:
    """Every module of a model. `containers` have no parameters of their own (activations, blocks, dropout).

    `tied` maps a parameter to the one whose storage it shares; it is not counted again.
    """

    architecture: str
    model_type: str
    source: Source
    modules: tuple[Module, ...]
    containers: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The path of everything that a name can match, containers too."""
        return (*(module.name for module in self.modules), *self.containers)

    @cached_property
    def parameters(self) -> int:
        """Parameters as transformers counts them: shared ones once."""
        return sum(
            prod(shape)
            for module in self.modules
            for leaf, shape in module.parameters.items()
            if f"{module.name}.{leaf}" not in self.tied
        )

    def to_json(self) -> dict[str, Any]:
        rows = [[m.name, m.kind, m.inputs, m.outputs, {k: list(v) for k, v in m.parameters.items()}, m.cls]
                for m in self.modules]  # fmt: skip
        return {
            "architecture": self.architecture,
            "model_type": self.model_type,
            "source": self.source,
            "modules": rows,
            "containers": list(self.containers),
            "tied": dict(self.tied),
        }


def from_json(document: Mapping[str, Any]) -> Skeleton:
    """The skeleton of `to_json`'s document. Raises KeyError, TypeError or ValueError for anything else."""
    return Skeleton(
        architecture=document["architecture"],
        model_type=document["model_type"],
        source=document["source"],
        modules=tuple(
            Module(name, kind, inputs, outputs, {k: tuple(v) for k, v in parameters.items()}, cls)
            for name, kind, inputs, outputs, parameters, cls in document["modules"]
        ),
        containers=tuple(document["containers"]),
        tied=dict(document["tied"]),
    )
