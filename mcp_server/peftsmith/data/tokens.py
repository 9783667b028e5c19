"""What the trainer will make of rows: lengths, truncation, the loss mask, turn ends, lost content.

Knows: the checks of one row that need a real tokenizer and template.
Does not know: formats and files (examine.py hands it examples with their row numbers), or what all rows together say
(token_report.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from peftsmith.data import labels
from peftsmith.data.content import special_token_search
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
    Tagged,
)
from peftsmith.data.part import Part
from peftsmith.data.rendering import Labelled, Renderer
from peftsmith.data.templating import TemplateRefused, TemplateStopped
from peftsmith.errors import PeftsmithError
from peftsmith.secrets import redact

_TRAINERS: dict[type, labels.TrainerName] = {
    Plain: "sft",
    Preference: "dpo",
    Judged: "kto",
    Classified: "classification",
    Tagged: "tagging",
    Answered: "answers",
    Pair: "seq2seq",
}
_REASONING = ("reasoning_content", "thinking", "reasoning")


class TokenChecks:
    """Token facts of the rows handed to `add`; `max_length` in tokens, as the plan would set it (keep_start).

    A template that was stopped is not asked again.
    """

    def __init__(self, renderer: Renderer, max_length: int, labels: Sequence[str], *, scans: bool) -> None:
        self._part = Part()
        self._renderer = renderer
        self._max_length = max_length
        self._labels = tuple(labels)
        self._special_token = special_token_search(renderer.files.special_texts if scans else frozenset())
        rows = renderer.files.embedding_rows
        self._embedded = rows is None or renderer.files.tokenizer.get_vocab_size() <= rows
        self._blank: dict[int, bool] = {}
        self._refused: PeftsmithError | None = None
        self._no_template = False

    def add(self, rows: list[tuple[int, AnyExample]], part: Part) -> None:
        """Look at some (row number, example) pairs, all of one kind, and write into `part` what they say."""
        self._part = part
        kind = type(rows[0][1]) if rows else None
        if kind is Chat:
            self._chats([(number, example) for number, example in rows if isinstance(example, Chat)])
        elif kind is not None:
            self._others(rows, _TRAINERS[kind])
        part.no_template = self._no_template
        part.unsafe = isinstance(self._refused, (TemplateStopped, TemplateRefused))
        part.refused = str(self._refused.cause if part.unsafe else self._refused) if self._refused else ""

    def _chats(self, rows: list[tuple[int, Chat]]) -> None:
        if self._renderer.files.template is None:
            self._no_template = True
        if self._no_template or self._refused:
            return
        try:
            made = self._renderer.labels_many([example for _, example in rows])
        except (TemplateStopped, TemplateRefused) as error:
            self._refused = error
            return
        for (number, example), row in zip(rows, made, strict=True):
            if isinstance(row, TemplateRefused):
                self._part.token_tallies.add("data.template.refuses", number, str(row.cause))
            else:
                size = len(row.ids)
                self._row(number, row, [(row.start, size)], row.text)
                self._about_chat(number, example.prompt + example.completion, row)
                self._about_special(number, example)

    def _others(self, rows: list[tuple[int, AnyExample]], trainer: labels.TrainerName) -> None:
        """Rows that are no conversation, as their trainer's own rule makes them (labels.py)."""
        if self._refused or self._no_template:
            return
        needs_template = any(isinstance(getattr(example, "prompt", ""), list) for _, example in rows)
        if needs_template and self._renderer.files.template is None:
            self._no_template = True
            return
        settings = labels.Settings(trainer=trainer, max_length=None, labels=self._labels)
        if trainer == "answers":  # a long context is read in windows, as plans have them where they are silent
            settings = replace(settings, max_length=self._max_length, stride=self._max_length // 4)
        try:
            made = labels.rows_of(self._renderer, [example for _, example in rows], settings)
        except PeftsmithError as error:
            self._refused = error
            return
        for (number, example), sequences in zip(rows, made, strict=True):
            if isinstance(example, Answered):
                self._windows(number, example, sequences)
                self._about_special(number, example)
                continue
            for row in sequences:
                if isinstance(row, labels.Row):
                    ends = row.values is None and row.label is None
                    spans = row.spans if row.values is None or trainer == "tagging" else [(0, len(row.values))]
                    measured = Labelled(row.text, row.ids, row.start or 0, row.prompt_length or 0)
                    self._row(number, measured, spans, row.text, cuts=trainer != "seq2seq", ends=ends)
                else:
                    self._part.token_tallies.add("data.template.refuses", number, str(row.cause))
                    break
            self._about_special(number, example)

    def _windows(self, number: int, example: Answered, windows: Sequence[labels.Labelled]) -> None:
        """Count a question with its whole context, of which nothing is cut off: it is read in windows."""
        for id_, detail in about_windows(example, windows):
            self._part.token_tallies.add(id_, number, detail)
        seen = [each for each in windows if isinstance(each, labels.Row)]
        if seen:
            self._part["lengths"].append(seen[0].length)
            self._part.loss_tokens += sum(each.trained for each in seen)

    def _row(
        self,
        number: int,
        row: Labelled,
        spans: list[tuple[int, int]],
        text: str,
        *,
        cuts: bool = True,
        ends: bool = True,
    ) -> None:
        """Count one sequence. `cuts`: max_length also cuts what `spans` point into; `ends`: its end must stop."""
        part, add, files = self._part, self._part.token_tallies.add, self._renderer.files
        size, limit = len(row.ids), self._max_length
        trained = sum(end - first for first, end in spans)
        kept = sum(max(0, min(end, limit) - first) for first, end in spans) if cuts and size > limit else trained
        part["lengths"].append(size)
        part.loss_tokens += kept
        part.lost_loss_tokens += trained - kept
        if trained == 0:
            add("data.tokens.no_loss", number)
        elif kept == 0:
            add("data.tokens.completion_cut", number, f"the prompt alone has {row.start} tokens")
        elif size > limit:
            add("data.tokens.truncated", number)
        part.truncated_rows += size > limit
        if files.max_positions is not None and min(size, limit) > files.max_positions:
            add("data.tokens.beyond_positions", number, f"the model has {files.max_positions} positions")
        if row.prompt_length > row.start:
            add("data.tokens.boundary_merged", number, f"they part {row.prompt_length - row.start} token(s) early")
        if trained and ends:
            end_fault, last = self._end(row)
            if end_fault:
                add(end_fault, number, f"the answer ends with {last!r}")
        if files.bos_id is not None and row.ids[:2] == [files.bos_id] * 2:
            add("data.tokens.double_bos", number)
        if not self._embedded and row.ids and max(row.ids) >= (files.embedding_rows or 0):
            add("data.tokens.outside_embedding", number, f"id {max(row.ids)}, embedding rows {files.embedding_rows}")

    def _about_chat(self, number: int, conversation: list[Message], row: Labelled) -> None:
        gone = lost(conversation, row.text)
        if gone:
            self._part.token_tallies.add(gone[0], number, gone[1])

    def _about_special(self, number: int, example: AnyExample) -> None:
        special = self._special_token(example)
        if special:
            self._part.token_tallies.add("data.rows.special_token", number, special)

    def _end(self, row: Labelled) -> tuple[str, str | None]:
        """(finding id, last token) for how the row ends; no id when its end is trained and stops generation.

        White space behind the end token (ChatML writes a line feed there) does no harm.
        """
        files = self._renderer.files
        place = len(row.ids) - 1
        while place > row.start and row.ids[place] not in self._renderer.eos_ids and self._is_blank(row.ids[place]):
            place -= 1
        last = row.ids[place]
        token = files.tokenizer.id_to_token(last)
        if not files.stop_ids:
            return "data.tokens.end_unknown", token
        if last in files.stop_ids:
            return "", token
        return "data.tokens.end_mismatch" if last == files.eos_id else "data.tokens.end_untrained", token

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = not self._renderer.files.tokenizer.decode([token], skip_special_tokens=False).strip()
        return self._blank[token]


def about_windows(example: Answered, windows: Sequence[labels.Labelled]) -> Iterator[tuple[str, str]]:
    """(finding id, detail) for a question that no window has room for, and for an answer that no window holds."""
    for each in windows:
        if isinstance(each, PeftsmithError):
            yield "data.answers.question_long", each.cause
            return
    if example.answers and all(isinstance(each, labels.Row) and each.start is None for each in windows):
        yield "data.answers.lost", redact(example.answers[0])


def lost(conversation: list[Message], text: str) -> tuple[str, str] | None:
    """(finding id, detail) when a message's content or reasoning does not survive the template."""
    for message in conversation:
        content = (message.get("content") or "").strip()
        if content and content not in text:
            reasoned = "</think>" in content and content.rpartition("</think>")[2].strip() in text
            id_ = "data.template.reasoning_stripped" if reasoned else "data.template.content_lost"
            return id_, f"the {message['role']}'s message"
        for name in _REASONING:
            reasoning = message.get(name)
            if isinstance(reasoning, str) and reasoning.strip() not in text:
                return "data.template.reasoning_stripped", f"{name} of the {message['role']}'s message"
    return None
