"""The ids and labels of classification, tagging and encoder-decoder rows, as transformers' own examples make them.

Knows: truncation of one text or a pair, one label a word (its first token), targets of an encoder-decoder.
Does not know: language models (labels.py), metrics, or which id a label has in an existing model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftsmith.data.examples import AnyExample, Classified, Pair, Tagged
from peftsmith.data.labels import IGNORED, Labelled, Row, Settings
from peftsmith.data.rendering import Renderer
from peftsmith.errors import PeftsmithError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


def rows_of(renderer: Renderer, examples: Sequence[AnyExample], settings: Settings) -> list[list[Labelled]]:
    """One row for each example. Source: transformers 5.23 examples/pytorch run_glue, run_ner, run_summarization.

    Raises PeftsmithError for rows of another kind and for a label that settings.labels does not hold.
    """
    tokenizer = _truncating(renderer, settings.max_length)
    if settings.trainer == "classification" and all(isinstance(each, Classified) for each in examples):
        return [[row] for row in _classified(tokenizer, [e for e in examples if isinstance(e, Classified)], settings)]
    if settings.trainer == "tagging" and all(isinstance(each, Tagged) for each in examples):
        return [[row] for row in _tagged(tokenizer, [e for e in examples if isinstance(e, Tagged)], settings)]
    if settings.trainer == "seq2seq" and all(isinstance(each, Pair) for each in examples):
        target = _truncating(renderer, settings.max_target_length)
        return [[row] for row in _pairs(tokenizer, target, [e for e in examples if isinstance(e, Pair)])]
    raise PeftsmithError(
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
    made = []
    encoded = tokenizer.encode_batch([each.words for each in examples], is_pretokenized=True)
    for example, one in zip(examples, encoded, strict=True):
        values, before = [], None
        for word in one.word_ids:
            fresh = word is not None and word != before
            values.append(_id(example.tags[word], settings) if fresh and word is not None else IGNORED)
            before = word
        spans = [(place, place + 1) for place, value in enumerate(values) if value != IGNORED]
        length = _length(one)
        row = Row(one.ids, spans, " ".join(example.words), length=length, trained=len(spans), values=values)
        made.append(row)
    return made


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
        raise PeftsmithError(
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
