"""The ids and labels that a trainer makes of rows, computed without it: the fast path of the loss-mask proof.

Knows: TRL 1.16's SFTTrainer and its settings: which tokens of a row carry loss, truncation, dropped rows.
Does not know: preferences (labels_preference.py), encoders (labels_encoder.py), packing and padding (batches.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from peftsmith.data.examples import AnyExample, Chat, Plain
from peftsmith.data.rendering import Labelled as Split
from peftsmith.data.rendering import Renderer, common_prefix_length
from peftsmith.data.spans import Span, clip, marked_tokens
from peftsmith.data.templating import Conversation, Rendered, TemplateRefused
from peftsmith.errors import PeftsmithError

if TYPE_CHECKING:
    from tokenizers import Encoding

IGNORED = -100
TrainerName = Literal["sft", "dpo", "kto", "classification", "tagging", "answers", "seq2seq"]
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Settings:
    """What decides about ids and labels; names and defaults are those of TRL 1.16's configs.

    `columns` says whether conversations reach SFTTrainer as prompt and completion or as messages. `template` replaces
    the tokenizer's own; `training_template` is the one with generation blocks that SFTTrainer swaps in by itself for
    assistant_only_loss, where TRL knows the model's. `labels` are the class or tag names in the order of their ids;
    `max_target_length` is seq2seq's; `stride`, `max_answer_tokens` and `unanswerable` are question answering's.
    """

    trainer: TrainerName = "sft"
    columns: Literal["prompt_completion", "messages"] = "prompt_completion"
    completion_only_loss: bool | None = None
    assistant_only_loss: bool = False
    max_length: int | None = 1024
    truncation_mode: Literal["keep_start", "keep_end"] = "keep_start"
    packing: bool = False
    packing_strategy: Literal["bfd", "bfd_split", "wrapped"] = "bfd"
    padding_free: bool = False
    pad_to_multiple_of: int | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    template: str | None = None
    training_template: str | None = None
    labels: tuple[str, ...] = ()
    max_target_length: int | None = None
    stride: int = 0
    max_answer_tokens: int | None = None
    unanswerable: bool = True

    @property
    def flattens(self) -> bool:
        """Whether a batch becomes one sequence without padding."""
        return self.padding_free or (self.packing and self.packing_strategy != "wrapped")


@dataclass(frozen=True)
class Row:
    """One sequence as the trainer holds it before batching.

    `spans` are the places of `ids` that carry loss, in order. `values` are labels that are no ids of the same place
    (tags; the target of an encoder-decoder; first and last place of an answer, with `start` where the window holds
    it), `label` a class. `prompt_length` is that of the tokenised prompt alone,
    more than `start` where the two renderings part early. `dropped` rows never reach a batch.
    """

    ids: list[int]
    spans: list[Span]
    text: str = ""
    start: int | None = None
    prompt_length: int | None = None
    length: int = 0  # in tokens, before truncation
    trained: int = 0  # places that carried loss before truncation
    dropped: bool = False
    part: Literal["", "chosen", "rejected"] = ""
    values: list[int] | None = None
    label: int | None = None

    @property
    def merged(self) -> bool:
        return self.start is not None and self.prompt_length is not None and self.prompt_length > self.start

    def labels(self) -> list[int]:
        """One label a place, IGNORED where there is no loss."""
        if self.values is not None:
            return self.values
        labels = [IGNORED] * len(self.ids)
        for first, end in self.spans:
            labels[first:end] = self.ids[first:end]
        return labels

    def mask_bits(self) -> list[int]:
        """1 where a place carries loss."""
        bits = [0] * len(self.ids)
        for first, end in self.spans:
            bits[first:end] = [1] * (end - first)
        return bits


class NoAssistantTokens(PeftsmithError):
    """SFTTrainer refuses a set with a row like this one when assistant_only_loss is on."""


class QuestionTooLong(PeftsmithError):
    """A question that leaves no room in a window for more of its context than the window before has."""


class SettingsRefused(PeftsmithError):
    """The trainer does not start with these settings, or on rows of this kind."""


Labelled = Row | PeftsmithError


def renderer_for(renderer: Renderer, settings: Settings) -> Renderer:
    """The renderer as the trainer's settings change it: another eos token, another template."""
    files = renderer.files
    if settings.eos_token is not None:
        eos_id = files.tokenizer.token_to_id(settings.eos_token)
        if eos_id is None:
            raise SettingsRefused(
                f"The eos_token {settings.eos_token!r} is not in the tokenizer's vocabulary, so that the trainer stops",
                next_step="Name a token of the vocabulary, or leave eos_token out.",
            )
        files = replace(files, special={**files.special, "eos_token": settings.eos_token}, eos_id=eos_id)
    template = settings.template if settings.template is not None else files.template
    if settings.assistant_only_loss and settings.training_template is not None and not has_marks(template):
        template = settings.training_template
    if template != files.template:
        files = replace(files, template=template, tool_template=None)
    return renderer if files is renderer.files else Renderer(files)


