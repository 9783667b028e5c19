"""The ids and loss masks that TRL's DPOTrainer and KTOTrainer make of rows.

Knows: where the answer starts in a pair, what truncation leaves and drops, eos on plain text (TRL 1.16).
Does not know: SFTTrainer (labels.py), the loss, or reference models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from peftsmith.data import labels
from peftsmith.data.examples import AnyExample, Judged, Message, Preference
from peftsmith.data.labels import Labelled, Row, Settings, SettingsRefused
from peftsmith.data.rendering import Renderer, common_prefix_length
from peftsmith.data.templating import Conversation, Rendered, TemplateRefused

Part = Literal["", "chosen", "rejected"]


class _Split(NamedTuple):
    """One answer behind its prompt: where the two texts part, and how long the prompt is alone."""

    text: str
    ids: list[int]
    start: int
    prompt_length: int


def rows_of(renderer: Renderer, examples: Sequence[AnyExample], settings: Settings) -> list[list[Labelled]]:
    """Two rows (chosen, rejected) of a Preference, one of a Judged; or one error for both.

    Source: trl 1.16 dpo_trainer.py and kto_trainer.py, `_prepare_dataset` and their collators.
    """
    wanted = Preference if settings.trainer == "dpo" else Judged
    known = [each for each in examples if isinstance(each, (Preference, Judged)) and isinstance(each, wanted)]
    if len(known) < len(examples):
        other = next(each for each in examples if not isinstance(each, wanted))
        raise SettingsRefused(
            f"{settings.trainer.upper()}Trainer does not take {type(other).__name__} rows",
            next_step="Choose the trainer that fits the rows, or prepare the rows for this one.",
        )
    chats, texts = [], []  # every side, in the order of `examples`
    for example in known:
        for _, answer in _sides(example):
            if isinstance(example.prompt, list) and isinstance(answer, list):
                chats.append((example.prompt, answer, example.tools if isinstance(example, Preference) else None))
            elif isinstance(example.prompt, str) and isinstance(answer, str):
                texts.append((example.prompt, answer))
            else:
                raise SettingsRefused(
                    "One side of a preference is text, the other a conversation",
                    next_step="Write both as text, or both as messages.",
                )
    from_chats, from_texts = _chats(renderer, chats), _texts(renderer, texts)
    made: list[list[Labelled]] = []
    for example in known:
        source = from_chats if isinstance(example.prompt, list) else from_texts
        parts = [part for part, _ in _sides(example)]
        made.append(_rows(parts, [next(source) for _ in parts], settings))
    return made


def _sides(example: Preference | Judged) -> list[tuple[Part, list[Message] | str]]:
    if isinstance(example, Preference):
        return [("chosen", example.chosen), ("rejected", example.rejected)]
    return [("", example.completion)]


def _rows(parts: list[Part], splits: list[_Split | TemplateRefused], settings: Settings) -> list[Labelled]:
    refused = next((each for each in splits if isinstance(each, TemplateRefused)), None)
    if refused is not None:
        return [refused]
    found = [each for each in splits if isinstance(each, _Split)]
    # A pair has one prompt: what both answers leave of it
    start = min(each.start for each in found)
    full = settings.max_length is not None and start >= settings.max_length
    made: list[Labelled] = []
    for part, each in zip(parts, found, strict=True):
        row = Row(each.ids, [(start, len(each.ids))], each.text, start, each.prompt_length, part=part)
        # Only a prompt that fills the row drops it; an empty answer behind a shorter one stays, without loss
        made.append(replace(labels.truncated(row, settings), dropped=full))
    return made


def _chats(
    renderer: Renderer, sides: list[tuple[list[Message], list[Message], list[dict[str, Any]] | None]]
) -> Iterator[_Split | TemplateRefused]:
    wanted = [Conversation(prompt, True, tools) for prompt, _, tools in sides]
    wanted += [Conversation(prompt + answer, False, tools) for prompt, answer, tools in sides]
    answers = renderer.rendered(wanted) if sides else []
    prompts, wholes = answers[: len(sides)], answers[len(sides) :]
    texts = [each.text for each in wholes if isinstance(each, Rendered)]
    encodings = iter(labels.encode(renderer, texts, special=False))
    for prompt, whole in zip(prompts, wholes, strict=True):
        if isinstance(whole, TemplateRefused):
            yield whole
            continue
        encoding = next(encodings)
        if isinstance(prompt, TemplateRefused):
            yield prompt
        else:
            found = renderer.labelled(prompt.text, whole.text, encoding)
            yield _Split(whole.text, found.ids, found.start, found.prompt_length)


def _texts(renderer: Renderer, sides: list[tuple[str, str]]) -> Iterator[_Split | TemplateRefused]:
    if not sides:
        return
    eos = labels.end_token(renderer)
    texts = [prompt + labels.ended(answer, eos) for prompt, answer in sides]
    alone = labels.encode(renderer, [prompt for prompt, _ in sides], special=True)
    for text, prompt, whole in zip(texts, alone, labels.encode(renderer, texts, special=True), strict=True):
        yield _Split(text, whole.ids, common_prefix_length(prompt.ids, whole.ids), len(prompt.ids))
