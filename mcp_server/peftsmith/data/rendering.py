"""Rows as the trainer sees them: text, token ids, and which of them carry loss.

Knows: a model's own template and tokenizer, TRL's rule for prompt/completion rows, truncation.
Does not know: where rows come from, or what is good about them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from peftsmith.data import tokenizer_files
from peftsmith.data.examples import Chat, Message
from peftsmith.data.templating import Conversation, Pair, Rendered, Template, TemplateRefused
from peftsmith.data.words import WordIds, Words
from peftsmith.errors import PeftsmithError

if TYPE_CHECKING:
    from tokenizers import Encoding

_LONGEST_TAIL = 256
_MOST_TAILS = 1024
_FEW_TEXTS = 1000  # reading the tokenizer's parts for words takes about as long as so many texts
_SHORTEST_START, _MOST_STARTS, _MOST_TRIES = 16, 8, 500


class Start(NamedTuple):
    """A beginning of a text: its characters and its token ids."""

    size: int
    ids: list[int]


_NO_START = Start(0, [])


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
        self._tool_template = Template(files.tool_template, files.special) if files.tool_template else None
        self._last_border = ""
        added = {token.content for token in files.tokenizer.get_added_tokens_decoder().values()}
        whole = {each for each in files.borders if not any(each in other for other in added - {each})}
        self._words: Words | None = None
        self._encoded = 0
        self._starts = _Starts(frozenset(whole), self.ids)
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
            raise _no_template()
        return self._template.render([(_as_template_sees(messages), prompt) for messages, prompt in conversations])

    def rendered(self, conversations: Sequence[Conversation]) -> list[Rendered | TemplateRefused]:
        """`texts` with tools, and with the places of generation blocks.

        Rows that declare tools go to the tokenizer's tool_use template where it has one, as in transformers.
        """
        seen = [each._replace(messages=_as_template_sees(each.messages)) for each in conversations]
        answers: dict[int, Rendered | TemplateRefused] = {}
        for with_tools in (False, True):
            places = [at for at, each in enumerate(seen) if (each.tools is not None) == with_tools]
            template = (self._tool_template if with_tools else None) or self._template
            if places and template is None:
                raise _no_template()
            if places and template is not None:
                answers |= zip(places, template.render_marked([seen[at] for at in places]), strict=True)
        return [answers[at] for at in range(len(seen))]

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
        return self.labels_of(self.pairs(examples))

    def pairs(self, examples: Sequence[Chat]) -> list[Pair | TemplateRefused]:
        """Each row's text, and that of its prompt. Tools go to the tokenizer's tool_use template where it has one."""
        wanted = [
            (_as_template_sees([*each.prompt, *each.completion]), len(each.prompt), each.tools) for each in examples
        ]
        if self._template is None:
            raise _no_template()
        if self._tool_template is None or not any(each.tools for each in examples):
            return self._template.render_pairs(wanted)
        answers: dict[int, Pair | TemplateRefused] = {}
        for template, with_tools in ((self._template, False), (self._tool_template, True)):
            places = [at for at, each in enumerate(examples) if (each.tools is not None) == with_tools]
            answers |= zip(places, template.render_pairs([wanted[at] for at in places]), strict=True)
        return [answers[at] for at in range(len(examples))]

    def labels_of(self, pairs: Sequence[Pair | TemplateRefused]) -> list[Labelled | TemplateRefused]:
        """Token ids of rendered rows, and where the loss starts.

        A special token cuts the text, so the ids of a beginning that many rows share (a system message) are kept, and
        only what follows is tokenised.
        """
        starts = [self._starts.of(pair.text) if isinstance(pair, Pair) else _NO_START for pair in pairs]
        texts = [pair.text[start.size :] for pair, start in zip(pairs, starts, strict=True) if isinstance(pair, Pair)]
        encodings = iter(self.encoded(texts))
        return [
            self.labelled(pair.prompt, pair.text, next(encodings), start) if isinstance(pair, Pair) else pair
            for pair, start in zip(pairs, starts, strict=True)
        ]

    def encoded(self, texts: Sequence[str]) -> list[Encoding | WordIds]:
        """Ids of rendered texts without added special tokens: by known words, else by the tokenizer on all cores."""
        if self._encoded <= _FEW_TEXTS < self._encoded + len(texts):
            self._words = Words.of(self.files.tokenizer)
        self._encoded += len(texts)
        found = self._words.encode_many(texts) if self._words else [None] * len(texts)
        rest = [text for text, known in zip(texts, found, strict=True) if known is None]
        encodings = iter(self.files.tokenizer.encode_batch(rest, add_special_tokens=False) if rest else ())
        return [known or next(encodings) for known in found]

    def labelled(
        self, prompt: str | int, whole: str, encoding: Encoding | WordIds, start: Start = _NO_START
    ) -> Labelled:
        """Where the ids of the two texts part; `prompt` is a text, or how much of the whole it is.

        `encoding` is that of `whole` behind `start`, without added special tokens.
        """
        ids = start.ids + encoding.ids if start.ids else encoding.ids
        if isinstance(prompt, str):
            if not whole.startswith(prompt):
                return _compared(whole, ids, self.ids(prompt))
            prompt = len(prompt)
        border = self._border(whole, prompt) - start.size
        place = encoding.char_to_token(border) if border >= 0 else None
        if place is None or encoding.token_to_chars(place) != (border, border + len(self._last_border)):
            return _compared(whole, ids, self.ids(whole[:prompt]))
        # A special token cuts the text: what stands before it is tokenised alike in both texts, so only the short
        # end of the prompt behind it is left to compare, and that is nearly always the same ("assistant\n").
        tail = self._tail(whole[border + start.size : prompt])
        place += len(start.ids)
        end = place + len(tail)
        return Labelled(whole, ids, place + common_prefix_length(tail, ids[place:end]), end)

    def _border(self, whole: str, prompt: int) -> int:
        """Where the last of the prompt's special tokens stands; -1 when there is none near its end."""
        near = max(0, prompt - _LONGEST_TAIL)
        border = whole.rfind(self._last_border, near, prompt) if self._last_border else -1
        if border < 0:
            places = ((whole.rfind(text, near, prompt), text) for text in self.files.borders)
            border, self._last_border = max(places, default=(-1, ""))
        return border

    def _tail(self, text: str) -> list[int]:
        ids = self._tails.get(text)
        if ids is None:
            if len(self._tails) >= _MOST_TAILS:
                self._tails.clear()
            ids = self._tails[text] = self.ids(text)
        return ids


