"""Why a row cannot be used, and the checks that every format shares.

Knows: kinds of faults, what counts as text, as a label, as yes or no.
Does not know: formats (convert.py) or how faults are reported (audit.py, prepare.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from peftsmith import files

FaultKind = Literal["shape", "unsupported", "role", "order", "ending", "empty", "encoding", "label", "answer", "units"]
_YES_NO = {True: True, False: False, "true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


class RowFault(ValueError):
    """Why a row cannot be used: `kind` for grouping, the message for people."""

    def __init__(self, kind: FaultKind, message: str) -> None:
        self.kind = kind
        super().__init__(message)


def text(value: object, name: str, *, blank: bool = False) -> str:
    """`value` as it is, when it is text that a tokenizer takes; blank text only where `blank` allows it."""
    if not isinstance(value, str):
        kind = "missing" if value is None else "not text"
        raise RowFault("empty" if value is None else "shape", f"{name} is {kind}")
    if not blank and not value.strip():
        raise RowFault("empty", f"{name} is empty")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowFault("encoding", f"{name} holds half of a surrogate pair, which no tokenizer accepts") from error
    return value


def label(value: object, names: Sequence[str] = (), name: str = "the label") -> str:
    """A class as text. A whole number is the place in `names` where there are any, else its own digits."""
    if isinstance(value, int) and not isinstance(value, bool) and names:
        if not 0 <= value < len(names):
            raise RowFault("label", f"{name} is {value}, but only {len(names)} names are given")
        return names[value]
    if isinstance(value, (bool, int)):
        return json.dumps(value)
    if isinstance(value, float):
        raise RowFault("label", f"{name} is a number with a fraction; classes are text or whole numbers")
    return text(value, name)


def is_yes_or_no(value: object) -> bool:
    """True for true and false, 0 and 1, and these as a CSV file writes them."""
    plain = value.strip().lower() if isinstance(value, str) else value
    return isinstance(plain, (bool, int, float, str)) and plain in _YES_NO


def yes_or_no(value: object, name: str) -> bool:
    if not is_yes_or_no(value):
        shown = files.clean(repr(value), 60)
        raise RowFault("empty" if value is None else "label", f"{name} is {shown} where true or false is meant")
    return _YES_NO[value.strip().lower() if isinstance(value, str) else value]
