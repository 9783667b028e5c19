"""Runs of places in a row: from characters to tokens, cut, and out of a mask.

Knows: how transformers turns the characters of a generation block into tokens.
Does not know: what the places carry (labels.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Encoding

Span = tuple[int, int]  # first place, place behind the last


def marked_tokens(encoding: Encoding, spans: Iterable[Span]) -> list[Span]:
    """Token spans of character spans. Source: transformers 5.23, tokenization_utils_base.py, apply_chat_template.

    As there, a block whose last character belongs to no token, or to the very first, reaches to the row's end, and
    the first block behind the text ends the search. OverflowError for an empty block at the start, as there.
    """
    mask = bytearray(len(encoding.ids))
    for first, end in spans:
        start, last = encoding.char_to_token(first), encoding.char_to_token(end - 1)
        if start is None:
            break
        stop = last + 1 if last else len(mask)
        mask[start:stop] = b"\1" * max(0, stop - start)
    return spans_of(mask)


def spans_of(mask: Sequence[Any]) -> list[Span]:
    """Runs of true places."""
    spans: list[Span] = []
    for place, carries in enumerate(mask):
        if carries:
            if spans and spans[-1][1] == place:
                spans[-1] = (spans[-1][0], place + 1)
            else:
                spans.append((place, place + 1))
    return spans


def clip(spans: Iterable[Span], first: int, end: int) -> list[Span]:
    """The parts of spans within [first, end)."""
    cut = ((max(first, left), min(end, right)) for left, right in spans)
    return [(left, right) for left, right in cut if left < right]
