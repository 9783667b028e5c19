"""The words in which the cost of an adapter on one module is stated, and PEFT's rules that several methods share.

Knows: number formats of a run, options with PEFT's defaults behind them, rank patterns, which module kinds may come.
Does not know: any method (methods_lora.py and its siblings) or any bytes (methods_table.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from peftsmith.errors import PeftsmithError
from peftsmith.model.methods_defaults import DEFAULTS
from peftsmith.model.modules import Kind, Module

Column = Literal["half", "autocast", "cast", "full"]


@dataclass(frozen=True)
class Numbers:
    """How adapters compute: bytes of linear outputs (`wide`) and of adapter weights, autocast, adapter dropout > 0."""

    wide: int
    adapter: int
    autocast: bool
    dropout: bool

    @property
    def column(self) -> Column:
        """The table's column. Half adapters under autocast compute as without it; any adapter on float32
        activations is priced as float32, an upper bound for half adapters there."""
        if self.wide == 4:
            return "full"
        if self.adapter == 2:
            return "cast"
        return "autocast" if self.autocast else "half"


@dataclass(frozen=True)
class Cost:
    """What one adapted module adds to the frozen one, in bytes unless said otherwise; methods.cost explains each.

    `peaks` are the moments at which most is alive, each as bytes a token and bytes besides; `temporary_per_token`
    and `temporary` are the largest of either, so they bound every moment; `temporaries` is exact.
    """

    trainable: int
    frozen: int
    saved_per_token: float
    saved: int
    temporary_per_token: float
    temporary: int
    shared_input_per_token: float = 0.0
    frozen_bytes: int = 0
    peaks: tuple[tuple[float, float], ...] = ()

    def temporaries(self, tokens: int) -> int:
        """Bytes alive only during this module's forward or backward pass over so many tokens."""
        return round(max((tokens * each + rest for each, rest in self.peaks), default=0.0))


@dataclass(frozen=True)
class Adapter:
    """An adapter on a module: `trainable` parameters, the table's `row`, and the widths that the row's letters mean.

    `frozen` counts further elements that the module holds, `frozen_bytes` their bytes.
    """

    trainable: int
    row: str
    symbols: Mapping[str, float]
    frozen: int = 0
    frozen_bytes: int = 0


class Options(dict[str, Any]):
    """A config's options with PEFT's defaults behind them; an option that no formula uses is carried, not read."""

    def __init__(self, method: str, given: Mapping[str, Any], numbers: Numbers) -> None:
        super().__init__({**DEFAULTS.get(method, {}), **given})
        self.method = method
        self.numbers = numbers

    def of(self, option: str, pattern: str, module: Module) -> Any:
        """The option for this module: the first pattern that ends its name counts (utils/other.py get_pattern_key)."""
        for key, value in (self.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({key})$", module.name):
                return value
        return self[option]

    def rank(self, module: Module) -> int:
        """`r` or its `rank_pattern` for this module. Raises PeftsmithError when it is not a positive number."""
        value = self.of("r", "rank_pattern", module)
        if not isinstance(value, int) or value <= 0:
            raise PeftsmithError(
                f"{self.method} needs a rank of at least 1", value=value, next_step="Set r to 1 or more."
            )
        return value

    def bias(self, module: Module) -> int:
        """Parameters of the base module's own bias that `bias: all` or `..._only` trains (tuners_utils.py)."""
        trained = str(self.get("bias", "none"))
        return prod(module.parameters["bias"]) if trained != "none" and "bias" in module.parameters else 0


class CostUnknown(PeftsmithError):
    """What a method adds is not known; the choice itself may be fine."""


def only(options: Options, module: Module, *kinds: Kind) -> None:
    """Refuses a module of a kind that PEFT's method does not adapt (PEFT raises ValueError for it)."""
    if module.kind not in kinds:
        raise PeftsmithError(
            f"{options.method} does not adapt {module.kind} modules",
            value=module.name,
            next_step=f"It adapts: {', '.join(kinds)}. Change target_modules or the method.",
        )


def widths(module: Module) -> tuple[int, int]:
    """(inputs, outputs) of the matrix an adapter works on; a convolution's kernel is unfolded into its inputs."""
    if module.kind != "conv":
        return module.inputs, module.outputs
    shape = module.parameters["weight"]
    if shape[1] != module.inputs:
        raise CostUnknown(
            "the cost of adapters on grouped convolutions is not known",
            value=module.name,
            next_step="Leave this module out of target_modules.",
        )
    return prod(shape[1:]), module.outputs


def divide(method: str, what: str, width: int, by: int) -> int:
    """`width` / `by`, or a refusal: PEFT raises ValueError for a module whose width its blocks do not divide."""
    if by <= 0 or width % by:
        raise PeftsmithError(
            f"{method} cannot adapt a module whose {what}, {width}, are not a multiple of {by}",
            next_step=f"Choose a size that divides {width}, or leave the module out of target_modules.",
        )
    return width // by
