"""The ids and labels of classification, tagging, question and encoder-decoder rows, as the generated scripts make them.

Knows: truncation of one text or a pair, one label a word (its first token), windows over a context and the places of
an answer in them, targets of an encoder-decoder.
Does not know: language models (labels.py), metrics, or which id a label has in an existing model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftsmith.data.examples import Answered, AnyExample, Classified, Pair, Tagged
from peftsmith.data.labels import IGNORED, Labelled, QuestionTooLong, Row, Settings, SettingsRefused
from peftsmith.data.rendering import Renderer
from peftsmith.data.spans import spans_of

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


def rows_of(renderer: Renderer, examples: Sequence[AnyExample], settings: Settings) -> list[list[Labelled]]:
    """One row for each example, for a question one a window of its context.

    Source: transformers 5.23 examples/pytorch run_glue, run_ner, run_qa, run_summarization.

    Raises SettingsRefused for rows of another kind and for a label that settings.labels does not hold.
    """
    if settings.trainer == "answers" and all(isinstance(each, Answered) for each in examples):
        return _answered(renderer, [each for each in examples if isinstance(each, Answered)], settings)
    tokenizer = _truncating(renderer, settings.max_length)
    if settings.trainer == "classification" and all(isinstance(each, Classified) for each in examples):
        return [[row] for row in _classified(tokenizer, [e for e in examples if isinstance(e, Classified)], settings)]
    if settings.trainer == "tagging" and all(isinstance(each, Tagged) for each in examples):
        return [[row] for row in _tagged(tokenizer, [e for e in examples if isinstance(e, Tagged)], settings)]
    if settings.trainer == "seq2seq" and all(isinstance(each, Pair) for each in examples):
        target = _truncating(renderer, settings.max_target_length)
        return [[row] for row in _pairs(tokenizer, target, [e for e in examples if isinstance(e, Pair)])]
    raise SettingsRefused(
        f"These rows are not of the kind that {settings.trainer} trains on",
        next_step="Choose the task that fits the rows, or prepare the rows for this one.",
    )


def _classified(tokenizer: Tokenizer, examples: list[Classified], settings: Settings) -> list[Row]:
    texts = [each.text if each.second is None else (each.text, each.second) for each in examples]
    encoded = tokenizer.encode_batch(texts)
    return [
        Row(one.ids, [], each.text, length=_length(one), label=_id(each.label, settings))
        for each, one in zip(examples, encoded, strict=True)
    ]


def _tagged(tokenizer: Tokenizer, examples: list[Tagged], settings: Settings) -> list[Row]:
    """Words are tokenised one by one and joined, as tokenizers does with words; it needs numpy for the latter."""
    from tokenizers import Encoding

    words = [word for each in examples for word in each.words]
    pieces = iter(tokenizer.encode_batch(words, add_special_tokens=False) if words else [])
    made = []
    for example in examples:
        parts = [next(pieces) for _ in example.words]
        owners = [word for word, part in enumerate(parts) for _ in part.ids]  # of each token
        whole = tokenizer.post_process(Encoding.merge(parts, True))
        special = whole.special_tokens_mask
        kept = len(whole.ids) - sum(special)
        offset = _cut_before(tokenizer, len(owners) - kept)
        places = iter(owners[offset : offset + kept])
        values, before = [], -1
        for frame in special:
            word = before if frame else next(places)
            # The first kept token of a word, which need not be the word's first
            values.append(IGNORED if word == before else _id(example.tags[word], settings))
            before = word
        spans = spans_of([value != IGNORED for value in values])
        trained = sum(end - first for first, end in spans)
        length = len(owners) + sum(special)
        made.append(Row(whole.ids, spans, " ".join(example.words), length=length, trained=trained, values=values))
    return made


def _cut_before(tokenizer: Tokenizer, lost: int) -> int:
    """How many of the `lost` tokens truncation took from the front."""
    return lost if (tokenizer.truncation or {}).get("direction") == "left" else 0


def _answered(renderer: Renderer, examples: list[Answered], settings: Settings) -> list[list[Labelled]]:
    encoded = renderer.files.tokenizer.encode_batch([(each.question, each.context) for each in examples])
    cls = renderer.files.special.get("cls_token")
    nothing = renderer.files.tokenizer.token_to_id(cls) if cls else None
    return [_windows(each, one, nothing, settings) for each, one in zip(examples, encoded, strict=True)]


def _windows(example: Answered, whole: Encoding, nothing: int | None, settings: Settings) -> list[Labelled]:
    """What tokenizers cuts with `only_second` and a stride: question and frame stay, the context moves on."""
    ids, offsets = whole.ids, whole.offsets
    places = [place for place, owner in enumerate(whole.sequence_ids) if owner == 1]
    text = f"{example.question}\n{example.context}"
    if not places:
        return [QuestionTooLong("The tokenizer makes nothing of the context", next_step="Correct the row.")]
    first, end = places[0], places[-1] + 1
    room = end - first
    if settings.max_length is not None and len(ids) > settings.max_length:
        room -= len(ids) - settings.max_length
        if room <= settings.stride:
            cause = f"the question leaves {max(room, 0)} places of {settings.max_length} for the context"
            return [QuestionTooLong(cause, next_step="Shorten the question, raise max_length or lower stride.")]
    made: list[Labelled] = []
    for begin in range(first, end, room - settings.stride if room < end - first else room):
        stop = min(begin + room, end)
        kept = [*ids[:first], *ids[begin:stop], *ids[end:]]
        default = kept.index(nothing) if nothing in kept else 0
        span = _places(example, offsets[begin:stop])
        left, right = (default, default) if span is None else (first + span[0], first + span[1])
        spans = [(left, right + 1)]
        held = None if span is None else left
        made.append(Row(kept, spans, text, held, length=len(ids), trained=right + 1 - left, values=[left, right]))
        if stop == end:
            break
    return made


def _places(example: Answered, offsets: list[tuple[int, int]]) -> tuple[int, int] | None:
    """First and last of these tokens of a context that hold the answer; None where they hold not all of it."""
    if not example.answers:
        return None
    text, start = example.answers[0], example.starts[0]
    start, end = start + len(text) - len(text.lstrip()), start + len(text.rstrip())
    if offsets[0][0] > start or offsets[-1][1] < end:
        return None
    inside = [place for place, (left, right) in enumerate(offsets) if right > start and left < end]
    return (inside[0], inside[-1]) if inside else None


def _pairs(source: Tokenizer, target: Tokenizer, examples: list[Pair]) -> list[Row]:
    read = source.encode_batch([each.source for each in examples])
    written = target.encode_batch([each.target for each in examples])
    return [
        Row(one.ids, [], each.source, length=_length(one), trained=len(other.ids), values=other.ids)
        for each, one, other in zip(examples, read, written, strict=True)
    ]


def _length(encoding: Encoding) -> int:
    """Tokens of the text and of what truncation cut off."""
    return len(encoding.ids) + sum(len(each.ids) - _special(each) for each in encoding.overflowing)


def _special(encoding: Encoding) -> int:
    return sum(encoding.special_tokens_mask)


def _id(label: str, settings: Settings) -> int:
    try:
        return settings.labels.index(label)
    except ValueError:
        raise SettingsRefused(
            f"The label {label!r} is not one of the plan's labels",
            next_step="Add it to data.labels, or correct the row.",
        ) from None


def _truncating(renderer: Renderer, most: int | None) -> Tokenizer:
    """A copy that cuts at `most` tokens, special ones included; of a pair the longer text is cut first."""
    tokenizer = renderer.files.tokenizer
    if most is None:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.enable_truncation(most, strategy="longest_first", direction=renderer.files.truncation_side)
    return tokenizer
