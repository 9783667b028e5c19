"""Text that a pipeline left in rows by mistake: markup, unfilled placeholders, a model's excuses, broken answers.

Knows: patterns for each, and what an answer is that holds nothing.
Does not know: where rows come from, or damage to characters (content.py).
"""

from __future__ import annotations

import re
from itertools import pairwise

_HTML = re.compile(
    r"&(?:nbsp|amp|lt|gt|quot|apos|#\d{1,6}|#x[0-9a-fA-F]{1,6});"
    r"|</?(?:p|br|div|span|font|table|tbody|td|tr|th|img|script|style|strong|em|ul|ol|li|h[1-6]|blockquote)\b[^<>]{0,300}>",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"(?<![\\\w^_{$}])\{\{ ?[A-Za-z_][\w. ]{0,40}\}\}(?!\})"
    r"|\{% ?(?:if|for|set|include|block|end\w+)\b[^%\n]{0,80}%\}"
    r"|[\[<](?:INSERT|YOUR|ENTER|ADD|FILL IN|PLACEHOLDER|TODO|TBD)\b[^\]>\n]{0,60}[\]>]"
    r"|\[(?:[Ii]nsert|[Yy]our|[Ee]nter)(?: [\w']{1,20}){1,5}\]"
)
# Text about templates and code says such things on purpose.
_ABOUT_CODE = re.compile(
    r"`|\bjinja|\btemplat|\bdjango|\bhandlebars|\bmustache|\bvue\b|\bangular|\bansible|\bhelm\b|\bplaceholder|</|\bdef "
    r"|\bimport |=>|#include|\bfunction\b|\bvorlage|\bplatzhalter|\bmod[èe]le\b|\bplantilla",
    re.IGNORECASE,
)
_EXCUSE = re.compile(
    r"\b(?:as an? (?:ai|artificial intelligence|large language|language)(?: language)?(?: model| assistant)?\b"
    r"|i(?:'m| am) (?:just )?an? (?:ai|large) (?:language )?(?:model|assistant)"
    r"|my (?:knowledge|training) (?:cut-?off|data) |als (?:ki|ein ki)-?(?:sprach)?modell"
    r"|en tant qu['’](?:ia|intelligence artificielle|un modèle de langage)|como (?:modelo de lenguaje|una ia)\b)",
    re.IGNORECASE,
)
_EXCUSE_HINTS = (
    "language model",
    " an ai",
    "knowledge cut",
    "training data",
    "sprachmodell",
    "ki-modell",
    "qu'ia",
    "tant qu",
    "como ",
)
_NOTHING = frozenset(
    ("null", "none", "nan", "n/a", "na", "nil", "undefined", "todo", "tbd", "...", "…", "[object object]", "#n/a", "-",
     "--", ".", "?", "_", "error", "[]", "{}", "[deleted]", "[removed]", "lorem ipsum")
)  # fmt: skip
_WINDOW, _FEWEST_WORDS = 100, 30
_ENDING, _FEWEST_TIMES = 8, 4  # in a loop, what stands last has stood before


def markup(text: str) -> str:
    """The first HTML tag or entity in text that shows no sign of being about code, or nothing."""
    if "<" not in text and "&" not in text:
        return ""
    found = _HTML.search(text)
    return found.group() if found and not ("`" in text or "<html" in text.lower()) else ""


def placeholder(text: str) -> str:
    """The first unfilled placeholder ({{name}}, [INSERT NAME]) in text that is not about code or templates."""
    if "{" not in text and "[" not in text and "<" not in text:
        return ""
    found = _PLACEHOLDER.search(text)
    return found.group() if found and not _ABOUT_CODE.search(text) else ""


def excuse(answer: str, lowered: str) -> str:
    """A model speaking of itself ("As an AI language model"), or nothing; `lowered` holds the answer in lower case."""
    if not any(hint in lowered for hint in _EXCUSE_HINTS):
        return ""
    found = _EXCUSE.search(answer)
    return found.group() if found else ""


def holds_nothing(answer: str) -> bool:
    """True for an answer that stands for a missing value: null, N/A, TODO, one sign."""
    return len(answer) < 40 and answer.strip().casefold() in _NOTHING


def repeats_itself(answer: str) -> bool:
    """True when the last hundred words hold hardly more than the same few over and over, in the same order.

    Fewer than a fifth of the words and of the neighbouring pairs of words are different ones. In scripts without
    spaces characters count instead.
    """
    if len(answer) < 2 * _FEWEST_WORDS or answer.count(answer[-_ENDING:]) < _FEWEST_TIMES:
        return False
    tail = answer[-12 * _WINDOW :].split()[-_WINDOW:]
    if len(tail) < _FEWEST_WORDS:
        if answer.isascii() or len(tail) * 8 > min(len(answer), 12 * _WINDOW):
            return False
        tail = list(answer[-2 * _WINDOW :])
    if len(set(tail)) * 5 >= len(tail):
        return False
    return len(set(pairwise(tail))) * 5 < len(tail) and any(each.isalpha() for each in tail)
