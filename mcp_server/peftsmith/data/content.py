"""What can be wrong with the text of rows, without a tokenizer: damage, secrets, roles, repetition.

Knows: patterns for encoding damage and control characters, keys that make rows equal, role order.
Does not know: tokens and templates (tokens.py), or files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise

from peftsmith.data.examples import Chat, Message

Note = tuple[str, str]  # finding id, detail

# C0 without tab, line feed and carriage return, DEL, C1; bidirectional overrides and isolates; a BOM inside.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")
_REPLACEMENT = "\ufffd"
# UTF-8 read as Windows-1252 or Latin-1: the lead byte as a letter, then a continuation byte as a sign.
_CONTINUED = (
    "[\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013\u2014\u2018-\u201a"
    "\u201c-\u201e\u2020-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122]"
)
_MOJIBAKE = re.compile(
    "[\u00c2\u00c3][\u00a0-\u00bf\u0178\u0152\u017d\u2030]"  # Latin letters with accents
    f"|\u00e2\u20ac{_CONTINUED}|\u00e2\u0080{_CONTINUED}"  # typographic quotes and dashes
    f"|\u00f0\u0178{_CONTINUED}{{2}}"  # emoji
    f"|(?:[\u00d0\u00d1]{_CONTINUED}){{3}}"  # Cyrillic
)
_INSTRUCTION = re.compile(
    r"\b(?:ignore|disregard|forget|override)\b[^.\n]{0,40}\b(?:previous|prior|above|earlier|preceding|system)\b"
    r"[^.\n]{0,30}\b(?:instructions?|prompts?|rules|messages?)\b"
    r"|\bignorier\w*\b[^.\n]{0,40}\b(?:vorherigen?|bisherigen?|obigen?)\b[^.\n]{0,20}\b(?:anweisung|anleitung|regel)"
    r"|\bignore[zr]?\b[^.\n]{0,30}\b(?:instructions|consignes)\b[^.\n]{0,20}\bprécédentes\b"
    r"|\bignor[ae]\b[^.\n]{0,30}\binstrucciones\b[^.\n]{0,20}\banteriores\b",
    re.IGNORECASE,
)
_INSTRUCTION_HINTS = ("ignor", "disregard", "forget", "override")
_SYSTEM = ("system", "developer")


def exact_key(messages: list[Message]) -> bytes:
    """Equal for equal messages (16 bytes)."""
    return _hash(json.dumps(messages, sort_keys=True))


def loose_key(messages: list[Message]) -> bytes:
    """Equal for messages that differ in nothing but case and white space (16 bytes)."""
    return _hash(json.dumps([(message["role"], loose_text(message["content"])) for message in messages]))


def loose_text(text: str) -> str:
    return " ".join(text.split()).casefold()


def question(example: Chat) -> list[Message]:
    """What is asked, without system messages: the same question is the same whatever stands above it."""
    return [message for message in example.prompt if message["role"] not in _SYSTEM]


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def notes(example: Chat) -> Iterator[Note]:
    """(finding id, detail) for everything that is to say about one row's text; each id at most once."""
    from peftsmith import secrets

    conversation = example.prompt + example.completion
    text = "\n".join(message["content"] for message in conversation)
    if not text.isascii():
        yield from _damage(text)
    elif control := _CONTROL.search(text):
        yield "data.rows.control", f"U+{ord(control.group()):04X}"
    hits = secrets.find_in_text(text)
    if hits:
        yield "data.rows.secret", ", ".join(sorted({hit.kind for hit in hits}))
    lowered = text.lower()
    if any(hint in lowered for hint in _INSTRUCTION_HINTS) and _INSTRUCTION.search(text):
        yield "data.rows.instruction", ""
    order = _order(conversation)
    if order:
        yield "data.rows.order", order
    answers = sum(message["role"] == "assistant" for message in example.prompt)
    if answers:
        yield "data.rows.last_turn_only", ""


def _damage(text: str) -> Iterator[Note]:
    if _REPLACEMENT in text:
        yield "data.rows.encoding", "U+FFFD, where a character was lost"
    elif broken := _MOJIBAKE.search(text):
        yield "data.rows.encoding", f"UTF-8 read as Latin-1 or Windows-1252: {broken.group()!r}"
    if control := _CONTROL.search(text):
        yield "data.rows.control", f"U+{ord(control.group()):04X}"


def _order(conversation: list[Message]) -> str:
    if any(message["role"] in _SYSTEM for message in conversation[1:]):
        return "a system message that is not the first"
    turns = [message["role"] for message in conversation if message["role"] not in _SYSTEM]
    if turns[0] == "assistant":
        return "the assistant begins"
    doubled = next((one for one, other in pairwise(turns) if one == other), None)
    return f"two messages of the {doubled} in a row" if doubled else ""


def special_token_search(special: frozenset[str]) -> Callable[[Chat], str]:
    """A function that gives the first special token which an example's content holds as text, or an empty string."""
    if not special:
        return lambda example: ""
    pattern = re.compile("|".join(re.escape(text) for text in sorted(special, key=len, reverse=True)))

    def search(example: Chat) -> str:
        for message in example.prompt + example.completion:
            found = pattern.search(message["content"])
            if found:
                return found.group()
        return ""

    return search