def has_marks(template: str | None) -> bool:
    """True when a template has `{% generation %}` blocks (TRL 1.16, chat_template_utils.has_generation_markers)."""
    return template is not None and _MARKED.search(template) is not None


def rows_of(renderer: Renderer, examples: Sequence[AnyExample], settings: Settings) -> list[list[Labelled]]:
    """For each example its rows (a preference has two) or the error that stops the trainer at it.

    `renderer` is that of `renderer_for`. Raises TemplateStopped when the template breaks a limit, PeftsmithError for
    settings that the trainer refuses.
    """
    from peftsmith.data import labels_encoder, labels_preference

    if settings.trainer in ("dpo", "kto"):
        return labels_preference.rows_of(renderer, examples, settings)
    if settings.trainer != "sft":
        return labels_encoder.rows_of(renderer, examples, settings)
    refused = refusal(settings)
    if refused:
        raise SettingsRefused(f"SFTTrainer refuses these settings: {refused}", next_step="Change them in the plan.")
    chats = [each for each in examples if isinstance(each, Chat)]
    texts = [each for each in examples if isinstance(each, Plain)]
    if len(chats) + len(texts) != len(examples):
        other = next(each for each in examples if not isinstance(each, (Chat, Plain)))
        raise SettingsRefused(
            f"SFTTrainer takes conversations and text, not {type(other).__name__} rows",
            next_step="Choose the trainer that fits the rows, or prepare the rows for this one.",
        )
    made = {id(each): row for each, row in zip(chats, _chats(renderer, chats, settings), strict=True)}
    made |= {id(each): row for each, row in zip(texts, _texts(renderer, texts, settings), strict=True)}
    return [[made[id(each)]] for each in examples]


def refusal(settings: Settings) -> str:
    """Why SFTTrainer would not start with these settings, or nothing."""
    if settings.packing and settings.max_length is None:
        return "packing needs a max_length"
    if settings.padding_free and not settings.packing and settings.max_length is not None:
        return "padding_free without packing does not enforce max_length, which must be null then"
    return ""


def _chats(renderer: Renderer, examples: Sequence[Chat], settings: Settings) -> list[Labelled]:
    """Conversations. Source: trl 1.16 sft_trainer.py `_prepare_dataset` (tokenize_fn, build_labels, truncate)."""
    if not examples:
        return []
    two = settings.columns == "prompt_completion"
    if two and not settings.assistant_only_loss:
        return [_answer(row, settings) for row in renderer.labels_many(examples)]
    wanted = [Conversation(each.prompt + each.completion, False, each.tools) for each in examples]
    if two:
        wanted += [Conversation(each.prompt, True, each.tools) for each in examples]
    answers = renderer.rendered(wanted)
    wholes = answers[: len(examples)]
    prompts: Sequence[Rendered | TemplateRefused | None] = answers[len(examples) :] if two else [None] * len(examples)
    encodings = iter(encode(renderer, [each.text for each in wholes if isinstance(each, Rendered)], special=False))
    made: list[Labelled] = []
    for whole, prompt in zip(wholes, prompts, strict=True):
        if isinstance(whole, TemplateRefused):
            made.append(whole)
            continue
        encoding = next(encodings)
        if isinstance(prompt, TemplateRefused):
            made.append(prompt)
        else:
            made.append(_chat(renderer, prompt, whole, encoding, settings))
    return made


