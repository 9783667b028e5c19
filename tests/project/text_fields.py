"""Every field of the plan that takes free text, found by walking its model: what the tests of injection fill.

Knows: how a field of a plan can hold text (plain, in lists, as key or value of mappings), by its annotation.
Does not know: what is done with the plan, or which task uses which field.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from peftsmith.plan import FineTunePlan

Shape = str  # "text", "list", "values" or "keys"


def text_fields(part: type[BaseModel] = FineTunePlan, prefix: str = "") -> Iterator[tuple[str, Shape]]:
    """(dotted name, how it holds text) of each field, one line a way; choices out of given words are no text."""
    for name, field in part.model_fields.items():
        for way in _ways(field.annotation):
            if isinstance(way, str):
                yield prefix + name, way
            else:
                yield from text_fields(way, f"{prefix}{name}.")


def _ways(kind: Any) -> Iterator[Shape | type[BaseModel]]:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is str:
        yield "text"
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    elif origin is list:
        yield from ("list" for way in _ways(parts[0]) if way == "text")
    elif origin is dict:
        yield from ("keys", "values")
    elif origin is not Literal:
        for part in parts:
            if part is not type(None):
                yield from _ways(part)


def filled(shape: Shape, text: str, keys: tuple[str, ...]) -> Any:
    """`text` in a field of this shape; `keys` are names under which a mapping may hold it."""
    return {
        "text": text,
        "list": [text, f"{text}2"],
        "keys": {text: text},
        "values": dict.fromkeys(keys, text),
    }[shape]
