"""Rows in a terminal: text that carries loss in colour, or in brackets where there is no colour.

Knows: how a shown row is printed. Does not know: how it was made (show.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

TRAINED, REST = "bold black on green", "dim"
LEGEND = "carries loss"


def print_rows(rows: Sequence[Mapping[str, Any]], *, colour: bool = True) -> None:
    """Print rows as ShownRow.to_json gives them. Without a terminal, with NO_COLOR or `colour` False: brackets."""
    from rich.console import Console
    from rich.text import Text

    coloured = colour and not os.environ.get("NO_COLOR")
    console = Console(highlight=False, no_color=not coloured, soft_wrap=True)
    coloured = coloured and console.is_terminal
    legend = Text(LEGEND, style=TRAINED) if coloured else Text(bracketed([{"text": LEGEND, "trained": True}]))
    console.print(legend)
    for row in rows:
        head = f"row {row['row']}" + (f" ({row['part']})" if row.get("part") else "")
        note = f": {row['note']}" if row.get("note") else ""
        console.print(Text(f"\n{head}, {row['trained_tokens']} of {row['tokens']} tokens carry loss{note}"))
        console.print(_coloured(row["pieces"]) if coloured else Text(bracketed(row["pieces"])))


def bracketed(pieces: Sequence[Mapping[str, Any]]) -> str:
    """Text in which ⟦brackets⟧ hold what carries loss."""
    return "".join(f"⟦{piece['text']}⟧" if piece["trained"] else piece["text"] for piece in pieces)


def _coloured(pieces: Sequence[Mapping[str, Any]]) -> Any:
    from rich.text import Text

    text = Text()
    for piece in pieces:
        text.append(piece["text"], style=TRAINED if piece["trained"] else REST)
    return text
