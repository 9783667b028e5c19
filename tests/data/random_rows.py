"""Random rows of every kind, from a seed: texts that tokenizers and templates stumble over."""

from __future__ import annotations

import random
from typing import Any

from peftsmith.data.examples import Answered, Chat, Classified, Judged, Pair, Plain, Preference, Tagged

WORDS = [
    *(
        "the",
        "parcel",
        "never",
        "came",
        "Straße",
        "déjà",
        "naïve",
        "日本語",
        "مرحبا",
        "שלום",
        "🙂👍🏽",
        "don't",
        "3.14",
    ),
    *("<b>", "{{x}}", "\n", "\n\n", "  ", "\t", "<|im_start|>", "<|im_end|>", "</s>", "<s>", "<think>", "</think>"),
    *("assistant", "Ünï", "%}", "\r\n", "\u200d", "e\u0301", "\x00", "\ufeff", " ", "|", "🏳️‍🌈", "{% generation %}"),
]
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"ü": {}}}}},
    {"type": "function", "function": {"name": "route", "description": "to a queue", "parameters": None}},
]
LABELS = ("none", "billing", "été")


def text(draw: random.Random, most: int = 25) -> str:
    return draw.choice(["", " "]).join(draw.choice(WORDS) for _ in range(draw.randint(1, most))) or "x"


def chat(draw: random.Random, template: str) -> Chat:
    """A conversation that the template takes (nearly always)."""
    strict = template in ("alternating", "no_system")
    prompt: list[dict[str, Any]] = []
    if draw.random() < 0.4 and template != "no_system":
        prompt.append({"role": "system", "content": draw.choice([text(draw), ""])})
    for turn in range(draw.randint(1, 3)):
        if turn:
            prompt.append(answer(draw, template))
            if template == "tools" and prompt[-1].get("tool_calls"):
                prompt.append({"role": "tool", "name": "weather", "content": text(draw, 5)})
        prompt.append({"role": "user", "content": text(draw)})
        if not strict and draw.random() < 0.2:
            prompt.append({"role": "user", "content": text(draw)})
    tools = draw.choice([None, [], TOOLS[:1], TOOLS]) if template == "tools" else None
    return Chat(prompt, [answer(draw, template)], tools)


def answer(draw: random.Random, template: str) -> dict[str, Any]:
    made: dict[str, Any] = {"role": "assistant", "content": text(draw)}
    if draw.random() < 0.3:
        made["reasoning_content"] = text(draw, 8)
    if template == "tools" and draw.random() < 0.4:
        arguments = draw.choice([{}, {"city": text(draw, 2)}, {"a": [1, None, 2.5], "b": {"c": True}}])
        made["tool_calls"] = [{"type": "function", "function": {"name": "weather", "arguments": arguments}}]
    return made


def plain(draw: random.Random, *, prompted: bool, eos: str) -> Plain:
    end = draw.choice(["", "", eos])
    return Plain(text(draw) if prompted else "", text(draw) + end)


def preference(draw: random.Random, template: str, *, conversational: bool, eos: str) -> Preference:
    if conversational:
        first = chat(draw, template)
        return Preference(first.prompt, first.completion, [answer(draw, template)], first.tools)
    return Preference(text(draw), text(draw) + draw.choice(["", eos]), text(draw))


def judged(draw: random.Random, template: str, *, conversational: bool, eos: str) -> Judged:
    if conversational:
        first = chat(draw, template)
        return Judged(first.prompt, first.completion, draw.random() < 0.5)
    return Judged(text(draw), text(draw) + draw.choice(["", eos]), draw.random() < 0.5)


def classified(draw: random.Random, *, pairs: bool) -> Classified:
    return Classified(text(draw), draw.choice(LABELS), text(draw) if pairs else None)


def tagged(draw: random.Random) -> Tagged:
    words = [draw.choice([word for word in WORDS if word.strip()]) for _ in range(draw.randint(1, 20))]
    return Tagged(words, [draw.choice(LABELS) for _ in words])


def answered(draw: random.Random) -> Answered:
    """A question with no answer, or with one that begins and ends anywhere in the context, white space included."""
    context = text(draw, 60)
    while not context.strip():
        context = text(draw, 60)
    answers, starts = [], []
    for _ in range(draw.choice([0, 1, 1, 1, 3])):
        start = draw.choice([0, draw.randrange(len(context)), len(context) - 1])
        found = context[start : draw.choice([start + draw.randint(1, 30), len(context)])]
        if found.strip():
            answers.append(found)
            starts.append(start)
    return Answered(text(draw, 6), context, answers, starts)


def pair(draw: random.Random) -> Pair:
    return Pair(text(draw), text(draw))
