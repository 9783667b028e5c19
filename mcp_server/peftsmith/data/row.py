"""One row as it was read, or the reason why it could not be.

Knows: a row's number, value and fault, and how long a row may be.
Does not know: files (reading.py) or formats (formats.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LONGEST_LINE = 16 << 20  # bytes of a line, or characters of a table's row


@dataclass(frozen=True, slots=True)
class Row:
    """One row: `number` is its line (JSON lines, CSV: where it starts) or its place in the array, from 1 on.

    Exactly one of `value` and `fault` is set; `fault` says why the row could not be read.
    """

    number: int
    value: dict[str, Any] | None
    fault: str | None = None
