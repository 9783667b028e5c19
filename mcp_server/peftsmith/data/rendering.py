"""Rows as the trainer sees them: text, token ids, and which of them carry loss.

Knows: a model's own template and tokenizer, TRL's rule for prompt/completion rows, truncation.
Does not know: where rows come from, or what is good about them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from peftsmith.data import tokenizer_files
from peftsmith.data.examples import Chat, Message
from peftsmith.data.templating import Template, TemplateRefused
from peftsmith.errors import PeftsmithError

if TYPE_CHECKING:
    from tokenizers import Encoding

_LONGEST_TAIL = 256
_MOST_TAILS = 1024


@dataclass(frozen=True)
class Labelled:
    """One row before truncation: `ids`, of which those from `start` on carry loss.

    `prompt_length` is the length of the tokenised prompt alone; it is more than `start` when the two renderings part
    before the prompt ends (a token merged across the boundary, or a template that renders the prompt differently).
    """

    text: str
    ids: list[int]
    start: int
    prompt_length: int

    def mask(self) -> list[bool]:
        return [place >= self.start for place in range(len(self.ids))]


class Renderer:
    """A model's tokenizer and chat template. The template runs in a process of its own (see templating.py)."""

    def __init__(self, files: tokenizer_files.TokenizerFiles) -> None:
        self.files = files
        self._template = Template(files.template, files.special) if files.template is not None else None
        self._last_border = ""
        self._tails: dict[str, list[int]] = {}

    @classmethod
    def load(cls, folder: Path) -> Renderer:
        """From a folder with tokenizer.json; a missing chat template is an error only once text is asked for."""
        return cls(tokenizer_files.load(folder))

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends a generation: the model's own list and the tokenizer's eos token."""
        own = self.files.eos_id
        return self.files.stop_ids if own is None else self.files.stop_ids | {own}

    def text(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        """What transformers' apply_chat_template(messages, tokenize=False) gives; a failure is a PeftsmithError."""
        [rendered] = self.texts([(messages, add_generation_prompt)])
        if isinstance(rendered, TemplateRefused):
            raise rendered
        return rendered

    def texts(self, conversations: Sequence[tuple[list[Message], bool]]) -> list[str | TemplateRefused]:
        """`text` for many (messages, add_generation_prompt) at once; a refusal stands in its place of the list."""
        if self._template is None:
            raise PeftsmithError(
                "The tokenizer has no chat template (chat_template is null)",
                next_step="Take the instruct model, or put a chat_template.jinja beside tokenizer.json.",
            )
        return self._template.render([(_as_template_sees(messages), prompt) for messages, prompt in conversations])

    def ids(self, text: str) -> list[int]:
        """Token ids of rendered text; no special tokens are added, since the template has written them."""
        return self.files.tokenizer.encode(text, add_special_tokens=False).ids

    def labels(self, example: Chat) -> tuple[list[int], list[bool]]:
        """(ids, carries_loss) of a row as TRL 1.16 makes them for prompt/completion with completion_only_loss.

        Prompt (with generation prompt) and prompt+completion are rendered and tokenised on their own; the loss starts
        where they part. No EOS is added to conversational rows; truncation comes later. Source: trl 1.16
        sft_trainer.py `_prepare_dataset.tokenize_fn` and data_utils.py `common_prefix_length`.
        """
        [row] = self.labels_many([example])
        if isinstance(row, TemplateRefused):
            raise row
        return row.ids, row.mask()

    def labels_many(self, examples: Sequence[Chat]) -> list[Labelled | TemplateRefused]:
        """`labels` for many rows, tokenised as one batch on all cores."""
        wanted: list[tuple[list[Message], bool]] = []
        for example in examples:
            wanted.append((example.prompt, True))
            wanted.append((example.prompt + example.completion, False))
        rendered = self.texts(wanted)
        wholes = [text for text in rendered[1::2] if isinstance(text, str)]
        encodings = iter(self.files.tokenizer.encode_batch(wholes, add_special_tokens=False))
        result: list[Labelled | TemplateRefused] = []
        for prompt, whole in zip(rendered[::2], rendered[1::2], strict=True):
            encoding = next(encodings) if isinstance(whole, str) else None
            if isinstance(prompt, TemplateRefused):
                result.append(prompt)
            elif isinstance(whole, TemplateRefused):
                result.append(whole)
            elif encoding is not None:
                result.append(self._labelled(prompt, whole, encoding))
        return result

    def _labelled(self, prompt: str, whole: str, encoding: Encoding) -> Labelled:
        ids = encoding.ids
        border = self._border(prompt) if whole.startswith(prompt) else None
        place = encoding.char_to_token(border) if border is not None else None
        span = encoding.token_to_chars(place) if place is not None else None
        if border is None or place is None or span != (border, border + len(self._last_border)):
            alone = self.ids(prompt)
            return Labelled(whole, ids, common_prefix_length(alone, ids), len(alone))
        # A special token cuts the text: what stands before it is tokenised alike in both texts, so only the short
        # end of the prompt behind it is left to compare, and that is nearly always the same ("assistant\n").
        tail = self._tail(prompt[border:])
        end = place + len(tail)
        return Labelled(whole, ids, place + common_prefix_length(tail, ids[place:end]), end)

    def _border(self, prompt: str) -> int | None:
        """Where the last of the prompt's special tokens stands; None when there is none near its end."""
        border = prompt.rfind(self._last_border) if self._last_border else -1
        if border < 0 or len(prompt) - border > _LONGEST_TAIL:
            near = max(0, len(prompt) - _LONGEST_TAIL)
            places = ((prompt.rfind(text, near), text) for text in self.files.borders)
            border, self._last_border = max(places, default=(-1, ""))
        return border if border >= 0 else None

    def _tail(self, text: str) -> list[int]:
        ids = self._tails.get(text)
        if ids is None:
            if len(self._tails) >= _MOST_TAILS:
                self._tails.clear()
            ids = self._tails[text] = self.ids(text)
        return ids


def common_prefix_length(ids: list[int], other: list[int]) -> int:
    """How many leading ids both have in common."""
    if other[: len(ids)] == ids:
        return len(ids)
    return next((place for place, pair in enumerate(zip(ids, other, strict=False)) if pair[0] != pair[1]), len(other))


def truncate(
    ids: list[int],
    carries_loss: list[bool],
    max_length: int | None,
    mode: Literal["keep_start", "keep_end"] = "keep_start",
) -> tuple[list[int], list[bool]] | None:
    """A row cut to `max_length` tokens as TRL cuts it, after the labels were made; None when TRL drops the row.

    TRL 1.16 drops rows without any label left, and only when a max_length is set.
    """
    if max_length is None:
        return ids, carries_loss
    part = slice(None, max_length) if mode == "keep_start" else slice(-max_length, None)
    if not any(carries_loss[part]):
        return None
    return ids[part], carries_loss[part]


_REASONING = ("reasoning_content", "thinking", "reasoning")


def _as_template_sees(messages: list[Message]) -> list[Message]:
    """Without keys that are None, and with reasoning under the names that transformers 5 gives it."""
    seen = []
    for message in messages:
        kept = {name: value for name, value in message.items() if value is not None}
        reasoning = next((kept[name] for name in _REASONING if name in kept), None)
        if reasoning is not None:
            kept = {"thinking": reasoning, **kept, "reasoning_content": reasoning}
        seen.append(kept)
    return seen