def _answer(row: Split | TemplateRefused, settings: Settings) -> Labelled:
    """A row whose loss lies on the answer, or on everything: no generation block is needed."""
    if isinstance(row, TemplateRefused):
        return row
    first = row.start if settings.completion_only_loss is not False else 0
    return truncated(Row(row.ids, [(first, len(row.ids))], row.text, row.start, row.prompt_length), settings)


def _chat(
    renderer: Renderer, prompt: Rendered | None, whole: Rendered, encoding: Encoding, settings: Settings
) -> Labelled:
    ids = encoding.ids
    spans: list[Span] = [(0, len(ids))]
    start = length = None
    if prompt is not None:
        split = renderer.labelled(prompt.text, whole.text, encoding)
        start, length = split.start, split.prompt_length
        if settings.completion_only_loss is not False:
            spans = [(start, len(ids))]
    if settings.assistant_only_loss:
        try:
            assistant = marked_tokens(encoding, whole.spans)
        except OverflowError:
            return NoAssistantTokens(
                "The template's generation block is empty at the very start of a row, at which transformers stops",
                next_step="Use a template with {% generation %} around the assistant's words.",
            )
        if not assistant:
            return NoAssistantTokens(
                "assistant_only_loss is on, but the template marks no token of this row as the assistant's",
                next_step="Use a template with {% generation %} around the assistant's words.",
            )
        spans = [part for first, end in spans for part in clip(assistant, first, end)]
    return truncated(Row(ids, spans, whole.text, start, length), settings)


def _texts(renderer: Renderer, examples: Sequence[Plain], settings: Settings) -> list[Labelled]:
    """Text without roles: the eos token is added where it is missing, and the tokenizer adds its special tokens."""
    if not examples:
        return []
    if settings.assistant_only_loss:
        raise SettingsRefused(
            "SFTTrainer refuses these settings: assistant_only_loss needs conversations",
            next_step="Set assistant_only_loss to false for text rows.",
        )
    eos = end_token(renderer)
    wholes = [each.prompt + ended(each.completion, eos) for each in examples]
    encoded = encode(renderer, wholes, special=True)
    prompts = iter(encode(renderer, [each.prompt for each in examples if each.prompt], special=True))
    made: list[Labelled] = []
    for example, whole, encoding in zip(examples, wholes, encoded, strict=True):
        ids = encoding.ids
        if not example.prompt:
            made.append(truncated(Row(ids, [(0, len(ids))], whole), settings))
            continue
        alone = next(prompts).ids
        start = common_prefix_length(alone, ids)
        first = start if settings.completion_only_loss is not False else 0
        made.append(truncated(Row(ids, [(first, len(ids))], whole, start, len(alone)), settings))
    return made


def end_token(renderer: Renderer) -> str:
    eos = renderer.files.special.get("eos_token")
    if eos is None:
        raise SettingsRefused(
            "The tokenizer has no eos token, so that the trainer cannot end a text",
            next_step="Set eos_token in tokenizer_config.json, or in the plan.",
        )
    return eos


def ended(text: str, eos: str) -> str:
    return text if text.endswith(eos) else text + eos


def encode(renderer: Renderer, texts: list[str], *, special: bool) -> list[Encoding]:
    return renderer.files.tokenizer.encode_batch(texts, add_special_tokens=special)


def truncated(row: Row, settings: Settings) -> Row:
    """A row cut to max_length after its labels were made; without a label left it is dropped.

    Not with packing, which cuts by itself, and not without max_length. Source: as `_chats`.
    """
    spans = [span for span in row.spans if span[0] < span[1]]
    length, trained = len(row.ids), sum(end - first for first, end in spans)
    if settings.max_length is None or settings.packing:
        return replace(row, spans=spans, length=length, trained=trained)
    first, end = kept_places(length, settings)
    if end - first < length:
        spans = [(left - first, right - first) for left, right in clip(spans, first, end)]
        row = replace(row, ids=row.ids[first:end])
    return replace(row, spans=spans, length=length, trained=trained, dropped=not spans)


def kept_places(length: int, settings: Settings) -> Span:
    if settings.max_length is None:
        return 0, length
    if settings.truncation_mode == "keep_start":
        return 0, min(length, settings.max_length)
    return max(0, length - settings.max_length), length
