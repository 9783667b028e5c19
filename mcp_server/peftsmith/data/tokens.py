"""What the trainer will make of rows: lengths, truncation, the loss mask, turn ends, lost content.

Knows: the checks that need a real tokenizer and template; one pass, chunk by chunk.
Does not know: formats and files (audit.py hands it examples with their row numbers).
"""

from __future__ import annotations

from collections.abc import Iterator

from peftsmith.data.content import special_token_search
from peftsmith.data.examples import Chat, Message
from peftsmith.data.rendering import Labelled, Renderer
from peftsmith.data.tally import Lengths, Tallies
from peftsmith.data.templating import TemplateRefused, TemplateStopped
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding

_REASONING = ("reasoning_content", "thinking", "reasoning")


class TokenAudit:
    """Token facts of the rows handed to `add`; `max_length` in tokens, as the plan would set it (keep_start)."""

    def __init__(self, renderer: Renderer, max_length: int) -> None:
        self.lengths = Lengths()
        self.loss_tokens = 0
        self.truncated_rows = 0
        self.lost_loss_tokens = 0
        self._renderer = renderer
        self._max_length = max_length
        self._tallies = Tallies()
        self._special_token = special_token_search(renderer.files.special_texts)
        self._blank: dict[int, bool] = {}
        self._stopped: TemplateStopped | TemplateRefused | None = None

    def add(self, rows: list[tuple[int, Chat]]) -> None:
        """Look at some (row number, example) pairs. A template that was stopped is not asked again."""
        if self._stopped or self._renderer.files.template is None or not rows:
            return
        try:
            labelled = self._renderer.labels_many([example for _, example in rows])
        except (TemplateStopped, TemplateRefused) as error:
            self._stopped = error
            return
        for (number, example), row in zip(rows, labelled, strict=True):
            if isinstance(row, TemplateRefused):
                self._tallies.add("data.template.refuses", number, str(row.cause))
            else:
                self._row(number, example, row)

    def _row(self, number: int, example: Chat, row: Labelled) -> None:
        add, files = self._tallies.add, self._renderer.files
        size, limit = len(row.ids), self._max_length
        trained = size - row.start
        kept = max(0, min(size, limit) - row.start)
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
        if trained:
            end, last = self._end(row)
            if end:
                add(end, number, f"the answer ends with {last!r}")
        if files.bos_id is not None and row.ids[:2] == [files.bos_id] * 2:
            add("data.tokens.double_bos", number)
        if files.embedding_rows is not None and row.ids and max(row.ids) >= files.embedding_rows:
            add("data.tokens.outside_embedding", number, f"id {max(row.ids)}, embedding rows {files.embedding_rows}")
        special = self._special_token(example)
        if special:
            add("data.rows.special_token", number, special)
        lost = _lost(example.prompt + example.completion, row.text)
        if lost:
            add(lost[0], number, lost[1])

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

    def findings(self, rows: int) -> Iterator[Finding]:
        """Everything about tokens and template, once all rows are in; `rows` is their number."""
        files = self._renderer.files
        if files.template is None:
            yield finding("data.template.missing")
        if self._stopped:
            yield finding("data.template.unsafe", str(self._stopped.cause))
        cut = {"max_length": self._max_length, "loss_tokens_lost": self.lost_loss_tokens}
        yield from self._tallies.findings(rows, {"data.tokens.truncated": cut, "data.tokens.completion_cut": cut})
        yield from self._once()

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


def _lost(conversation: list[Message], text: str) -> tuple[str, str] | None:
    """(finding id, detail) when a message's content or reasoning does not survive the template."""
    for message in conversation:
        content = message["content"].strip()
        if content and content not in text:
            reasoned = "</think>" in content and content.rpartition("</think>")[2].strip() in text
            id_ = "data.template.reasoning_stripped" if reasoned else "data.template.content_lost"
            return id_, f"the {message['role']}'s message"
        for name in _REASONING:
            reasoning = message.get(name)
            if isinstance(reasoning, str) and reasoning.strip() not in text:
                return "data.template.reasoning_stripped", f"{name} of the {message['role']}'s message"
    return None
