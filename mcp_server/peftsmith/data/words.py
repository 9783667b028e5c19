"""Token ids of ASCII text from words that were tokenised before: the tokenizer's own ids, several times as fast.

Knows: which byte-level BPE tokenizers cut a text at added tokens and then into words by one pattern, so that a word's
ids do not depend on what stands around it; and that pattern for ASCII text, where Python's re can follow it.
Does not know: any other tokenizer or text; those are left to the tokenizers library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_MOST_WORDS = 1 << 19
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r"| ?[^\sA-Za-z0-9]+[\r\n]*"
_LETTERS = r"|[^\r\nA-Za-z0-9]?[A-Za-z]+"
_QWEN = _ENDING + _LETTERS + "|[0-9]" + _SIGNS + _BLANKS
# The patterns that tokenizers are made with, and what each is for ASCII text. Only these: a pattern from a file of
# someone else's could keep re busy for ever. GPT-2's is in tokenizers, pre_tokenizers/byte_level.rs.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"
# With digits cut out one by one first (pre_tokenizers/digits.rs), a run of blanks before one ends its piece.
_DIGITS_FIRST = r"[0-9]|'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\s+(?![^\s0-9])|\s+"
_SPLITS = {
    # Llama 3, and SmolLM3, Granite 4 and others after it
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+": _ENDING + _LETTERS + "|[0-9]{1,3}" + _SIGNS + _BLANKS,
    # Qwen 2, 2.5 and 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+": _QWEN,
    # Qwen 3.5: marks belong to words, and none is ASCII
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+": _QWEN,
    # gpt-oss, Phi 4 mini and others with OpenAI's o200k
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": (
        rf"[^\r\nA-Za-z0-9]?[A-Z]*[a-z]+{_ENDING}?|[^\r\nA-Za-z0-9]?[A-Z]+[a-z]*{_ENDING}?|[0-9]{{1,3}}"
        r"| ?[^\sA-Za-z0-9]+[\r\n/]*" + _BLANKS
    ),
}


@dataclass(frozen=True)
class WordIds:
    """Ids of a text; `marks` maps the character at which an added token starts to (its place in ids, where it ends)."""

    ids: list[int]
    marks: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    def char_to_token(self, char: int) -> int | None:
        """As tokenizers.Encoding has it, for characters at which an added token starts; None for others."""
        return self.marks[char][0] if char in self.marks else None

    def token_to_chars(self, token: int) -> tuple[int, int] | None:
        return next(((char, end) for char, (place, end) in self.marks.items() if place == token), None)


class Words:
    """A tokenizer's words. `encode` gives None for what only the tokenizer itself can tell."""

    def __init__(self, tokenizer: Tokenizer, pattern: re.Pattern[str], added: Mapping[str, int]) -> None:
        self._tokenizer = tokenizer
        self._words = pattern.findall
        self._added = added
        self._split = re.compile(f"({_any_of(added)})").split if added else None
        self._known: dict[str, tuple[int, ...]] = {}

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Words | None:
        """None when the tokenizer is not of a kind whose words stand for themselves."""
        document = json.loads(tokenizer.to_str())
        model, added = document["model"], list(tokenizer.get_added_tokens_decoder().items())
        plain = (
            model.get("type") == "BPE"
            and not model.get("dropout")
            and (document["normalizer"] or {}).get("type") in (None, "NFC")
            and document["truncation"] is None
            and document["padding"] is None
            and all(_stands_alone(token) for _, token in added)
            and len({token.normalized for _, token in added}) <= 1
        )
        pattern = _pattern(document["pre_tokenizer"]) if plain else None
        if pattern is None:
            return None
        return cls(tokenizer, pattern, {token.content: id_ for id_, token in added})

    def encode(self, text: str) -> WordIds | None:
        """The ids of `text` without added special tokens, or None: it is not ASCII, or a word is not one."""
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[WordIds | None]:
        """`encode` for each; what is new in all of them is tokenised at once, on all cores."""
        cut = [self._cut(text) if text.isascii() else None for text in texts]
        self._learn({word for parts in cut if parts for words in parts[::2] for word in words})
        return [None if parts is None else self._joined(parts) for parts in cut]

    def _cut(self, text: str) -> list[Any] | None:
        """Lists of words, and between them added tokens; None when the pattern leaves something out."""
        parts: list[Any] = self._split(text) if self._split else [text]
        for place in range(0, len(parts), 2):
            words = self._words(parts[place])
            if sum(map(len, words)) != len(parts[place]):
                return None
            parts[place] = words
        return parts

    def _joined(self, parts: list[Any]) -> WordIds | None:
        ids: list[int] = []
        marks: dict[int, tuple[int, int]] = {}
        char = 0
        known = self._known.__getitem__
        for number, part in enumerate(parts):
            if number % 2:
                marks[char] = (len(ids), char + len(part))
                ids.append(self._added[part])
                char += len(part)
                continue
            try:
                ids.extend(chain.from_iterable(map(known, part)))
            except KeyError:
                return None
            char += sum(map(len, part))
        return WordIds(ids, marks)

    def _learn(self, words: set[str]) -> None:
        """Take in those that are new and that the tokenizer does not cut further."""
        if len(self._known) >= _MOST_WORDS:
            self._known.clear()
        new = list(words.difference(self._known))
        if new:
            for word, encoding in zip(new, self._tokenizer.encode_batch(new, add_special_tokens=False), strict=True):
                if not any(encoding.word_ids[-1:]):
                    self._known[word] = tuple(encoding.ids)


def _any_of(texts: Iterable[str]) -> str:
    """A pattern for the longest of these; by their first characters, since re looks for a common one very fast."""
    by_first: dict[str, list[str]] = {}
    for text in sorted(texts, key=len, reverse=True):
        by_first.setdefault(text[0], []).append(re.escape(text[1:]))
    return "|".join(f"{re.escape(first)}(?:{'|'.join(rest)})" for first, rest in by_first.items())


def _stands_alone(token: AddedToken) -> bool:
    return not (token.lstrip or token.rstrip or token.single_word) and token.content != ""


def _pattern(document: Mapping[str, Any] | None) -> re.Pattern[str] | None:
    """How ASCII text is cut into words by this part of tokenizer.json; None for any way that is not known here."""
    steps = [document] if document is None or document["type"] != "Sequence" else document["pretokenizers"]
    found = None
    match steps:
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            found = _GPT2
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        ]:
            found = _DIGITS_FIRST
        case [
            {"type": "Split", "pattern": {"Regex": str(text)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            found = _SPLITS.get(text)
    return None if found is None else re.compile(found, re.ASCII)
