"""What is odd about the answers of a whole set of questions: where they stand in their contexts.

Knows: the starts of all answers, and how many questions have none.
Does not know: one row's answer (convert.py, content.py), or tokens and windows (tokens.py, supervision.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from peftsmith.data.part import Part
from peftsmith.finding import Finding, finding

_FEWEST = 10
_SHARE = 0.9


def findings(part: Part) -> Iterator[Finding]:
    """An answer that always stands in one place teaches the place: the question need not be read."""
    starts = Counter(part["starts"])
    without = starts.pop(0, 0)
    answered = starts.total()
    if without and not answered:
        yield finding("data.answers.none", count=without)
    if answered < _FEWEST:
        return
    start, count = starts.most_common(1)[0]
    if count >= _SHARE * answered:
        yield finding(
            "data.answers.same_place",
            f"{count} of {answered} answers begin at character {start - 1} of their contexts",
            count=count,
            share=round(count / answered, 4),
            start=start - 1,
        )
