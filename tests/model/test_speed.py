"""Time: FLOPs by hand, ranges in order, GPUs by name, price and power."""

from __future__ import annotations

import json

import pytest

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.model import anatomy, memory, speed
from tests.model.test_anatomy import LLAMA_3_2_3B


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    files.set_roots(["/"])
    folder = tmp_path_factory.mktemp("llama")
    (folder / "config.json").write_text(json.dumps(LLAMA_3_2_3B), encoding="utf-8")
    return anatomy.inspect(str(folder))


def test_flops_of_a_token_by_hand(llama):
    request = memory.Request(sequence_length=1024, gradient_checkpointing=False, loss="stock")
    linear = 28 * (2 * 3072 * 3072 + 2 * 3072 * 1024 + 3 * 3072 * 8192)
    parts = speed.flops_per_token(llama, request)
    assert parts["forward"] == 2 * (linear + 128256 * 3072) + 2 * 28 * 1024 * 3072
    assert parts["recomputed"] == parts["loss_again"] == 0
    assert speed.flops_per_token(llama, memory.Request(method="full"))["backward"] > parts["backward"]


def test_order(llama):
    def seconds(device="A100-80GB", tokens=10_000_000, **changes):
        work = speed.Work(tokens, padding=changes.pop("padding", 0.0))
        return speed.estimate(llama, memory.Request(**changes), work, speed.gpu(device))["seconds"]

    found = seconds()
    assert found["low"] < found["likely"] < found["high"]
    assert seconds(tokens=20_000_000)["likely"] > found["likely"]
    assert seconds(padding=0.5)["likely"] > found["likely"]
    assert seconds(gradient_checkpointing=False)["likely"] < found["likely"]
    assert seconds(method="qlora")["likely"] > found["likely"] > seconds("H100")["likely"]
    assert seconds(gpus=2, sharding="ddp")["likely"] < found["likely"]


def test_cost_and_energy_only_for_what_the_user_gives(llama):
    args = (llama, memory.Request(), speed.Work(1_000_000), speed.gpu("L4"))
    assert not {"cost", "kilowatt_hours"} & speed.estimate(*args).keys()
    found = speed.estimate(*args, price_per_hour=3.6, watts=72)
    assert found["cost"]["likely"] == pytest.approx(found["seconds"]["likely"] / 1000, abs=2e-3)
    assert found["kilowatt_hours"]["likely"] == pytest.approx(found["seconds"]["likely"] * 72 / 3.6e6, abs=2e-3)


def test_gpus_by_name():
    assert speed.gpu("nvidia rtx 4090").memory_gib == 24 and speed.gpu("h100").name == "H100-80GB"
    for name in ("A100", "Z9000", ""):
        with pytest.raises(PeftsmithError) as caught:
            speed.gpu(name)
        assert "Use one of" in caught.value.next_step
    assert all(each.source and each.rate > 0 and each.bandwidth > 0 for each in speed.gpus().values())


@pytest.mark.parametrize("changes", [{"tokens": 0}, {"epochs": 0}, {"padding": 1.0}, {"evaluations": -1}])
def test_impossible_work(llama, changes):
    with pytest.raises(PeftsmithError):
        speed.estimate(llama, memory.Request(), speed.Work(**{"tokens": 10, **changes}), speed.gpu("L4"))
