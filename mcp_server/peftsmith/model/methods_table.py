"""The table of what adapters keep and use (knowledge/adapters.toml), read and worked out for one module.

Knows: how a row's terms are written and summed.
Does not know: which row a method takes or where the widths come from (methods_*.py).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from math import ceil, prod

from peftsmith.model.methods_base import Adapter, Column, Cost, Numbers
from peftsmith.model.modules import Module

_TERM = re.compile(r"([+-]?) ?(\d+(?:\.\d+)?)([A-Za-z]*)")
_SECTION = re.compile(r"^(?=\[)", re.MULTILINE)
_COLUMNS: tuple[Column, ...] = ("half", "autocast", "cast", "full")


@dataclass(frozen=True)
class Sum:
    """A sum of products of widths: {"Ni": 4.0, "io": 2.0} is 4 N i + 2 i o; N, the tokens, is the variable."""

    terms: Mapping[str, float]

    def line(self, symbols: Mapping[str, float]) -> tuple[float, float]:
        """(bytes a token, bytes besides) for these widths."""
        each = rest = 0.0
        for letters, number in self.terms.items():
            value = number * prod(symbols[letter] for letter in letters if letter != "N")
            if "N" in letters:
                each += value
            else:
                rest += value
        return each, rest


@dataclass(frozen=True)
class Cell:
    """One row in one number format."""

    kept: Sum
    peaks: tuple[Sum, ...]
    shared: bool


def parse(text: str) -> Sum:
    """The sum that the table writes as "4Ni + 2io - 2No". Raises ValueError for anything else."""
    terms: dict[str, float] = {}
    if text != "0":
        for sign, number, letters in _TERM.findall(text):
            terms[letters] = terms.get(letters, 0.0) + float(sign + number)
        if _TERM.sub("", text).strip() or not terms:
            raise ValueError(f"not a sum of terms: {text!r}")
    return Sum(terms)


@cache
def _sections() -> Mapping[str, str]:
    """The text of every row by its name; reading all of them takes longer than an estimate, which needs one."""
    text = resources.files("peftsmith").joinpath("knowledge", "adapters.toml").read_text(encoding="utf-8")
    return {part[1 : part.index("]")].strip('"'): part for part in _SECTION.split(text)[1:]}


@cache
def _row(name: str) -> Mapping[Column, Cell]:
    row = tomllib.loads(_sections()[name])[name]
    return {
        column: Cell(
            parse(row[column]["kept"]), tuple(map(parse, row[column]["peaks"])), column in row.get("shared", ())
        )
        for column in _COLUMNS
    }


def rows() -> Mapping[str, Mapping[Column, Cell]]:
    """Every row of the table by name and number format."""
    return {name: _row(name) for name in _sections()}


def price(adapter: Adapter, module: Module, numbers: Numbers) -> Cost:
    """The bytes of this adapter on this module; where adapter dropout matters there is a row of its own for it."""
    symbols = (("i", module.inputs), ("o", module.outputs), *adapter.symbols.items())
    return _price(adapter.row, adapter.trainable, adapter.frozen, adapter.frozen_bytes, symbols, numbers)


@lru_cache(maxsize=1024)  # the layers of a model are alike
def _price(
    name: str, trainable: int, frozen: int, frozen_bytes: int, widths: tuple[tuple[str, float], ...], numbers: Numbers
) -> Cost:
    dropped = f"{name}+dropout"
    cell = _row(dropped if numbers.dropout and dropped in _sections() else name)[numbers.column]
    symbols = dict(widths)
    each, rest = cell.kept.line(symbols)
    moments = ((0.0, 0.0), *(peak.line(symbols) for peak in cell.peaks))
    return Cost(
        trainable=trainable,
        frozen=frozen,
        frozen_bytes=frozen_bytes,
        saved_per_token=each,
        saved=max(ceil(rest), 0),
        temporary_per_token=max(per_token for per_token, _ in moments),
        temporary=ceil(max(besides for _, besides in moments)),
        shared_input_per_token=float(numbers.wide * symbols["i"]) if cell.shared else 0.0,
        peaks=moments,
    )
