"""One row's text by what it is for, whatever kind of example it is.

Knows: what is asked, what is answered, what stands beside both, and the keys that make rows equal.
Does not know: what is wrong with any of it (content.py and its neighbours).
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import NamedTuple

from peftsmith.data.examples import (
    Answered,
    AnyExample,
    Chat,
    Classified,
    Judged,
    Message,
    Pair,
    Plain,
    Preference,
    Side,
    Tagged,
)

SYSTEM = ("system", "developer")
_PART = "\x1e"


class View(NamedTuple):
    """`asked` holds everything before the answer without system messages: the same question is the same whatever
    stands above it. `beside` holds system messages and rejected answers. `rest` is what is not text (tool calls).

    `text` is all of it for looking through, parts divided by line feeds. `turns` are the roles in their order,
    `earlier` the assistant's earlier answers, `system` is what stands above all.
    """

    asked: str
    answer: str
    text: str
    rest: str = ""
    turns: tuple[str, ...] = ()
    earlier: str = ""
    system: str = ""

    def question_key(self) -> int:
        """Equal (64 bits) for equal questions."""
        return key_of(self.asked)

    def loose_question_key(self) -> int:
        """Equal for questions that differ in nothing but case and white space."""
        return key_of(loose(self.asked))

    def key(self) -> int:
        """Equal for equal rows."""
        return key_of(
            f"{len(self.asked)} {len(self.answer)} {' '.join(self.turns)}{_PART}{self.text}{_PART}{self.rest}"
        )

    def answer_key(self) -> int:
        """Equal for rows in which the assistant says the same; text without a question is its own answer."""
        return key_of(self.answer + self.earlier or self.asked)


def loose(text: str) -> str:
    """Without differences of case and white space."""
    return " ".join(text.split()).casefold()


def key_of(text: str) -> int:
    """64 bits, the same in every process."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def view(example: AnyExample) -> View:
    """The view of any example."""
    if isinstance(example, Chat):
        return _chat(example)
    if isinstance(example, Plain):
        asked = example.prompt or example.completion
        return View(asked, example.completion if example.prompt else "", f"{example.prompt}\n{example.completion}")
    if isinstance(example, Classified):
        asked = example.text if example.second is None else f"{example.text}\n{example.second}"
        return View(asked, example.label, f"{asked}\n{example.label}")
    if isinstance(example, Tagged):
        words = " ".join(example.words)
        return View(words, " ".join(example.tags), words)
    if isinstance(example, Answered):
        asked = f"{example.question}\n{example.context}"
        return View(asked, example.answers[0] if example.answers else "", asked, rest=str(example.starts))
    if isinstance(example, Pair):
        return View(example.source, example.target, f"{example.source}\n{example.target}")
    if isinstance(example, Preference):
        prompt, chosen, rejected = (_side(each) for each in (example.prompt, example.chosen, example.rejected))
        return View(prompt, chosen, f"{prompt}\n{chosen}\n{rejected}")
    assert isinstance(example, Judged)
    prompt, answer = _side(example.prompt), _side(example.completion)
    return View(prompt, answer, f"{prompt}\n{answer}", rest=str(example.desirable))


def _chat(example: Chat) -> View:
    asked, answer, texts, turns, earlier, system = [], [], [], [], [], []
    rest = json.dumps(example.tools, sort_keys=True) if example.tools else ""
    for message in example.prompt:
        role, content = message["role"], message.get("content") or ""
        texts.append(content)
        if role not in SYSTEM:
            asked.append(content)
        else:
            system.append(content)
        if role == "assistant":
            earlier.append(content)
        turns.append(role)
        if len(message) > 2:
            rest += _rest(message)
    for message in example.completion:
        content = message.get("content") or ""
        texts.append(content)
        answer.append(content)
        turns.append(message["role"])
        if len(message) > 2:
            rest += _rest(message)
    if rest:
        texts.append(rest)
    question = asked[0] if len(asked) == 1 else _PART.join(asked)
    return View(
        question, "\n".join(answer), "\n".join(texts), rest, tuple(turns), "\n".join(earlier), "\n".join(system)
    )


def _rest(message: Message) -> str:
    more = {name: value for name, value in message.items() if name not in ("role", "content")}
    return json.dumps(more, sort_keys=True, default=str)


def _side(side: Side) -> str:
    if isinstance(side, str):
        return side
    return "\n".join(str(each.get("content") or "") for each in side if each["role"] not in SYSTEM)
