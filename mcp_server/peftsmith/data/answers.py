"""What is odd about the answers of a whole set of questions: where they stand in their contexts.

Knows: the starts of all answers, and how many questions have none.
Does not know: one row's answer (convert.py, content.py), or tokens and windows (supervision.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from peftsmith.data.examples import Answered
from peftsmith.finding import Finding, finding

_FEWEST = 10
_SHARE = 0.9


class Answers:
    """Gathers the rows handed to `add`."""

    def __init__(self) -> None:
        self._starts: Counter[int] = Counter()
        self._first: dict[int, int] = {}
        self._without = 0

    def add(self, number: int, example: Answered) -> None:
        if not example.starts:
            self._without += 1
            return
        self._starts[example.starts[0]] += 1
        self._first.setdefault(example.starts[0], number)

    def findings(self) -> Iterator[Finding]:
        """An answer that always stands in one place teaches the place: the question need not be read."""
        answered = self._starts.total()
        if self._without and not answered:
            yield finding("data.answers.none", count=self._without)
        if answered < _FEWEST:
            return
        start, count = self._starts.most_common(1)[0]
        if count >= _SHARE * answered:
            yield finding(
                "data.answers.same_place",
                f"{count} of {answered} answers begin at character {start}, first in row {self._first[start]}",
                count=count,
                share=round(count / answered, 4),
                start=start,
                rows=[self._first[start]],
            )
