"""Whether to train at all: too little data, facts that change, a base that is good enough already.

Knows: the limits from which on training is not worth it, each with its source in the catalogue of findings.
Does not know: the plan's values (recommend.py), or what is wrong with them (rules.py).
"""

from __future__ import annotations

from collections.abc import Callable

from peftsmith.advise.facts import Intent, Rows
from peftsmith.finding import Finding, finding
from peftsmith.knowledge import methods

LEAST_ROWS, FEWEST_ROWS = 10, 50
LEAST_KNOWLEDGE_TOKENS = 1_000_000
_ONE_ADAPTER_PER_MODEL = ("ollama",)


def judge(
    intent: Intent, rows: Rows, *, base_score: float | None = None, wanted_score: float | None = None
) -> list[Finding]:
    """Findings that speak against training, or against this way of serving. Scores are of the same measure, as an
    evaluation of the base with its best prompt gave it, and as the user needs it."""
    tokens = rows.loss_tokens
    enough = base_score is not None and wanted_score is not None and base_score >= wanted_score
    rules: list[tuple[bool, Callable[[], Finding]]] = [
        (rows.count < LEAST_ROWS, lambda: finding("advise.data.far_too_small", rows=rows.count, limit=LEAST_ROWS)),
        (
            LEAST_ROWS <= rows.count < FEWEST_ROWS,
            lambda: finding("advise.data.too_small", rows=rows.count, limit=FEWEST_ROWS),
        ),
        (intent.goal == "changing_facts", lambda: finding("advise.goal.changing_facts")),
        (
            intent.goal == "knowledge" and tokens is not None and tokens < LEAST_KNOWLEDGE_TOKENS,
            lambda: finding("advise.goal.little_knowledge", loss_tokens=tokens, limit=LEAST_KNOWLEDGE_TOKENS),
        ),
        (enough, lambda: finding("advise.base.good_enough", base_score=base_score, wanted_score=wanted_score)),
        (_several_unserved(intent), lambda: finding("advise.serving.several", serving=intent.serving)),
    ]
    return [make() for holds, make in rules if holds]


def _several_unserved(intent: Intent) -> bool:
    """Several adapters at a time, and a server that holds one a model or does not load the method unmerged."""
    if (intent.adapters or 1) < 2:
        return False
    kind = intent.peft_type or "LORA"
    served = () if kind == methods.FULL else methods.method(kind).served
    return intent.serving in _ONE_ADAPTER_PER_MODEL or intent.serving not in served
