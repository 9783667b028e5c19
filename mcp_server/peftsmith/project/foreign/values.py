"""What can be known about a value without running the script that makes it.

Knows: plain values, imported names, objects made by calls of imported names, and that more than one may be possible.
Does not know: how a script is walked (trace.py), or what any name means.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from peftsmith.project.foreign.source import Source


@dataclass(frozen=True)
class Known:
    """A plain value: None, bool, number, text."""

    value: Any


@dataclass(frozen=True)
class Ref:
    """Something imported, by its full dotted name: torch.float16, trl.SFTConfig."""

    name: str


@dataclass(frozen=True)
class Unknown:
    """`why` says what was not followed."""

    why: str = "a computed value"


@dataclass(frozen=True)
class Many:
    """A list, tuple or set."""

    items: tuple[Value, ...]


@dataclass(eq=False)
class Record:
    """A dictionary with plain keys, or the fields of a class, an object or a module; `open`: there may be others.

    `base` is the library's class that a class of the script extends.
    """

    values: dict[Any, Value]
    open: bool = False
    kind: Literal["data", "class", "instance"] = "data"
    base: Ref | None = None


@dataclass(eq=False)
class Function:
    """A function of the script, with the names of the place where it is defined; `owner` is its first argument."""

    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    names: dict[str, Value]
    source: Source
    owner: Record | None = None


@dataclass(eq=False)
class Site:
    """One call of something imported, or of a method of such an object, as the script reaches it.

    `name` is dotted (trl.SFTTrainer.train for a method: then `receiver` is the object). `keywords` holds those of a
    `**mapping` that could be followed; `open` marks one that could not. `dropped`: nobody takes the result.
    """

    name: str
    source: Source
    node: ast.Call
    args: tuple[Value, ...]
    keywords: dict[str, Value]
    open: bool
    receiver: Thing | None = None
    dropped: bool = False

    @property
    def line(self) -> int:
        return self.node.lineno

    def where(self) -> str:
        return self.source.where(self.line)

    def get(self, keyword: str, position: int | None = None) -> Value | None:
        """The value of a keyword, else of the argument at `position`; Unknown when a `**mapping` may hold it."""
        if keyword in self.keywords:
            return self.keywords[keyword]
        if position is not None and position < len(self.args):
            return self.args[position]
        return Unknown("a **mapping that was not followed") if self.open else None


@dataclass(eq=False)
class Thing:
    """An object: `kind` is its class as far as that is known, `site` the call that made it, `of` the object that it was
    made from or wraps, `state` the attributes that the script sets, `later` the calls of its methods."""

    kind: str
    site: Site
    of: Thing | None = None
    state: dict[str, Value] = field(default_factory=dict)
    later: list[Site] = field(default_factory=list)

    def chain(self) -> Iterator[Thing]:
        """This object, then what it was made from, and so on."""
        at: Thing | None = self
        while at is not None:
            yield at
            at = at.of


@dataclass(frozen=True)
class Field:
    """An attribute of an object that the script does not set itself."""

    of: Thing
    name: str


@dataclass(frozen=True)
class Either:
    """One of these, depending on what is known only when the script runs."""

    options: tuple[Value, ...]


Value = Known | Ref | Unknown | Many | Record | Function | Thing | Field | Either
MOST_OPTIONS = 6


def options(value: Value | None) -> tuple[Value, ...]:
    """All that a value may be; empty for None."""
    if value is None:
        return ()
    return value.options if isinstance(value, Either) else (value,)


def either(one: Value, other: Value) -> Value:
    """A value that is one or the other."""
    found: list[Value] = []
    for each in (*options(one), *options(other)):
        if not any(same(each, seen) for seen in found):
            found.append(each)
    if len(found) == 1:
        return found[0]
    return Either(tuple(found)) if len(found) <= MOST_OPTIONS else Unknown("one of many values")


def same(one: Value, other: Value) -> bool:
    if one is other:
        return True
    if isinstance(one, Known) and isinstance(other, Known):
        return type(one.value) is type(other.value) and bool(one.value == other.value)
    if isinstance(one, Many) and isinstance(other, Many):
        return len(one.items) == len(other.items) and all(map(same, one.items, other.items))
    return isinstance(one, (Ref, Field, Unknown)) and one == other


def merge(one: Mapping[str, Value], other: Mapping[str, Value]) -> dict[str, Value]:
    """The names after two branches: a name that only one of them binds may be unbound, which is its own mistake."""
    merged = dict(one)
    for name, value in other.items():
        merged[name] = either(merged[name], value) if name in merged else value
    return merged


NOTHING = object()


def plain(value: Value | None) -> Any:
    """The value as Python data (lists for Many, dicts for Record, dotted names for Ref), else NOTHING."""
    if isinstance(value, Known):
        return value.value
    if isinstance(value, Ref):
        return value.name
    if isinstance(value, Many):
        items = [plain(item) for item in value.items]
        return NOTHING if any(item is NOTHING for item in items) else items
    if isinstance(value, Record) and not value.open:
        pairs = {key: plain(item) for key, item in value.values.items()}
        return NOTHING if any(item is NOTHING for item in pairs.values()) else pairs
    return NOTHING


def surely(value: Value | None, wanted: Any) -> bool:
    """True when the value can be nothing but `wanted` (a plain value)."""
    found = options(value)
    return bool(found) and all(_is(each, wanted) for each in found)


def possibly(value: Value | None, wanted: Any) -> bool:
    """True when one of the known alternatives is `wanted`; what is unknown does not count."""
    return any(_is(each, wanted) for each in options(value))


def unclear(value: Value | None) -> bool:
    """True when any alternative is not known."""
    return any(isinstance(each, (Unknown, Field)) for each in options(value))


def things(value: Value | None) -> list[Thing]:
    """The objects that a value may be."""
    return [each for each in options(value) if isinstance(each, Thing)]


def _is(value: Value, wanted: Any) -> bool:
    found = plain(value)
    return found is not NOTHING and type(found) is type(wanted) and bool(found == wanted)
