"""Rows in a terminal: text that carries loss in colour, or in brackets where there is no colour.

Knows: how shown rows are written down. Does not know: how they were made (show.py), or what the terminal can do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_TRAINED, _REST, _END = "\x1b[1;30;42m", "\x1b[2m", "\x1b[0m"  # bold black on green; dim (ECMA-48)
_LEGEND = [{"text": "carries loss", "trained": True}]


def text_of(rows: Sequence[Mapping[str, Any]], *, coloured: bool) -> str:
    """Rows as ShownRow.to_json gives them, for printing. Their text holds no control characters (show.visible)."""
    made = _coloured if coloured else bracketed
    lines = [made(_LEGEND)]
    for row in rows:
        head = f"row {row['row']}" + (f" ({row['part']})" if row.get("part") else "")
        note = f": {row['note']}" if row.get("note") else ""
        lines.append(f"\n{head}, {row['trained_tokens']} of {row['tokens']} tokens carry loss{note}")
        lines.append(made(row["pieces"]))
    return "\n".join(lines)


def bracketed(pieces: Sequence[Mapping[str, Any]]) -> str:
    """Text in which ⟦brackets⟧ hold what carries loss."""
    return "".join(f"⟦{piece['text']}⟧" if piece["trained"] else piece["text"] for piece in pieces)


def _coloured(pieces: Sequence[Mapping[str, Any]]) -> str:
    return "".join(f"{_TRAINED if piece['trained'] else _REST}{piece['text']}{_END}" for piece in pieces)
