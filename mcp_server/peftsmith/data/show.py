"""Rows as the trainer will see them, for people: what carries loss, how long rows are, which are the same.

Knows: which trainer fits a row, cutting a row into pieces with and without loss, lengths and duplicates of a set.
Does not know: terminals (show_terminal.py), pages (show_html.py), or what a real trainer makes of the rows (proof.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

from peftsmith import files
from peftsmith.data import labels, proof
from peftsmith.data.convert import as_chat, to_example
from peftsmith.data.examples import Answered, AnyExample, Classified, Judged, Pair, Tagged
from peftsmith.data.formats import Detected, detect
from peftsmith.data.labels import IGNORED, Row, Settings
from peftsmith.data.mapping import Mapping
from peftsmith.data.rendering import Renderer
from peftsmith.data.supervision import Supervision
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, worst_first
from peftsmith.secrets import redact_parts

MOST_ROWS = 200
LONGEST_SHOWN = 20_000  # characters of one row
BINS = 24
_CHUNK = 256
_MOST_GROUPS = 50
Loss = Literal["answer", "assistant", "all"]


@dataclass(frozen=True)
class Piece:
    """A run of text that carries loss or does not."""

    text: str
    trained: bool


@dataclass(frozen=True)
class ShownRow:
    """`part` tells the two answers of a preference apart; `note` says what happens to the row, if anything does."""

    number: int
    pieces: list[Piece]
    tokens: int
    trained_tokens: int
    part: str = ""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "row": self.number,
            **({"part": self.part} if self.part else {}),
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            **({"note": self.note} if self.note else {}),
            "pieces": [{"text": piece.text, "trained": piece.trained} for piece in self.pieces],
        }


@dataclass(frozen=True)
class Shown:
    """`histogram`: (from, to, rows) in tokens before truncation. `duplicates`: row numbers of equal rows."""

    name: str
    settings: Settings
    rows: list[ShownRow]
    counts: dict[str, Any]
    histogram: list[tuple[int, int, int]]
    duplicates: list[list[int]]
    findings: list[Finding] = field(default_factory=list)


def show(
    path: Path,
    folder: Path,
    *,
    rows: int = 3,
    loss: Loss = "answer",
    max_length: int | None = 1024,
    mapping: Mapping | None = None,
    system_prompt: str | None = None,
) -> Shown:
    """Look at the first `rows` rows closely, and at all of them for lengths and duplicates.

    `folder` holds the tokenizer. Raises PeftsmithError for a file that cannot be read or a template that is stopped.
    """
    detected = detect(path, mapping or Mapping())
    settings = settings_for(detected, loss, max_length)
    renderer = labels.renderer_for(Renderer.load(folder), settings)
    seen = Supervision(renderer, settings)
    source = proof.Source(path, _reader(detected, settings, system_prompt))
    shown: list[ShownRow] = []
    groups: dict[bytes, list[int]] = {}
    everything = proof.examples_of(source, seen.unusable)
    while chunk := list(islice(everything, _CHUNK)):
        made = labels.rows_of(renderer, [example for _, example in chunk], settings)
        for (number, example), each in zip(chunk, made, strict=True):
            seen.add(number, example, each)
            groups.setdefault(_key(example), []).append(number)
            if len({row.number for row in shown} | {number}) <= min(rows, MOST_ROWS):
                shown += [_shown(renderer, number, example, row, settings) for row in each]
    return Shown(
        name=files.clean(path.name, 200),
        settings=settings,
        rows=shown,
        counts=proof.counts_of(seen),
        histogram=seen.lengths.histogram(BINS),
        duplicates=[group for group in groups.values() if len(group) > 1][:_MOST_GROUPS],
        findings=worst_first(seen.findings()),
    )


def tokenizer_of(model: str | None) -> Path:
    """The folder with a base model's tokenizer; without a model there is nothing to show."""
    from peftsmith.model import source

    if model is None:
        raise PeftsmithError(
            "What carries loss depends on the model's tokenizer and template",
            next_step="Name the base model (--model): a local folder or a hub id.",
        )
    return source.tokenizer_folder(source.open_model(model))


