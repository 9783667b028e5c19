"""What the planner would still need to know, asked only where an answer changes the plan.

Knows: the questions of knowledge/questions.toml, and how to compare a plan with the one that an answer would give.
Does not know: how a plan is made from answers (planner.py hands that in).
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from peftsmith.errors import PeftsmithError


@dataclass(frozen=True)
class Outcome:
    """What a set of answers leads to: dotted plan fields, and the ids of errors and warnings."""

    fields: Mapping[str, Any]
    findings: frozenset[str]


@cache
def catalogue() -> Mapping[str, Mapping[str, Any]]:
    """Question id -> {question, why, answers}; answers map a text to what it sets."""
    text = resources.files("peftsmith").joinpath("knowledge", "questions.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def ask(
    now: Outcome, answered: Collection[str], outcome_of: Callable[[Mapping[str, Any]], Outcome]
) -> list[dict[str, Any]]:
    """The questions with an answer that changes fields or findings: what each such answer would change.

    `outcome_of` makes the plan anew with what an answer sets; an answer that cannot be planned says why.
    """
    found = []
    for id_, entry in catalogue().items():
        if id_ in answered:
            continue
        answers = [_answer(text, sets, now, outcome_of) for text, sets in entry["answers"].items()]
        telling = [each for each in answers if len(each) > 2]
        if telling:
            found.append({"id": id_, "question": entry["question"], "why": entry["why"], "answers": telling})
    return found


def _answer(
    text: str, sets: Mapping[str, Any], now: Outcome, outcome_of: Callable[[Mapping[str, Any]], Outcome]
) -> dict[str, Any]:
    answer: dict[str, Any] = {"answer": text, "sets": dict(sets)}
    try:
        then = outcome_of(sets)
    except PeftsmithError as error:
        return {**answer, "refused": str(error.cause)}
    names = sorted({*now.fields, *then.fields} - set(sets))
    changes = {
        name: [now.fields.get(name), then.fields.get(name)]
        for name in names
        if now.fields.get(name) != then.fields.get(name)
    }
    if changes:
        answer["changes"] = changes
    for name, ids in (("adds", then.findings - now.findings), ("removes", now.findings - then.findings)):
        if ids:
            answer[name] = sorted(ids)
    return answer
