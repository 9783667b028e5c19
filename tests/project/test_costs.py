"""What the project's README says of memory, time and disk: of this plan, or nothing."""

from __future__ import annotations

import math

import pytest

from peftsmith.lock import Why
from peftsmith.project import costs, render
from tests.project.plans import lock_for, make

GIB = 2**30
ESTIMATE = {"device": {"low": GIB, "likely": 3.15 * GIB, "high": 3.84 * GIB}, "trainable": 4_884_480}
SECONDS = {"low": 31, "likely": 93, "high": 309}
L4 = {"kind": "cuda", "capability": [8, 9], "name": "L4"}


def readme(plan, **changes):
    text = render.render(plan, lock_for(plan, **changes))["README.md"]
    return text.split("## What it costs")[1].split("## What to watch")[0]


def test_memory_time_and_disk_of_a_plan_as_advised():
    text = readme(make(), estimate=ESTIMATE, seconds=SECONDS, device=L4)
    assert "about 3.1 GiB of the GPU at the peak, at most 3.8" in text
    assert "about 2 minutes on one `L4`, between 31 seconds and 5 minutes" in text
    assert "about 20 MB for the adapter, up to 59 MB for each of its last two checkpoints" in text


def test_without_a_named_gpu_the_time_is_unknown():
    text = readme(make(), estimate=ESTIMATE, device={"kind": "cpu", "capability": None})
    assert "GiB of main memory" in text
    assert "Time: not estimated" in text


@pytest.mark.parametrize(("rank", "told"), [(4, True), (8, False)])
def test_an_edited_plan_is_not_described_by_the_estimate_of_another(rank, told):
    why = {"method.rank": Why(value=rank, rule="r", reason="r", source="s", would_change="w")}
    text = readme(make(), estimate=ESTIMATE, device=L4, seconds=SECONDS, why=why)
    assert ("GiB" in text) is told
    assert ("Not estimated" in text) is not told


@pytest.mark.parametrize("odd", ["3 GiB`; rm", None, -1, math.nan, math.inf, [], {}])
def test_a_lock_that_was_tampered_with_says_nothing(odd):
    estimate = {"device": {"likely": odd, "high": odd}, "trainable": odd}
    assert "Not estimated" in readme(make(), estimate=estimate, device=L4)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 second"),
        (80, "80 seconds"),
        (100, "2 minutes"),
        (5400, "2 hours"),
        (5000, "83 minutes"),
        (200_000, "2 days"),
    ],
)
def test_durations(seconds, words):
    assert costs.duration(seconds) == words


@pytest.mark.parametrize(("count", "words"), [(10, "1 kB"), (1_400_000, "1400 kB"), (1_600_000, "2 MB"), (2e9, "2 GB")])
def test_sizes(count, words):
    assert costs.size(count) == words
