"""Formulas over fields of a config, as text, and fields by dotted name.

Knows: sums of products of fields, the value of such a text, configs inside configs.
Does not know: how a formula is found (widths.py).
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any


def term(factor: Fraction, names: tuple[str, ...]) -> str | None:
    """`2*heads*head_dim`, `hidden/16`: None for a factor that no model designer would choose."""
    if factor < 0 or factor.denominator > 64 or (abs(factor.numerator) > 512 and names):
        return None
    text = "*".join(([str(factor.numerator)] if factor.numerator != 1 or not names else []) + list(names))
    return text + (f"/{factor.denominator}" if factor.denominator != 1 else "")


def names_in(text: str) -> set[str]:
    """Fields that a formula reads."""
    return {part for part in re.split(r"[+*/]", text) if not re.fullmatch(r"-?\d+", part)}


def value_of(text: str, values: dict[str, int]) -> Fraction:
    """What a formula comes to with these fields."""
    total = Fraction(0)
    for summand in text.split("+"):
        value = Fraction(1)
        for operator, part in re.findall(r"(^|[*/])([^*/]+)", summand):
            number = Fraction(int(part)) if re.fullmatch(r"-?\d+", part) else Fraction(values[part])
            value = value / number if operator == "/" else value * number
        total += value
    return total


def prefixed(formula: str, prefix: str) -> str:
    """The formula over the fields of a config inside the config."""
    return re.sub(r"[A-Za-z_]\w*", lambda found: prefix + found.group(0), formula)


def product_of(numbers: list[int]) -> Fraction:
    product = Fraction(1)
    for number in numbers:
        product *= number
    return product


def parts(document: dict[str, Any], prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
    """The document and the configs inside it, with the prefix of their fields."""
    found = [(prefix, document)]
    for name, value in document.items():
        if isinstance(value, dict) and "model_type" in value:
            found += parts(value, f"{prefix}{name}.")
    return found


def place_of(document: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The mapping that holds a dotted name, and the name's last part."""
    *path, leaf = name.split(".")
    for part in path:
        document = document[part]
    return document, leaf


def get(config: Any, name: str) -> Any:
    """A config object's attribute by dotted name."""
    for part in name.split("."):
        config = getattr(config, part)
    return config
