"""What can be wrong with the text of one row, without a tokenizer: damage, secrets, personal data, roles, answers.

Knows: patterns for encoding damage, control characters and instructions; role order; which checks run on what.
Does not know: other rows (repetition.py, similar.py), tokens and templates (tokens.py), or files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from peftsmith import secrets
from peftsmith.data import leftovers, personal
from peftsmith.data.examples import Answered, AnyExample, Chat, Classified, Tagged
from peftsmith.data.views import SYSTEM, View, loose, view

Note = tuple[str, str]  # finding id, detail
_ONE_AT_A_TIME = ("user", "assistant")

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
    r"|\b(?:reveal|print|repeat|show)\b[^.\n]{0,20}\byour (?:system prompt|hidden instructions|initial instructions)\b"
    r"|\byou are now (?:dan|in developer mode|jailbroken)\b"
    r"|\b(?:ignorier\w*|vergiss|missachte)\b[^.\n]{0,40}\b(?:vorherigen?|bisherigen?|obigen?|vorigen?)\b[^.\n]{0,20}"
    r"\b(?:anweisung|anleitung|regel)"
    r"|\b(?:ignore[zr]?|oublie[zr]?)\b[^.\n]{0,30}\b(?:instructions|consignes)\b[^.\n]{0,20}\bprécédentes\b"
    r"|\b(?:ignor[ae]|olvida)\b[^.\n]{0,30}\binstrucciones\b[^.\n]{0,20}\b(?:anteriores|previas)\b"
    r"|\b(?:ignora|dimentica)\b[^.\n]{0,30}\bistruzioni\b[^.\n]{0,20}\bprecedenti\b"
    r"|\b(?:ignore|esqueça)\b[^.\n]{0,30}\binstruções\b[^.\n]{0,20}\banteriores\b"
    r"|\bnegeer\b[^.\n]{0,30}\b(?:vorige|eerdere|bovenstaande)\b[^.\n]{0,20}\b(?:instructies|aanwijzingen)\b"
    r"|игнорируй\w*[^.\n]{0,30}(?:предыдущие|прежние)[^.\n]{0,20}(?:инструкции|указания)"
    r"|忽略[^。\n]{0,12}(?:之前|以上|先前|前面)[^。\n]{0,8}(?:指令|指示|说明)"
    r"|(?:以前|これまで|上記)の(?:指示|命令)[^。\n]{0,6}無視",
    re.IGNORECASE,
)
_INSTRUCTION_HINTS = (
    "ignor", "disregard", "forget", "override", "system prompt", "instructions", "you are now", "vergiss", "missachte",
    "oublie", "olvida", "dimentica", "negeer",
)  # fmt: skip
_FOREIGN_HINTS = ("esqueça", "игнорируй", "忽略", "無視")  # fmt: skip


def _by_sign(hints: Iterable[str]) -> dict[str, list[str]]:
    """Hints under a sign that each of them holds ("" for words); one that holds another hint is left out."""
    lowered = set(map(str.lower, hints))
    grouped: dict[str, list[str]] = {}
    for hint in sorted(lowered):
        if not any(other in hint for other in lowered - {hint}):
            grouped.setdefault(next((c for c in hint if not c.isalnum()), ""), []).append(hint)
    return grouped


_SECRET_HINTS = _by_sign(secrets.hints())
_CONTROL_BYTES = bytes(each for each in (*range(0x20), 0x7F) if each not in b"\t\n\r")


def notes(example: AnyExample, seen: View) -> Iterator[Note]:
    """(finding id, detail) for everything that is to say about one row's text; each id at most once."""
    text, answer = seen.text, seen.answer
    if not text.isascii():
        yield from _damage(text)
    elif len(text.encode("ascii").translate(None, _CONTROL_BYTES)) != len(text):
        yield from _control(text)
    lowered = text.lower()
    if _may_hold_secret(lowered):
        hits = secrets.find_in_text(text)
        if hits:
            yield "data.rows.secret", ", ".join(sorted({hit.kind for hit in hits}))
    if _may_instruct(lowered) and _INSTRUCTION.search(text):
        yield "data.rows.instruction", ""
    numbers = personal.may_hold_numbers(text)
    if (numbers or "@" in text) and (kinds := personal.kinds(text)):
        yield "data.rows.personal", ", ".join(kinds)
    if numbers and personal.addresses(text):
        yield "data.rows.network_address", ""
    if tag := leftovers.markup(text):
        yield "data.rows.markup", tag
    if place := leftovers.placeholder(text):
        yield "data.rows.placeholder", place
    if isinstance(example, Answered):
        if any(text != text.strip() for text in example.answers):
            yield "data.answers.whitespace", repr(secrets.redact(example.answers[0]))
    elif not isinstance(example, (Classified, Tagged)):
        yield from _answer(seen.asked, answer or seen.asked, lowered)