class _Starts:
    """Beginnings that many texts share, up to a special token: found by comparing each new text with the one before.

    `borders` must cut a text wherever they stand and lie in no longer added token: then the text before one is
    tokenised alike whether or not the rest follows.
    """

    def __init__(self, borders: frozenset[str], ids: Callable[[str], list[int]]) -> None:
        self._borders, self._ids = borders, ids
        self._known: list[tuple[str, Start]] = []
        self._before = ""
        self._tries = _MOST_TRIES

    def of(self, text: str) -> Start:
        for place, (beginning, start) in enumerate(self._known):
            if text.startswith(beginning):
                if place:
                    self._known.insert(0, self._known.pop(place))
                return start
        if self._tries > 0:
            self._tries -= 1
            self._learn(text, _common(self._before, text))
            self._before = text
        return _NO_START

    def _learn(self, text: str, common: int) -> None:
        place, border = max(((text.rfind(each, 1, common), each) for each in self._borders), default=(-1, ""))
        if place >= _SHORTEST_START:
            start = Start(place, self._ids(text[:place]))
            self._known = [(text[: place + len(border)], start), *self._known[: _MOST_STARTS - 1]]


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def _compared(whole: str, ids: list[int], alone: list[int]) -> Labelled:
    return Labelled(whole, ids, common_prefix_length(alone, ids), len(alone))


class NoTemplate(PeftsmithError):
    """Text was asked of a tokenizer without a chat template."""


def _no_template() -> NoTemplate:
    return NoTemplate(
        "The tokenizer has no chat template (chat_template is null)",
        next_step="Take the instruct model, or put a chat_template.jinja beside tokenizer.json.",
    )


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


_PLAIN = {"role", "content"}


def _as_template_sees(messages: list[Message]) -> list[Message]:
    """Without keys that are None, and with reasoning under the names that transformers 5 gives it."""
    seen = []
    for message in messages:
        if message.keys() == _PLAIN and message["content"] is not None:
            seen.append(message)
            continue
        kept = {name: value for name, value in message.items() if value is not None}
        reasoning = next((kept[name] for name in _REASONING if name in kept), None)
        if reasoning is not None:
            kept = {"thinking": reasoning, **kept, "reasoning_content": reasoning}
        seen.append(kept)
    return seen
