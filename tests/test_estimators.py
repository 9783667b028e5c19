"""The harness of the other estimators: what is counted, what is refused, what the stand-in hub gives away."""

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.estimators import compare, hub, job

ROW = {"model_id": "own/model", "method": "lora", "quant": "none", "per_device_batch": "1", "longest_batch_tokens": "8"}


def a_job(**changes):
    plain = dict(
        model="own/model", folder="/nowhere", config={}, parameters=10, trainable=1, method="lora", rank=8, targets=[],
        batch_size=1, sequence_length=8, precision="bf16", quantization="none", gradient_checkpointing=True,
        optimizer="adamw_torch", attention="sdpa", loss="stock", gpu_gib=None,
    )  # fmt: skip
    return job.Job(**{**plain, **changes})


def a_case(truth, ours):
    return compare.Case(ROW, "reserved", truth, ours, SimpleNamespace(), SimpleNamespace())


def test_a_refused_row_counts_for_neither_side():
    pairs = [
        (a_case(10.0, 11.0), {"total": 12 * job.GIB, "overhead": 0}),
        (a_case(10.0, 99.0), {"refused": "has no such method"}),
    ]
    shown = compare.line("other", pairs)
    assert "1 rows   20.00 (ours 10.00)" in shown
    assert "answers none" in compare.line("other", pairs[1:])


@pytest.mark.parametrize(("truth", "way"), [(12.0, "as printed"), (9.0, "without overhead")])
def test_the_figure_is_taken_in_the_way_that_is_nearer(truth, way):
    shown = compare.line("other", [(a_case(truth, truth), {"total": 12 * job.GIB, "overhead": 3 * job.GIB})])
    assert f"   0.00 (ours  0.00), {way}" in shown


def test_most_estimators_know_lora_and_all_weights_only():
    assert job.lora_or_full(a_job()) == "lora"
    assert job.lora_or_full(a_job(quantization="nf4")) == "qlora"
    for changes in ({"method": "ia3"}, {"quantization": "gptq4"}):
        with pytest.raises(job.Refused):
            job.lora_or_full(a_job(**changes))


def test_an_estimator_that_cannot_be_loaded_answers_nothing(tmp_path):
    with pytest.raises(ValueError, match="0 lines for 1 jobs"):
        compare.run(sys.executable, "peft_doctor", [a_job(folder=str(tmp_path))], {})


def test_the_hub_gives_configs_of_its_models_and_nothing_else(tmp_path):
    (tmp_path / "hub" / "own" / "model").mkdir(parents=True)
    (tmp_path / "hub" / "own" / "model" / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with hub.serve(tmp_path / "hub") as url:
        with urllib.request.urlopen(f"{url}/own/model/resolve/main/config.json") as answer:
            assert json.load(answer) == {"model_type": "llama"}
        with urllib.request.urlopen(f"{url}/api/models/own/model") as answer:
            assert json.load(answer)["library_name"] == "transformers"
        for path in ("own/model/resolve/main/other.json", "own/../../resolve/main/config.json", "api/models/own/none"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{url}/{path}")
            assert refused.value.code == 404
            refused.value.close()


def test_every_adapter_is_run():
    folder = Path(compare.__file__).parent
    names = {path.stem.removeprefix("with_") for path in folder.glob("with_*.py")}
    assert names == {*compare.OWN, *compare.TRAINING}
