"""The benchmark of a project's speed: what it counts as missed, and that it measures what it says."""

from __future__ import annotations

import pytest

from benchmarks import project_speed
from benchmarks.project_speed import Twins

GOOD = ({"plan": 0.5, "generate": 0.1, "vet": 0.6}, {"plan": 0.6, "generate": 0.1, "vet": 0.7})


@pytest.mark.parametrize(
    ("cold", "warm", "twins", "good"),
    [
        (12.0, GOOD, [Twins("llama", 30.0, 9.0), Twins("mamba", 40.0, 20.0)], True),
        (20.1, GOOD, [Twins("llama", 30.0, 9.0)], False),
        (12.0, ({"plan": 1.5, "generate": 0.1, "vet": 0.6},), [Twins("llama", 30.0, 9.0)], False),
        (12.0, GOOD, [Twins("llama", 30.0, 15.1)], False),
        (12.0, GOOD, [Twins("llama", 30.0, 9.0), Twins("mamba", 60.1, 9.0)], False),
        (12.0, GOOD, [Twins("llama", 30.0, 9.0), Twins("mamba", 0.0, 0.0, "the adapter is zero")], False),
    ],
)
def test_a_limit_that_is_missed_and_a_twin_that_is_not_proven_fail(cold, warm, twins, good):
    text, holds = project_speed.report(cold, list(warm), twins)
    proven = sum(not each.fault for each in twins)
    assert holds is good
    assert f"twins: {proven} of {len(twins)} proven" in text.splitlines()[-1]


def test_a_type_that_is_not_known_is_refused(capsys):
    assert project_speed.main(["--types", "no-such-type"]) == 2
    assert "llama" in capsys.readouterr().err


@pytest.mark.training
def test_it_measures_the_real_server(smollm2, training_python):
    cold, warm = project_speed.without_twin(smollm2, 1)
    assert 0 < sum(warm[0].values()) < cold
    twin = project_speed.twins("llama")
    assert twin.fault == "" and 0 < twin.warm < twin.cold
