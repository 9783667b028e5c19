"""What all rows of a data set say about tokens: suggestions for length, packing and batch, and the findings.

Knows: the lengths and tallies that tokens.py gathered, and the tokenizer's own traits.
Does not know: single rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from peftsmith.data.part import Part
from peftsmith.data.rendering import Renderer
from peftsmith.data.tally import Lengths
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding

_MUCH_PADDING = 0.25
_MOST_ROWS, _MOST_TOKENS = 32, 16_384


@dataclass(frozen=True)
class TokenReport:
    """`padding` is the share of padding in batches of `batch_size` rows, `packed_unused` of unused places when packed.

    Both are None without rows. `packed_length` is max_length, or the longest row where that is less: longer packs hold
    no more.
    """

    lengths: Lengths
    max_length: int
    max_positions: int | None
    batch_size: int
    packed_length: int
    padding: float | None
    packed_unused: float | None

    @classmethod
    def of(cls, part: Part, renderer: Renderer, max_length: int, batch_size: int) -> TokenReport:
        lengths = Lengths(part["lengths"])
        packed_length = min(max_length, max(part["lengths"], default=max_length))
        padding, unused = lengths.padding(batch_size, packed_length) or (None, None)
        positions = renderer.files.max_positions
        return cls(lengths, max_length, positions, batch_size, packed_length, padding, unused)

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
        return min(suggested, self.max_positions) if self.max_positions else suggested

    def suggested_packing(self) -> bool | None:
        """True where padding would be more than a quarter of a batch and packing would at least halve it."""
        if self.padding is None or self.packed_unused is None:
            return None
        return self.padding > _MUCH_PADDING and self.packed_unused < self.padding / 2

    def suggested_batch_size(self) -> int | None:
        """Rows a step, as a power of two up to 32, so that the longest batch has at most 16,384 tokens."""
        length = self.suggested_max_length()
        if length is None:
            return None
        rows = max(1, min(_MOST_ROWS, _MOST_TOKENS // length))
        return 1 << rows.bit_length() - 1


def findings(part: Part, report: TokenReport, renderer: Renderer) -> Iterator[Finding]:
    """Everything about tokens and template, once all rows are in."""
    if part.no_template:
        yield finding("data.template.missing")
    if part.unsafe:
        yield finding("data.template.unsafe", part.refused)
    elif part.refused:
        yield finding("data.tokens.unknown", f"Tokens could not be counted: {part.refused}")
    cut = {"max_length": report.max_length, "loss_tokens_lost": part.lost_loss_tokens}
    more = {"data.tokens.truncated": cut, "data.tokens.completion_cut": cut}
    yield from part.token_tallies.findings(part.rows, more)
    if report.suggested_packing() and report.padding is not None and report.packed_unused is not None:
        yield finding(
            "data.tokens.padding",
            f"{report.padding:.0%} of a batch of {report.batch_size} rows is padding; packed to "
            f"{report.packed_length} tokens {report.packed_unused:.0%} would be unused",
            padding=round(report.padding, 4),
            packed_unused=round(report.packed_unused, 4),
            batch_size=report.batch_size,
        )
    yield from _about_tokenizer(renderer)


def _about_tokenizer(renderer: Renderer) -> Iterator[Finding]:
    files = renderer.files
    if files.rebuilt_as:
        yield finding("data.tokens.rebuilt", tokenizer_class=files.rebuilt_as)
    pad = files.pad_id if files.pad_id is not None else files.eos_id
    if pad is not None and pad in renderer.eos_ids:
        how = "is the eos token" if files.pad_id is not None else "is missing, so that TRL pads with the eos token"
        yield finding(
            "data.tokens.pad_is_eos",
            f"The padding token {how} (id {pad}). TRL 1.16 sets labels to -100 by position, so that the real eos "
            "is still trained; it matters with collators that mask every pad id in the labels (transformers' "
            "DataCollatorForLanguageModeling, TRL before prepared labels): there the model never learns to stop.",
            pad_id=pad,
        )
    if files.bos_id is not None and files.template is not None and _adds_bos(renderer):
        yield finding("data.tokens.retokenised_bos", bos_id=files.bos_id)


def _adds_bos(renderer: Renderer) -> bool:
    """True when the template begins with BOS and the tokenizer would put one more before it."""
    try:
        text = renderer.text([{"role": "user", "content": "a"}])
    except PeftsmithError:
        return False
    bos = renderer.files.bos_id
    return renderer.files.tokenizer.encode(text).ids[:2] == [bos, bos] != renderer.ids(text)[:2]
