"""A module table with its layers taken out of the names.

Knows: templates by layer kind, shapes and widths, the kinds of a stack's layers, the rules that give a kind.
Does not know: how a table is made (worker/table.py), which rule holds (layers.py).
"""

from __future__ import annotations

import re
from typing import Any


class Built:
    """A table with its layers taken out of the names: templates by layer kind, shapes and widths."""

    def __init__(self, document: dict[str, Any]) -> None:
        layers: dict[str, dict[int, list[Any]]] = {}
        self.modules: dict[str, tuple[str, str, dict[str, tuple[int, ...]]]] = {}
        self.kinds: dict[str, list[str]] = {}
        self.depthwise: set[str] = set()
        for name, kind, inputs, outputs, parameters, cls in document["modules"]:
            row = (kind, cls, {leaf: tuple(shape) for leaf, shape in parameters.items()})
            numbered = re.match(r"^(.*?)\.(\d+)(?:\.(.+))?$", name)
            if numbered is None:
                self.modules[name] = row
                self.depthwise |= {name} if _is_depthwise(kind, inputs, outputs, parameters) else set()
            else:
                stack, index, rest = numbered.group(1), int(numbered.group(2)), numbered.group(3) or ""
                alone = _is_depthwise(kind, inputs, outputs, parameters)
                layers.setdefault(stack, {}).setdefault(index, []).append((rest, row, alone))
        for stack, by_index in layers.items():
            labels: dict[tuple[str, ...], str] = {}
            for index in sorted(by_index):
                inner = tuple(sorted(f"{rest}:{row[0]}" for rest, row, _ in by_index[index]))
                label = labels.setdefault(inner, str(len(labels)))
                self.kinds.setdefault(stack, []).append(label)
                for rest, row, alone in by_index[index]:
                    self.modules.setdefault(f"{stack}|{label}|{rest}", row)
                    self.depthwise |= {f"{stack}|{label}|{rest}"} if alone else set()
        self.shapes = {name: tuple(row[2]) for name, row in self.modules.items()}
        self.widths = {
            (name, leaf, axis): width
            for name, (_, _, shapes) in self.modules.items()
            for leaf, shape in shapes.items()
            for axis, width in enumerate(shape)
        }
        self.tied = {_template(k): _template(v) for k, v in document["tied"].items()}
        self.containers = sorted({_template(name) for name in document["containers"]})


def _is_depthwise(kind: str, inputs: int, outputs: int, parameters: dict[str, list[int]]) -> bool:
    """A convolution with one filter a channel, which its weight's shape alone does not tell."""
    return kind == "conv" and inputs == outputs > 1 and parameters["weight"][1] == 1


def _template(name: str) -> str:
    return re.sub(r"^(.*?)\.(\d+)(?=\.|$)", r"\1.{}", name)


def kind_by(rule: list[Any], index: int, value: int) -> str:
    """The kind of layer `index` by a "first" or "every" rule whose field has this value."""
    if rule[0] == "first":
        return str(rule[2] if index < value else rule[3])
    return str(rule[3] if (index + rule[2]) % value == 0 else rule[4])