def _may_hold_secret(lowered: str) -> bool:
    for sign, hints in _SECRET_HINTS.items():
        if sign in lowered:
            for hint in hints:
                if hint in lowered:
                    return True
    return False


def _may_instruct(lowered: str) -> bool:
    for hint in _INSTRUCTION_HINTS:
        if hint in lowered:
            return True
    return not lowered.isascii() and any(hint in lowered for hint in _FOREIGN_HINTS)


def _answer(asked: str, answer: str, lowered: str) -> Iterator[Note]:
    if excuse := leftovers.excuse(answer, lowered):
        yield "data.rows.boilerplate", excuse
    if leftovers.holds_nothing(answer):
        yield "data.rows.no_answer", repr(answer)
    elif leftovers.repeats_itself(answer):
        yield "data.rows.repetitive", answer[-60:]
    elif (
        len(answer) > 3 and asked is not answer and abs(len(answer) - len(asked)) < 40 and loose(asked) == loose(answer)
    ):
        yield "data.rows.echo", answer[:60]


def _alike(one: str, other: str) -> bool:
    return abs(len(one) - len(other)) < 40 and loose(one) == loose(other)


def order(example: AnyExample, seen: View) -> Iterator[Note]:
    """What is to say about the turns of a conversation, which costs next to nothing."""
    if not isinstance(example, Chat):
        return
    fault = _order(seen.turns)
    if fault:
        yield "data.rows.order", fault
    if "assistant" in seen.turns[: len(example.prompt)]:
        yield "data.rows.last_turn_only", ""


def _control(text: str) -> Iterator[Note]:
    if control := _CONTROL.search(text):
        yield "data.rows.control", f"U+{ord(control.group()):04X}"


def _damage(text: str) -> Iterator[Note]:
    if _REPLACEMENT in text:
        yield "data.rows.encoding", "U+FFFD, where a character was lost"
    elif broken := _MOJIBAKE.search(text):
        yield "data.rows.encoding", f"UTF-8 read as Latin-1 or Windows-1252: {broken.group()!r}"
    yield from _control(text)


def _order(roles: tuple[str, ...]) -> str:
    if any(role in SYSTEM for role in roles[1:]):
        return "a system message that is not the first"
    turns = [role for role in roles if role not in SYSTEM]
    if turns[0] == "assistant":
        return "the assistant begins"
    # an assistant may call tools several times, and several tools may answer
    doubled = next((one for one, other in pairwise(turns) if one == other and one in _ONE_AT_A_TIME), None)
    return f"two messages of the {doubled} in a row" if doubled else ""


def special_token_search(special: frozenset[str]) -> Callable[[AnyExample], str]:
    """A function that gives the first special token which an example's content holds as text, or an empty string."""
    if not special:
        return lambda example: ""
    pattern = re.compile("|".join(re.escape(text) for text in sorted(special, key=len, reverse=True)))
    first = sorted({text[0] for text in special})

    def search(example: AnyExample) -> str:
        for text in content_of(example):
            if any(each in text for each in first) and (found := pattern.search(text)):
                return found.group()
        return ""

    return search


def content_of(example: AnyExample) -> list[str]:
    """Every text that a row brings, message by message."""
    if isinstance(example, Chat):
        return [each.get("content") or "" for each in (*example.prompt, *example.completion)]
    return [view(example).text]
