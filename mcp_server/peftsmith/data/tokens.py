"""What the trainer will make of rows: lengths, truncation, the loss mask, turn ends, lost content.

Knows: the checks that need a real tokenizer and template; one pass, chunk by chunk.
Does not know: formats and files (audit.py hands it examples with their row numbers).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from peftsmith.data.rendering import Labelled, Renderer
from peftsmith.data.tally import Lengths, Tallies
from peftsmith.data.templating import Pair as Rendering
from peftsmith.data.templating import TemplateRefused, TemplateStopped
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding

_TRAINERS: dict[type, labels.TrainerName] = {
    Plain: "sft",
    Preference: "dpo",
    Judged: "kto",
    Classified: "classification",
    Tagged: "tagging",
    Answered: "answers",
    Pair: "seq2seq",
}
_AHEAD = 3  # chunks that may wait: enough to keep both threads busy
_MUCH_PADDING = 0.25
_MOST_ROWS, _MOST_TOKENS = 32, 16_384
_REASONING = ("reasoning_content", "thinking", "reasoning")


class TokenAudit:
    """Token facts of the rows handed to `add`; `max_length` in tokens, as the plan would set it (keep_start).

    Rows are rendered in one thread and tokenised in another, while whoever calls `add` reads on: the template's
    process and the tokenizer work without this interpreter. `finish` waits for both.
    """

    def __init__(
        self,
        renderer: Renderer,
        max_length: int,
        *,
        batch_size: int = 8,
        labels: Sequence[str] = (),
        scans: bool = True,
    ) -> None:
        self.lengths = Lengths()
        self.loss_tokens = 0
        self.truncated_rows = 0
        self.lost_loss_tokens = 0
        self._renderer = renderer
        self._max_length = max_length
        self._batch_size = batch_size
        self._labels = tuple(labels)
        self._tallies = Tallies()
        self._special_token = special_token_search(renderer.files.special_texts if scans else frozenset())
        rows = renderer.files.embedding_rows
        self._embedded = rows is None or renderer.files.tokenizer.get_vocab_size() <= rows
        self._blank: dict[int, bool] = {}
        self._refused: PeftsmithError | None = None
        self._no_template = False
        self._renders = ThreadPoolExecutor(1, "render")
        self._tokenises = ThreadPoolExecutor(1, "tokenise")
        self._pending: deque[Future[None]] = deque()

    def add(self, rows: list[tuple[int, AnyExample]]) -> None:
        """Look at some (row number, example) pairs, all of one kind. A template that was stopped is not asked again."""
        if not rows:
            return
        kind = type(rows[0][1])
        if kind is Chat:
            chats = [(number, example) for number, example in rows if isinstance(example, Chat)]
            rendered = self._renders.submit(self._render, chats)
            self._pending.append(self._tokenises.submit(self._chats, chats, rendered))
        else:
            self._pending.append(self._tokenises.submit(self._others, rows, _TRAINERS[kind]))
        while len(self._pending) > _AHEAD:
            self._pending.popleft().result()

    def finish(self) -> None:
        """Wait for all rows, and end the threads."""
        try:
            while self._pending:
                self._pending.popleft().result()
        finally:
            self.close()

    def close(self) -> None:
        self._renders.shutdown(cancel_futures=True)
        self._tokenises.shutdown(cancel_futures=True)

    def _render(self, rows: list[tuple[int, Chat]]) -> list[Rendering | TemplateRefused]:
        if self._renderer.files.template is None:
            self._no_template = True
        if self._no_template or self._refused:
            return []
        try:
            return self._renderer.pairs([example for _, example in rows])
        except (TemplateStopped, TemplateRefused) as error:
            self._refused = error
            return []

    def _chats(self, rows: list[tuple[int, Chat]], rendered: Future[list[Rendering | TemplateRefused]]) -> None:
        pairs = rendered.result()
        if not pairs:
            return
        for (number, example), row in zip(rows, self._renderer.labels_of(pairs), strict=True):
            if isinstance(row, TemplateRefused):
                self._tallies.add("data.template.refuses", number, str(row.cause))
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
                    self._tallies.add("data.template.refuses", number, str(row.cause))
                    break
            self._about_special(number, example)

    def _windows(self, number: int, example: Answered, windows: Sequence[labels.Labelled]) -> None:
        """Count a question with its whole context; what is in no window is not cut off, but not seen either."""
        for id_, detail in about_windows(example, windows):
            self._tallies.add(id_, number, detail)
        seen = [each for each in windows if isinstance(each, labels.Row)]
        if seen:
            self.lengths.add(seen[0].length)
            self.loss_tokens += sum(each.trained for each in seen)

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
        add, files = self._tallies.add, self._renderer.files
        size, limit = len(row.ids), self._max_length
        trained = sum(end - first for first, end in spans)
        kept = sum(max(0, min(end, limit) - first) for first, end in spans) if cuts and size > limit else trained
        self.lengths.add(size)
        self.loss_tokens += kept
        self.lost_loss_tokens += trained - kept
        if trained == 0:
            add("data.tokens.no_loss", number)
        elif kept == 0:
            add("data.tokens.completion_cut", number, f"the prompt alone has {row.start} tokens")
        elif size > limit:
            add("data.tokens.truncated", number)
        self.truncated_rows += size > limit
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
            self._tallies.add(gone[0], number, gone[1])

    def _about_special(self, number: int, example: AnyExample) -> None:
        special = self._special_token(example)
        if special:
            self._tallies.add("data.rows.special_token", number, special)

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

    def suggested_max_length(self) -> int | None:
        """p99 rounded up (the maximum when it is at most twice p99, so that nothing is cut), to 8 or above 512 to 64.

        Capped by the model's positions. Multiples of 8 fill tensor cores; see NVIDIA's matrix multiplication guide.
        """
        numbers = self.lengths.summary()
        if numbers is None:
            return None
        wanted = numbers["max"] if numbers["max"] <= 2 * numbers["p99"] else numbers["p99"]
        step = 8 if wanted <= 512 else 64
        suggested = -(-wanted // step) * step
        positions = self._renderer.files.max_positions
        return min(suggested, positions) if positions else suggested

    def padding(self) -> tuple[float, float] | None:
        """(share of padding at the batch size, share of unused places when packed) at max_length; see Lengths."""
        return self.lengths.padding(self._batch_size, self._packed_length())

    def suggested_packing(self) -> bool | None:
        """True where padding would be more than a quarter of a batch and packing would at least halve it."""
        shares = self.padding()
        return None if shares is None else shares[0] > _MUCH_PADDING and shares[1] < shares[0] / 2

    def suggested_batch_size(self) -> int | None:
        """Rows a step, as a power of two up to 32, so that the longest batch has at most 16,384 tokens."""
        length = self.suggested_max_length()
        if length is None:
            return None
        rows = max(1, min(_MOST_ROWS, _MOST_TOKENS // length))
        return 1 << rows.bit_length() - 1

    def _packed_length(self) -> int:
        """max_length, or the longest row where that is less: longer packs hold no more."""
        numbers = self.lengths.summary()
        return min(self._max_length, numbers["max"]) if numbers else self._max_length

    def findings(self, rows: int) -> Iterator[Finding]:
        """Everything about tokens and template, once all rows are in; `rows` is their number."""
        if self._no_template:
            yield finding("data.template.missing")
        if isinstance(self._refused, (TemplateStopped, TemplateRefused)):
            yield finding("data.template.unsafe", str(self._refused.cause))
        elif self._refused:
            yield finding("data.tokens.unknown", f"Tokens could not be counted: {self._refused}")
        cut = {"max_length": self._max_length, "loss_tokens_lost": self.lost_loss_tokens}
        yield from self._tallies.findings(rows, {"data.tokens.truncated": cut, "data.tokens.completion_cut": cut})
        yield from self._about_padding()
        yield from self._once()

    def _about_padding(self) -> Iterator[Finding]:
        shares = self.padding()
        if shares is not None and self.suggested_packing():
            padded, unused = (round(share, 4) for share in shares)
            yield finding(
                "data.tokens.padding",
                f"{padded:.0%} of a batch of {self._batch_size} rows is padding; packed to {self._packed_length()} "
                f"tokens {unused:.0%} would be unused",
                padding=padded,
                packed_unused=unused,
                batch_size=self._batch_size,
            )

    def _once(self) -> Iterator[Finding]:
        files = self._renderer.files
        if files.rebuilt_as:
            yield finding("data.tokens.rebuilt", tokenizer_class=files.rebuilt_as)
        pad = files.pad_id if files.pad_id is not None else files.eos_id
        if pad is not None and pad in self._renderer.eos_ids:
            how = "is the eos token" if files.pad_id is not None else "is missing, so that TRL pads with the eos token"
            yield finding(
                "data.tokens.pad_is_eos",
                f"The padding token {how} (id {pad}). TRL 1.16 sets labels to -100 by position, so that the real eos "
                "is still trained; it matters with collators that mask every pad id in the labels (transformers' "
                "DataCollatorForLanguageModeling, TRL before prepared labels): there the model never learns to stop.",
                pad_id=pad,
            )
        if files.bos_id is not None and files.template is not None and self._adds_bos():
            yield finding("data.tokens.retokenised_bos", bos_id=files.bos_id)

    def _adds_bos(self) -> bool:
        """True when the template begins with BOS and the tokenizer would put one more before it."""
        try:
            text = self._renderer.text([{"role": "user", "content": "a"}])
        except PeftsmithError:
            return False
        bos = self._renderer.files.bos_id
        return self._renderer.files.tokenizer.encode(text).ids[:2] == [bos, bos] != self._renderer.ids(text)[:2]


def about_windows(example: Answered, windows: Sequence[labels.Labelled]) -> Iterator[tuple[str, str]]:
    """(finding id, detail) for a question that no window has room for, and for an answer that no window holds."""
    for each in windows:
        if isinstance(each, PeftsmithError):
            yield "data.answers.question_long", each.cause
            return
    if example.answers and all(isinstance(each, labels.Row) and each.start is None for each in windows):
        yield "data.answers.lost", example.answers[0]


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