def settings_for(detected: Detected, loss: Loss, max_length: int | None) -> Settings:
    """The trainer that rows of this format go to, and where its loss lies."""
    base = Settings(max_length=max_length)
    if detected.format == "preference":
        return replace(base, trainer="dpo")
    if detected.format == "kto":
        return replace(base, trainer="kto")
    if detected.format == "token_classification":
        return replace(base, trainer="tagging", labels=tuple(detected.labels))
    if detected.format == "question_answering":
        return replace(base, trainer="answers", stride=(max_length or 0) // 4)
    if detected.format == "seq2seq":
        return replace(base, trainer="seq2seq", max_target_length=max_length)
    if detected.format == "text":
        return base
    if loss == "assistant":
        return replace(base, columns="messages", assistant_only_loss=True)
    return replace(base, completion_only_loss=loss == "answer")


def _reader(
    detected: Detected, settings: Settings, system_prompt: str | None
) -> Callable[[dict[str, Any]], AnyExample]:
    def read(row: dict[str, Any]) -> AnyExample:
        example = to_example(row, detected.mapping)
        # A class is learned as the answer to its text, as train.py does it
        return as_chat(example, system_prompt) or example if settings.trainer == "sft" else example

    return read


def _key(example: AnyExample) -> bytes:
    return hashlib.blake2b(repr(example).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _shown(
    renderer: Renderer, number: int, example: AnyExample, row: Row | PeftsmithError, settings: Settings
) -> ShownRow:
    if isinstance(row, PeftsmithError):
        return ShownRow(number, [], 0, 0, note=f"the trainer stops here: {files.clean(row.cause, 300)}")
    notes = []
    if row.dropped:
        notes.append("dropped: max_length leaves nothing to learn")
    elif len(row.ids) < row.length and settings.trainer == "answers":
        notes.append(f"a window of {row.length} tokens")
    elif len(row.ids) < row.length:
        notes.append(f"cut from {row.length} tokens")
    if row.merged:
        notes.append("the prompt alone is tokenised otherwise than in the row")
    if isinstance(example, Judged):
        notes.append("wanted" if example.desirable else "not wanted")
    if isinstance(example, Answered) and row.start is None:
        notes.append("no answer here")
    if isinstance(example, Classified):
        notes.append(f"class {files.clean(example.label, 60)}")
    cut = list(_pieces(renderer, example, row, settings))
    texts = redact_parts([each.text for each in cut])
    pieces = [Piece(visible(text), each.trained) for text, each in zip(texts, cut, strict=True) if text]
    trained = sum(end - first for first, end in row.spans) if row.values is None else row.trained
    return ShownRow(number, _shortened(pieces), len(row.ids), trained, row.part, "; ".join(notes))


def _pieces(renderer: Renderer, example: AnyExample, row: Row, settings: Settings) -> Iterator[Piece]:
    decode = renderer.files.tokenizer.decode
    if isinstance(example, Pair) and row.values is not None:
        yield Piece(decode(row.ids, skip_special_tokens=False) + "\n", False)
        yield Piece(decode([each for each in row.values if each != IGNORED], skip_special_tokens=False), True)
    elif isinstance(example, Tagged):
        for word, tag in zip(example.words, example.tags, strict=True):
            yield Piece(f"{word}/{tag}", True)
            yield Piece(" ", False)
    else:
        yield from _cut(renderer, row, settings)


def _cut(renderer: Renderer, row: Row, settings: Settings) -> Iterator[Piece]:
    """A row's text cut where the loss starts and ends: by its tokens' places in the text, else token by token."""
    tokenizer = renderer.files.tokenizer
    first, end = labels.kept_places(row.length, settings)
    borders = [0, *(place for span in row.spans for place in span), len(row.ids)]
    texts = [tokenizer.decode(row.ids[left:right], skip_special_tokens=False) for left, right in pairwise(borders)]
    for special in (False, True):
        encoding = tokenizer.encode(row.text, add_special_tokens=special)
        if encoding.ids[first:end] == row.ids and row.ids:
            places = [start for start, _ in encoding.offsets[first:end]]
            places.append(max(stop for _, stop in encoding.offsets[first:end]))
            texts = [row.text[places[left] : places[right]] for left, right in pairwise(borders)]
            break
    for number, text in enumerate(texts):
        if text:
            yield Piece(text, number % 2 == 1)


def _shortened(pieces: list[Piece]) -> list[Piece]:
    """At most LONGEST_SHOWN characters, with the middle of long pieces left out."""
    most = LONGEST_SHOWN // max(len(pieces), 1)
    return [
        replace(each, text=f"{each.text[: most // 2]} … {each.text[-most // 2 :]}") if len(each.text) > most else each
        for each in pieces
    ]


def visible(text: str) -> str:
    """Text in which characters that change how other text is shown are named instead of obeyed."""
    return "".join(each if each in "\n\t" or not _hidden(each) else f"⟨U+{ord(each):04X}⟩" for each in text)


def _hidden(character: str) -> bool:
    code = ord(character)
    return (
        code < 32
        or 127 <= code < 160
        or 0x202A <= code <= 0x202E
        or 0x2066 <= code <= 0x2069
        or code in (0x2028, 0x2029, 0xFEFF)
        or 0xD800 <= code < 0xE000
    )
