"""What is wrong with what a trainer learns from: the checks of the loss-mask proof over every row of a set.

Knows: ends of turns, dropped and cut rows, borders of prompt and answer, doubled bos, ids without an embedding,
templates that mark nothing or strip reasoning, settings without effect. Works from labels.Row, for every trainer.
Does not know: files and formats, or what a real trainer made of the same rows (proof.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from peftsmith.data import labels
from peftsmith.data.examples import Answered, AnyExample, Chat
from peftsmith.data.labels import Labelled, NoAssistantTokens, Row, Settings
from peftsmith.data.rendering import Renderer
from peftsmith.data.tally import Lengths, Tallies
from peftsmith.data.tokens import about_windows, lost
from peftsmith.finding import Finding, finding

# Marks that templates write and that mean nothing unless the vocabulary has them as one token.
_MARK = re.compile(r"<\|[A-Za-z][A-Za-z0-9_\- ]{0,40}\|>|<(?:start|end)_of_turn>")


class Supervision:
    """Facts about the rows handed to `add`; `renderer` and `settings` are those that made them."""

    def __init__(self, renderer: Renderer, settings: Settings) -> None:
        self.lengths = Lengths()
        self.rows = 0
        self.usable = 0
        self.kept = 0
        self.trained = 0
        self.tokens = 0
        self.lost_loss_tokens = 0
        self.stopped_at: int | None = None  # the first row at which the trainer would stop
        self._renderer = renderer
        self._settings = settings
        self._tallies = Tallies()
        self._blank: dict[int, bool] = {}
        self._said: list[str] = []
        self._longest_answer = 0  # of those that are too long for the plan

    def add(self, number: int, example: AnyExample, rows: Sequence[Labelled]) -> list[str]:
        """Look at one example's rows; the ids of what there was to say about them."""
        self._said = []
        self.rows += 1
        self.usable += 1
        if isinstance(example, Answered):
            return self._windows(number, example, rows)
        for row in rows:
            if isinstance(row, Row):
                self._row(number, row)
            else:
                self.stopped_at = self.stopped_at or number
                id_ = "data.mask.assistant_empty" if isinstance(row, NoAssistantTokens) else "data.template.refuses"
                self._say(id_, number, row.cause)
        usable = [row for row in rows if isinstance(row, Row)]
        self.kept += bool(usable) and not any(row.dropped for row in usable)
        if isinstance(example, Chat) and usable:
            gone = lost(example.prompt + example.completion, usable[0].text)
            if gone:
                self._say(gone[0], number, gone[1])
        return self._said

    def _windows(self, number: int, example: Answered, rows: Sequence[Labelled]) -> list[str]:
        for id_, detail in about_windows(example, rows):
            self._say(id_, number, detail)
        seen = [row for row in rows if isinstance(row, Row)]
        if not seen:
            self.stopped_at = self.stopped_at or number
            return self._said
        self.kept += 1
        self.lengths.add(seen[0].length)
        for row in seen:
            self.tokens += len(row.ids)
            self.trained += row.trained
            self._about_ids(number, row)
        most = self._settings.max_answer_tokens
        longest = max((row.trained for row in seen if row.start is not None), default=0)
        if most is not None and longest > most:
            self._longest_answer = max(self._longest_answer, longest)
            self._say("data.answers.long", number, f"{longest} tokens, the plan allows {most}")
        if not example.answers and not self._settings.unanswerable:
            self._say("data.answers.unsaid", number)
        return self._said

    def _say(self, id_: str, number: int, detail: str = "") -> None:
        self._said.append(id_)
        self._tallies.add(id_, number, detail)

    def unusable(self, number: int, id_: str, why: str) -> None:
        """A row that becomes no example: the training script stops at it."""
        self.rows += 1
        self._tallies.add(id_, number, why)

    def _row(self, number: int, row: Row) -> None:
        add, settings = self._say, self._settings
        trained = sum(end - first for first, end in row.spans) if row.values is None else row.trained
        self.lengths.add(row.length)
        if not row.dropped:
            self.tokens += len(row.ids)
            self.trained += trained
        self.lost_loss_tokens += row.trained - trained
        cut = len(row.ids) < row.length
        if settings.trainer in ("sft", "dpo", "kto"):
            if row.trained == 0:
                add("data.tokens.no_loss", number)
            elif row.dropped or trained == 0:
                add("data.tokens.completion_cut", number, f"{row.length} tokens, loss from token {row.start or 0} on")
            elif cut or (settings.packing and settings.max_length is not None and row.length > settings.max_length):
                add("data.tokens.truncated", number)
            if row.merged and row.start is not None and row.prompt_length is not None:
                add("data.tokens.boundary_merged", number, f"they part {row.prompt_length - row.start} token(s) early")
            if trained and not (cut and settings.truncation_mode == "keep_start"):
                end, last = self._end(row)
                if end:
                    add(end, number, f"the last token with loss is {last!r}")
        elif cut:
            add("data.tokens.truncated", number)
        self._about_ids(number, row)

    def _about_ids(self, number: int, row: Row) -> None:
        add, files = self._say, self._renderer.files
        if files.bos_id is not None and row.ids[:2] == [files.bos_id] * 2:
            add("data.tokens.double_bos", number)
        if files.max_positions is not None and len(row.ids) > files.max_positions:
            add("data.tokens.beyond_positions", number, f"the model has {files.max_positions} positions")
        if files.embedding_rows is not None and row.ids and max(row.ids) >= files.embedding_rows:
            add("data.tokens.outside_embedding", number, f"id {max(row.ids)}, embedding rows {files.embedding_rows}")

    def _end(self, row: Row) -> tuple[str, str | None]:
        """(finding id, last token) for how the loss ends; no id when its last token stops generation.

        White space behind the end token (ChatML writes a line feed there) does no harm.
        """
        files = self._renderer.files
        places = [place for first, end in reversed(row.spans[-2:]) for place in range(end - 1, first - 1, -1)]
        stops = self._renderer.eos_ids
        place = next(
            (each for each in places if row.ids[each] in stops or not self._is_blank(row.ids[each])), places[0]
        )
        last = row.ids[place]
        token = files.tokenizer.id_to_token(last)
        if not stops:
            return "data.tokens.end_unknown", token
        if last in files.stop_ids or (not files.stop_ids and last == files.eos_id):
            return "", token
        return "data.tokens.end_mismatch" if last == files.eos_id else "data.tokens.end_untrained", token

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = not self._renderer.files.tokenizer.decode([token], skip_special_tokens=False).strip()
        return self._blank[token]

    def count(self, id_: str) -> int:
        return self._tallies.count(id_)

    def suggested_max_length(self) -> int | None:
        """Enough for the longest row, in steps of 64, but never more than the model has positions."""
        summary = self.lengths.summary()
        if summary is None:
            return None
        wanted = -(-summary["max"] // 64) * 64
        positions = self._renderer.files.max_positions
        return min(wanted, positions) if positions else wanted

    def findings(self) -> Iterator[Finding]:
        """Everything that was seen, once all rows are in; a patch stands in the evidence where one mends it."""
        cut: dict[str, Any] = {"max_length": self._settings.max_length, "loss_tokens_lost": self.lost_loss_tokens}
        longer = self.suggested_max_length()
        if longer and self._settings.max_length is not None and longer > self._settings.max_length:
            cut["patch"] = {"training.max_length": longer}
        more = {"data.tokens.truncated": cut, "data.tokens.completion_cut": cut}
        if self._longest_answer:
            longer = -(-self._longest_answer // 10) * 10
            more["data.answers.long"] = {"patch": {"training.max_answer_tokens": longer}}
        more["data.answers.unsaid"] = {"patch": {"data.unanswerable": True}}
        yield from self._tallies.findings(self.rows, more)
        yield from about_settings(self._renderer, self._settings)


def about_settings(renderer: Renderer, settings: Settings) -> Iterator[Finding]:
    """What settings and template alone already say."""
    files = renderer.files
    chats = settings.trainer in ("sft", "dpo", "kto")
    if settings.trainer == "sft" and settings.columns == "messages" and settings.completion_only_loss:
        yield finding("data.mask.ineffective")
    if settings.trainer == "sft" and settings.packing and settings.packing_strategy == "wrapped":
        yield finding("data.packing.leaks", "wrapped packing lets each sample see those before it in its pack")
    if settings.assistant_only_loss and files.template is not None and files.template == settings.training_template:
        yield finding("data.template.swapped")
    if settings.assistant_only_loss and not labels.has_marks(files.template):
        yield finding("data.mask.no_generation")
    missing = [mark for mark in marks_of(files.template) if files.tokenizer.token_to_id(mark) is None] if chats else []
    if missing:
        yield finding(
            "data.template.token_missing",
            f"The chat template writes {missing[0]!r}, which the vocabulary does not have as one token",
            tokens=missing[:10],
        )
    pad = files.pad_id if files.pad_id is not None else files.eos_id
    if pad is not None and pad in renderer.eos_ids:
        hides = settings.trainer == "seq2seq"
        yield finding(
            "data.tokens.pad_is_eos",
            "The padding token is the eos token. The collator in use sets labels to -100 by position, not by id, so "
            "that the real eos is still trained" + ("; generation needs an attention mask." if hides else "."),
            pad_id=pad,
            masked_by_collator=False,
        )


def marks_of(template: str | None) -> list[str]:
    """Texts of the form <|name|> that a template writes, in order of appearance."""
    return list(dict.fromkeys(_MARK.findall(template))) if template else []
