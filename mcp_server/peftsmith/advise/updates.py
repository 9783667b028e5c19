"""How many optimiser updates a plan makes, and whether that is enough to learn from.

Knows: how rows, packed tokens, batch, accumulation and epochs become updates, as transformers' Trainer counts them.
Does not know: which batch or packing follows (knowledge/rules.toml), or how long an update takes.
"""

from __future__ import annotations

from math import ceil

from peftsmith.finding import Finding, finding
from peftsmith.plan import FineTunePlan

# LoRA Without Regret speaks of runs under 100 steps as short ones, which want another rate.
WANTED = 100
# examples/support-tickets, the same rows at the same rate: 23 packed updates gain 14.8 points, 45 packed ones 20.4, 48
# of rows by themselves 40. Too few teach little, and a set of few updates gains more from apart than packing saves.
FEWEST, FEWEST_TO_PACK = 40, 2 * WANTED


def sequences(rows: int, tokens: int | None, packing: str, max_length: int) -> int:
    """What a batch counts: rows, or the sequences that hold their tokens (full ones: packing does no better)."""
    if packing == "none" or not tokens:
        return rows
    return max(1, ceil(tokens / max_length))


def updates(count: int, batch_size: int, accumulation: int, epochs: float) -> int:
    """The last, partly filled batch and update of a pass count as one each."""
    return max(1, ceil(epochs * ceil(ceil(count / batch_size) / accumulation)))


def judge(plan: FineTunePlan, rows: int, tokens: int | None) -> list[Finding]:
    """A finding where a plan of one data set makes fewer updates than any run is known to have learnt from."""
    training = plan.training
    count = sequences(rows, tokens, training.packing, training.max_length)
    made = updates(count, training.batch_size, training.gradient_accumulation, training.epochs)
    if made >= FEWEST:
        return []
    held = "rows" if count == rows else f"sequences ({rows} rows, packed)"
    effective = training.batch_size * training.gradient_accumulation
    message = f"{made} updates in all: {count} {held}, {effective} an update, {training.epochs:g} epochs."
    return [finding("plan.updates.few", message, updates=made, sequences=count, rows=rows, fewest=FEWEST)]
