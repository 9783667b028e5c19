"""What the labels of all rows say: balance, variants in spelling, texts with two labels, labels that were never seen.

Knows: counts of labels and the keys of the rows that have them.
Does not know: rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from peftsmith import files
from peftsmith.data.overlap import Split
from peftsmith.data.part import Part
from peftsmith.data.repetition import groups
from peftsmith.data.views import key_of, loose
from peftsmith.finding import Finding, finding

_IMBALANCE = 10
_SHOWN = 60


def note_contradictions(part: Part) -> None:
    """Tally rows whose text stands earlier with another label."""
    named = {key_of(label): label for label in part.labels}
    classes, numbers = part["classes"], part["numbers"]
    if not classes:
        return
    for group in groups(part["loose_questions"]):
        first = named[classes[group[0]]]
        for place in group[1:]:
            label = named[classes[place]]
            if loose(label) != loose(first):
                detail = f"{label!r} here, {first!r} in row {numbers[group[0]]}"
                part.tallies.add("data.labels.contradictory", numbers[place], detail)


def findings(labels: Counter[str], usable: int) -> Iterator[Finding]:
    """About the labels of `usable` rows; there is at least one."""
    counts = {_shown(label): count for label, count in labels.most_common()}
    if len(labels) == 1:
        yield finding("data.labels.single", f"All {usable} rows have the label {next(iter(counts))!r}", labels=counts)
        return
    (most, largest), (least, smallest) = labels.most_common()[0], labels.most_common()[-1]
    if largest >= _IMBALANCE * smallest:
        yield finding(
            "data.labels.imbalance",
            f"Label {_shown(most)!r} has {largest} rows, {_shown(least)!r} has {smallest}: "
            f"{largest / smallest:.0f} times as many",
            labels=dict(list(counts.items())[:20]),
        )
    by_text: dict[str, list[str]] = {}
    for label in labels:
        by_text.setdefault(loose(label), []).append(_shown(label))
    variants = [sorted(written) for written in by_text.values() if len(written) > 1]
    if variants:
        yield finding(
            "data.labels.variants",
            f"{len(variants)} label(s) are written in several ways, such as {' and '.join(map(repr, variants[0]))}",
            variants=variants[:5],
        )


def unseen(split: Split, labels: Counter[str]) -> Iterator[Finding]:
    """Labels of a split that the training rows never show."""
    missing = sorted(set(split.labels) - set(labels))
    if missing:
        shown = [_shown(label) for label in missing[:5]]
        yield finding(
            "data.labels.unseen",
            f"The {split.name} rows have {len(missing)} label(s) that the training rows never show: {', '.join(shown)}",
            labels=shown,
            count=len(missing),
        )


def _shown(label: str) -> str:
    return files.clean(label, _SHOWN)
