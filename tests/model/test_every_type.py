"""Every type of the catalogue with its class's default sizes: an estimate, or a refusal that says what to do."""

from __future__ import annotations

import pytest

from peftsmith.errors import PeftsmithError
from peftsmith.model import anatomy, catalogue, memory, source
from peftsmith.model.request import Request

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bodies(tmp_path_factory):
    return list(described(tmp_path_factory.mktemp("none")))


def described(folder):
    for kind in catalogue.types():
        for task in catalogue.tasks(kind):
            entry = catalogue.entry(kind, task)
            if entry is not None and entry["complete"]:
                config = {"model_type": kind, "architectures": [entry["architecture"]]}
                yield anatomy.describe(source.ModelFiles("x", None, None, config, {}, (), folder))


def estimated(body, request):
    try:
        found = memory.estimate(body, request)
    except PeftsmithError as error:
        assert error.next_step
        return False
    assert 0 < found.allocated.low <= found.allocated.likely <= found.allocated.high <= found.reserved.high
    assert found.trainable > 0
    return True


@pytest.mark.parametrize("preset", ["all-linear", "everything"])
@pytest.mark.parametrize("method", ["lora", "ia3", "oft"])
def test_nearly_every_type_has_an_estimate(method, preset, bodies):
    done = [estimated(body, Request(method=method, targets=preset)) for body in bodies]
    assert len(done) > 250 and sum(done) / len(done) > 0.95


def test_a_rank_of_its_own_reaches_each_method(tmp_path):
    assert Request(method="lora").method_options == {"r": 16}
    assert Request(method="vera").method_options == {}
    assert Request(method="adalora", rank=8).method_options == {"init_r": 8}
    assert Request(method="oft", rank=8).method_options == {"r": 8, "oft_block_size": 0}
    assert Request(method="ia3", rank=8).method_options == {}
