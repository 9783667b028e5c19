"""How batches are made, how the loss is worked out, when training stops: by rows, base, method and device."""

import pytest

from peftsmith.advise import recommend, updates
from peftsmith.advise.recommend import Device, Intent, Rows

A100, CPU = Device("cuda", 72.0, (8, 0)), Device("cpu", 64.0)
UNEVEN = Rows(count=2000, longest=512, loss_tokens=350_000, total_tokens=350_000)
EVEN = Rows(count=2000, longest=512, loss_tokens=350_000, total_tokens=900_000)


def training(bodies, base="llama", rows=UNEVEN, device=A100, intent=None):
    return recommend.recommend(bodies[base], rows, device, intent or Intent())


@pytest.mark.parametrize(
    ("intent", "rows", "base", "packing", "rule"),
    [
        (Intent(), UNEVEN, "llama", "bfd", "packing.uneven"),
        (Intent(), EVEN, "llama", "none", "packing.none"),
        (Intent(), Rows(2000, 512, None), "llama", "none", "packing.none"),
        (Intent(method="prefix_tuning"), UNEVEN, "llama", "none", "packing.none"),
        (Intent(method="lily"), UNEVEN, "llama", "none", "packing.none"),
        (Intent(task="continued_pretraining"), UNEVEN, "llama", "wrapped", "packing.pretraining"),
        (Intent(task="sequence_classification"), UNEVEN, "llama", "none", "packing.none"),
    ],
)
def test_uneven_rows_are_packed_where_they_stay_apart(bodies, intent, rows, base, packing, rule):
    advice = training(bodies, base, rows, intent=intent)
    assert (advice.training["packing"], advice.why["training.packing"].rule) == (packing, rule)
    assert advice.training["group_by_length"] is (packing == "none")
    assert advice.why["training.packing"].reason.strip()


def test_an_update_of_packed_rows_trains_on_as_many_tokens_as_one_of_single_rows(bodies):
    packed, single = training(bodies).training, training(bodies, rows=EVEN).training
    sequences = packed["batch_size"] * packed["gradient_accumulation"]
    assert single["batch_size"] * single["gradient_accumulation"] == 16
    assert sequences == pytest.approx(16 * UNEVEN.mean / packed["max_length"], abs=1.5)


def test_a_pass_flattens_no_more_tokens_than_attention_can_bear(bodies):
    for base in ("llama", "tiny"):
        advice = training(bodies, base)
        flat = advice.training["batch_size"] * advice.training["max_length"]
        assert advice.training["batch_size"] == 1 or flat <= 2 * bodies[base].hidden


def test_short_rows_share_sequences_of_512_tokens(bodies):
    assert training(bodies, rows=Rows(5000, 40, 50_000, 90_000)).training["max_length"] == 512


@pytest.mark.parametrize(
    ("base", "device", "method", "path"),
    [
        ("llama", CPU, None, "labelled"),
        ("llama", A100, None, "fused"),
        ("mixtral", CPU, None, "fused"),
        ("llama", CPU, "prompt_tuning", "fused"),
        ("llama", CPU, "adaption_prompt", "fused"),
    ],
)
def test_on_a_processor_the_loss_is_worked_out_at_the_learnt_positions(bodies, base, device, method, path):
    config = {"adapter_len": 10, "adapter_layers": 2} if method == "adaption_prompt" else {}
    advice = training(bodies, base, device=device, intent=Intent(method=method, config=config))
    assert advice.training["loss_path"] == path
    assert advice.fit.request.loss == ("stock" if path == "labelled" else "trl_chunked")


@pytest.mark.parametrize(
    ("held_out", "count", "method", "patience"),
    [(True, 500, None, 2), (False, 500, None, None), (True, 50_000, None, None), (True, 500, "adalora", None)],
)
def test_it_stops_early_where_there_is_something_to_judge_by(bodies, held_out, count, method, patience):
    rows = Rows(count, 512, 100 * count, 175 * count, held_out=held_out)
    assert training(bodies, rows=rows, intent=Intent(method=method)).training["patience"] == patience


def updates_of(advice, rows):
    made = advice.training
    count = updates.sequences(rows.count, rows.total_tokens, made["packing"], made["max_length"])
    return updates.updates(count, made["batch_size"], made["gradient_accumulation"], made["epochs"])


@pytest.mark.parametrize(
    ("count", "mean", "longest", "packing", "least"),
    [
        (510, 57, 89, "none", 96),  # examples/support-tickets: 96 was what it had before rows were packed
        (200, 30, 60, "none", 100),  # 12 sequences of 512: 36 updates at most
        (150, 250, 500, "none", 100),
        (2_000, 57, 89, "bfd", 100),
        (5_000, 57, 89, "bfd", 500),
    ],
)
def test_packing_leaves_about_as_many_updates_as_rows_by_themselves(bodies, count, mean, longest, packing, least):
    rows = Rows(count, longest, count * mean // 2, count * mean)
    advice = training(bodies, rows=rows)
    assert advice.training["packing"] == packing
    assert updates_of(advice, rows) == advice.facts["steps"] >= least
    apart = advice.facts["row_updates"]
    assert advice.facts["steps"] >= 0.75 * min(apart, updates.WANTED * 2)
    assert str(advice.facts["steps"]) in advice.why["training.gradient_accumulation"].reason


@pytest.mark.parametrize(("count", "batch"), [(150, 4), (400, 8), (700, 16)])
def test_fewer_rows_make_smaller_batches(bodies, count, batch):
    advice = training(bodies, rows=Rows(count, 512, None))
    assert advice.training["batch_size"] * advice.training["gradient_accumulation"] == batch
    assert advice.why["training.gradient_accumulation"].reason.startswith(f"{batch} rows an update")


def test_few_documents_of_pretraining_are_counted_in_blocks_and_not_in_rows(bodies):
    documents = Rows(20, 90_000, 1_600_000, 1_600_000)  # 782 blocks: 49 updates at 16
    advice = training(bodies, rows=documents, intent=Intent(task="continued_pretraining"))
    assert advice.training["batch_size"] * advice.training["gradient_accumulation"] == 4
    assert advice.facts["steps"] == 196


def test_updates_are_counted_as_the_trainer_counts_them():
    assert updates.updates(510, 8, 1, 0.75) == 48
    assert updates.updates(17, 4, 2, 3) == 9  # five batches are three updates a pass
    assert updates.updates(1, 8, 8, 0.1) == 1
    assert updates.sequences(510, 29_000, "bfd", 512) == 57
    assert updates.sequences(510, None, "bfd", 512) == 510


def test_packed_sequences_are_estimated_as_the_one_that_a_batch_lays_them_into(bodies):
    asked = training(bodies).fit.request
    assert asked.flattened
    flat = asked.laid_out()
    assert (flat.batch_size, flat.sequence_length) == (1, asked.batch_size * asked.sequence_length)
    assert flat.padded and not flat.flattened
    wrapped = training(bodies, intent=Intent(task="continued_pretraining")).fit.request
    assert wrapped.padded is False and wrapped.laid_out() is wrapped
