"""Plan values as Python literals and as inert text: the only two ways in which they reach a generated file.

Knows: how to write a value so that ast.literal_eval gives it back and `ruff format` leaves it alone.
Does not know: which values exist, or where a template puts them.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

from peftsmith import files
from peftsmith.errors import PeftsmithError

LINE = 88  # ruff format's default width
_INDENT = "    "
_PIECE = 60  # characters of a long string on one line, before escapes
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_OWN_TEXT = re.compile(r'[A-Za-z0-9 "-]*')
_DEEPEST = 8


class Safe(str):
    """Text that one of the filters below has made; the renderer refuses to print anything else."""


def literal(value: Any) -> Safe:
    """`value` (str, int, float, bool, None, lists and string-keyed dicts of these) on one line of Python."""
    return Safe(_flat(value, 0))


def setting(value: Any, name: str) -> Safe:
    """`NAME = value` as ruff format would lay it out; long lists and long strings take several lines."""
    flat = f"{name} = {_flat(value, 0)}"
    if _fits(flat):
        return Safe(flat)
    if isinstance(value, str):
        whole = _string(value)
        if _fits(_INDENT + whole):
            return Safe(f"{name} = (\n{_INDENT}{whole}\n)")
        pieces = _pieces(value)
        if len(pieces) == 1:
            return Safe(flat)
        return Safe(f"{name} = (\n" + "".join(f"{_INDENT}{_string(piece)}\n" for piece in pieces) + ")")
    return Safe(f"{name} = {_exploded(value, 0)}")


def inert(value: Any) -> Safe:
    """`value` as Markdown inline code on one line, without control characters or backticks, at most 200 long."""
    text = " ".join(files.clean(str(value), 200).split()).replace("`", "'")
    return Safe(f"`{text or ' '}`")


def name(value: Any) -> Safe:
    """A plan's name, which may stand bare in a docstring or a heading."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise PeftsmithError(
            "This is not a plan's name", value=value, next_step="Use lower-case letters, digits and -."
        )
    return Safe(value)


def word(value: Any) -> Safe:
    """A dotted Python name."""
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise PeftsmithError("This is not a Python name", value=value, next_step="Report it: no plan should do this.")
    return Safe(value)


def plain(value: Any) -> Safe:
    """Text of this program's own: letters, digits and a few signs."""
    if not isinstance(value, str) or not _OWN_TEXT.fullmatch(value):
        raise PeftsmithError("This is not text of the templates", value=value, next_step="Report it.")
    return Safe(value)


def imports(names: Any, module: str) -> Safe:
    """`from module import ...` as ruff sorts and lays it out; None among the names counts for nothing."""
    chosen = sorted({str(word(each)) for each in names if each is not None}, key=_import_order)
    line = f"from {word(module)} import {', '.join(chosen)}"
    if len(line) <= LINE:
        return Safe(line)
    return Safe(f"from {word(module)} import (\n" + "".join(f"{_INDENT}{each},\n" for each in chosen) + ")")


def _import_order(name: str) -> tuple[int, str]:
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    return kind, name.lower()


def _flat(value: Any, depth: int) -> str:
    if depth > _DEEPEST:
        raise PeftsmithError("A plan value is nested too deeply", next_step="Flatten it.")
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, int):
        return repr(int(value))
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list):
        return "[" + ", ".join(_flat(item, depth + 1) for item in value) + "]"
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return "{" + ", ".join(f"{_string(key)}: {_flat(item, depth + 1)}" for key, item in value.items()) + "}"
    raise PeftsmithError(
        "A value of this type cannot be written into a script",
        value=type(value).__name__,
        next_step="Use text, numbers, true, false, null, or lists of them.",
    )


def _exploded(value: Any, depth: int) -> str:
    """One element a line, each with a trailing comma, which ruff format takes as a wish to keep it so."""
    inner, outer = _INDENT * (depth + 1), _INDENT * depth
    if isinstance(value, list) and value:
        return "[\n" + "".join(f"{inner}{_nested(item, depth + 1)},\n" for item in value) + outer + "]"
    if isinstance(value, dict) and value:
        lines = (f"{inner}{_string(key)}: {_nested(item, depth + 1)},\n" for key, item in value.items())
        return "{\n" + "".join(lines) + outer + "}"
    return _flat(value, depth)


def _nested(value: Any, depth: int) -> str:
    return _exploded(value, depth) if isinstance(value, (list, dict)) else _flat(value, depth)


def _float(value: float) -> str:
    """The shortest form that reads back equal; ruff format writes exponents without a plus sign."""
    if not math.isfinite(value):
        raise PeftsmithError("A plan value must be a finite number", value=value, next_step="Correct plan.yaml.")
    text = repr(value).replace("e+", "e")
    if value and abs(value) < 1e-2:  # 2e-4, as people write learning rates
        mantissa, exponent = f"{value:.15e}".split("e")
        short = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
        return short if float(short) == value else text
    return text


def _string(value: str) -> str:
    """Like repr, but with the quotes that ruff format prefers: double ones unless single ones need fewer escapes."""
    quote = "'" if value.count('"') > value.count("'") else '"'
    parts = []
    for character in value:
        if character in (quote, "\\"):
            parts.append("\\" + character)
        elif character in ("'", '"'):
            parts.append(character)
        else:
            parts.append(repr(character)[1:-1])
    return quote + "".join(parts) + quote


def _pieces(value: str) -> list[str]:
    """The string cut behind line ends and, where it is still long, behind spaces."""
    pieces: list[str] = []
    for line in value.splitlines(keepends=True):
        rest = line
        while len(rest) > _PIECE:
            cut = rest.rfind(" ", 1, _PIECE) + 1 or rest.find(" ", _PIECE) + 1
            if not cut or cut >= len(rest):
                break
            pieces.append(rest[:cut])
            rest = rest[cut:]
        pieces.append(rest)
    return pieces


def _fits(line: str) -> bool:
    """ruff measures columns: East Asian wide characters take two, combining ones none."""
    if line.isascii():
        return len(line) <= LINE
    return sum(_columns(character) for character in line) <= LINE


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
