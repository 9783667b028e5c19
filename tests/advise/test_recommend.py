"""Recommended values, field by field, on models of realistic sizes."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftsmith import plan
from peftsmith.advise import recommend, rules
from peftsmith.advise.recommend import Device, Intent, Rows
from peftsmith.errors import PeftsmithError
from peftsmith.knowledge import methods

A100, L4, T4 = Device("cuda", 72.0, (8, 0)), Device("cuda", 16.0, (8, 9)), Device("cuda", 14.0, (7, 5))
MANY = Rows(count=5000, longest=300, loss_tokens=800_000, total_tokens=1_200_000)
GIVEN = {
    "CPT": {"cpt_token_ids": [1, 2, 3, 4], "cpt_mask": [1, 1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3, 4]},
    "TRAINABLE_TOKENS": {"token_indices": [5]},
    "ADAPTION_PROMPT": {"adapter_len": 10, "adapter_layers": 30},
}


def as_plan(advice: recommend.Recommendation, **changes) -> plan.FineTunePlan:
    return plan.validate(
        {
            "schema_version": plan.SCHEMA_VERSION,
            "name": "p",
            "task": "chat",
            "base": {"model": "o/m", "revision": "a" * 40},
            "data": {"train": "data/train.jsonl", "test": "data/test.jsonl", "format": "messages"},
            "method": advice.method,
            "training": advice.training,
            **changes,
        }
    )


@pytest.mark.parametrize("device", [A100, L4, T4, Device("cpu", 64.0)])
@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma"])
def test_a_recommendation_raises_no_alarm_of_its_own_rules(bodies, name, device):
    advice = recommend.recommend(bodies[name], MANY, device)
    found = {each.id for each in rules.check(as_plan(advice), bodies[name]) if each.severity in ("error", "warning")}
    allowed = {"plan.precision.fp16_trainables"} if advice.training["precision"] == "fp16" else set()
    if advice.facts["preset"] == "all-linear" and name == "mixtral":
        allowed |= {"model.targets.experts_frozen"}
    assert found <= allowed


@pytest.mark.parametrize(
    ("device", "quantised", "precision"), [(A100, False, "bf16"), (L4, True, "bf16"), (T4, True, "fp16")]
)
def test_memory_decides_on_four_bits_and_the_device_on_the_number_format(bodies, device, quantised, precision):
    long = Rows(count=5000, longest=2048, loss_tokens=800_000)
    advice = recommend.recommend(bodies["llama"], long, device)
    assert (advice.method["quantization"] is not None) is quantised
    assert advice.training["precision"] == precision
    assert advice.fit.fits
    assert advice.fit.estimate.device.high <= device.memory_gib * (1 << 30)


def test_norms_train_in_float32_where_their_updates_count(bodies):
    intent = Intent(method="ln_tuning")
    advice = recommend.recommend(bodies["tiny"], Rows(5000, 512, 800_000), A100, intent)
    assert (advice.training["precision"], advice.why["training.precision"].rule) == ("fp32", "precision.near_one")


def test_rank_follows_the_tokens_that_carry_loss(bodies):
    ranks = [
        recommend.recommend(bodies["llama"], Rows(5000, 64, tokens), A100).method["rank"]
        for tokens in (None, 100, 50_000_000, 100_000_000, 10**10)
    ]
    # 2,621,440 parameters a rank (tinker-cookbook hyperparam_utils): 100 M tokens need 39, so 64
    assert ranks == [16, 16, 32, 64, 256]


def test_the_goal_bounds_the_rank_from_both_sides(bodies):
    huge = Rows(100_000, 64, 10**9)
    style = recommend.recommend(bodies["llama"], huge, A100, Intent(goal="style"))
    pretraining = recommend.recommend(bodies["llama"], MANY, A100, Intent(task="continued_pretraining"))
    assert (style.method["rank"], style.why["method.rank"].rule) == (32, "rank.style")
    assert (pretraining.method["rank"], pretraining.why["method.rank"].rule) == (256, "rank.pretraining")
    assert pretraining.training["learning_rate"] == 1e-4
    assert pretraining.training["group_by_length"] is False


def test_the_rank_stays_below_the_narrowest_layer_and_a_tenth_of_the_parameters(bodies):
    for tokens in (100, 10**9):
        assert recommend.recommend(bodies["tiny"], Rows(500, 64, tokens), Device("cpu", 16.0)).method["rank"] == 8


@pytest.mark.parametrize(
    ("intent", "rate", "rule"),
    [
        (Intent(), 2e-4, "learning_rate.size.middle"),
        (Intent(forgetting="little"), 1e-4, "learning_rate.forgetting"),
        (Intent(method="ia3"), 1e-3, "learning_rate.ia3"),
        (Intent(method="prefix_tuning"), 5e-3, "learning_rate.prefix"),
        (Intent(method="prompt_tuning"), 1e-2, "learning_rate.prompt"),
        (Intent(method="lokr"), 3e-3, "learning_rate.lokr"),
        (Intent(method="full", reason="a new language"), 1e-5, "learning_rate.full"),
        (Intent(method="loha"), 2e-4, "learning_rate.other"),
    ],
)
def test_learning_rates_by_method(bodies, intent, rate, rule):
    advice = recommend.recommend(bodies["llama"], MANY, A100, intent)
    assert (advice.training["learning_rate"], advice.why["training.learning_rate"].rule) == (rate, rule)
    low, high = rules.learning_rates(as_plan(advice).method)
    assert low <= rate <= high


@pytest.mark.parametrize(
    ("rows", "epochs", "batch"), [(100, 3.0, 4), (400, 3.0, 8), (999, 3.0, 16), (5000, 2.0, 16), (10_000, 1.0, 16)]
)
def test_epochs_and_batch_by_rows(bodies, rows, epochs, batch):
    training = recommend.recommend(bodies["llama"], Rows(rows, 64, 1000), A100).training
    assert training["epochs"] == epochs
    assert training["batch_size"] * training["gradient_accumulation"] == batch


def test_experts_are_adapted_where_they_fit_and_left_where_not(bodies):
    roomy = recommend.recommend(bodies["mixtral"], MANY, A100)
    assert roomy.method["config"]["target_parameters"]
    assert roomy.method["dropout"] == 0.0
    assert not any(name.rpartition(".")[2] == "gate" for name in roomy.method["config"]["target_parameters"])
    tight = recommend.recommend(bodies["mixtral"], MANY, Device("cuda", 10.0, (8, 0)))
    assert tight.method["config"] == {}
    assert tight.why["method.target_modules"].rule == "targets.experts_frozen"
    wished = recommend.recommend(bodies["mixtral"], MANY, A100, Intent(method="qlora"))
    assert wished.method["quantization"]["bits"] == 4
    assert "target_parameters" not in wished.method["config"]


def test_gemma_does_not_train_in_fp16(bodies):
    assert recommend.recommend(bodies["gemma"], MANY, T4).training["precision"] == "fp32"


def test_what_does_not_fit_is_said_with_numbers(bodies):
    advice = recommend.recommend(bodies["llama"], MANY, Device("cuda", 2.0, (8, 0)))
    [told] = [each for each in advice.findings if each.id == "advise.memory.does_not_fit"]
    assert told.evidence["needed_gib"] > told.evidence["there_is_gib"] == 2.0


def test_lora_by_name_is_not_quantised_and_qlora_by_name_is(bodies):
    named = recommend.recommend(bodies["llama"], MANY, T4, Intent(method="lora"))
    assert named.method["quantization"] is None
    assert "advise.memory.does_not_fit" in {each.id for each in named.findings}
    assert recommend.recommend(bodies["llama"], MANY, A100, Intent(method="qlora")).method["quantization"] == {
        "bits": 4,
        "type": "nf4",
        "double": True,
    }


@pytest.mark.parametrize("name", methods.names())
def test_every_method_makes_a_valid_plan_or_is_refused_with_its_reason(bodies, name):
    intent = Intent(method=name.lower(), config=GIVEN.get(name, {}))
    if methods.method(name).unsupported:
        with pytest.raises(PeftsmithError, match="No project is generated"):
            recommend.recommend(bodies["llama"], MANY, A100, intent)
        return
    if methods.method(name).by_task:
        with pytest.raises(PeftsmithError, match="several tasks at once"):
            recommend.recommend(bodies["llama"], MANY, A100, intent)
        intent = replace(intent, mix=True)
    advice = recommend.recommend(bodies["llama"], MANY, A100, intent)
    flat = plan.flatten(as_plan(advice))
    assert flat["method.peft_type"] == name
    for field, reason in advice.why.items():
        assert flat[field] == reason.value, field


@pytest.mark.parametrize(
    ("intent", "said"),
    [
        (Intent(method="full"), "needs a reason"),
        (Intent(method="lorra"), "no such method"),
        (Intent(method="cpt"), "cpt_token_ids"),
        (Intent(method="lora", config={"use_rs_lora": True}), "use_rslora"),
        (Intent(config={"task_type": "SEQ_CLS"}), "task_type"),
    ],
)
def test_methods_that_cannot_be_planned_are_refused(bodies, intent, said):
    with pytest.raises(PeftsmithError, match=said):
        recommend.recommend(bodies["llama"], MANY, A100, intent)


def test_a_classifier_on_an_encoder_leaves_names_to_peft(bodies):
    advice = recommend.recommend(bodies["bert"], Rows(5000, 64, 5000), L4, Intent(task="sequence_classification"))
    assert advice.method["target_modules"] == "all-linear"
    assert advice.fit.request.task == "classification"


@pytest.mark.parametrize("name", ["llama", "gemma", "tiny"])
def test_a_recommended_pretraining_raises_no_alarm_of_its_own_rules(bodies, name):
    advice = recommend.recommend(bodies[name], MANY, A100, Intent(task="continued_pretraining"))
    data = {"train": "data/train.jsonl", "test": "data/test.jsonl", "format": "text"}
    made = as_plan(advice, task="continued_pretraining", data=data)
    alarms = {each.id for each in rules.check(made, bodies[name]) if each.severity in ("error", "warning")}
    assert alarms <= ({"model.targets.share_too_high"} if name == "tiny" else set())


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 10**6),
    longest=st.none() | st.integers(1, 40_000),
    loss=st.none() | st.integers(1, 10**11),
    gib=st.floats(0.5, 300.0),
    capability=st.none() | st.tuples(st.integers(6, 12), st.integers(0, 9)),
    goal=st.sampled_from([None, "style", "knowledge", "changing_facts"]),
    forgetting=st.sampled_from([None, "little", "any"]),
    method=st.sampled_from([None, "lora", "qlora", "ia3", "vera", "prompt_tuning"]),
    name=st.sampled_from(["llama", "mixtral", "gemma"]),
)
def test_any_rows_device_and_wishes_give_a_valid_plan_whose_reasons_are_its_values(
    bodies, rows, longest, loss, gib, capability, goal, forgetting, method, name
):
    device = Device("cuda", gib, capability)
    intent = Intent(goal=goal, forgetting=forgetting, method=method)
    advice = recommend.recommend(bodies[name], Rows(rows, longest, loss), device, intent)
    made = as_plan(advice)
    flat = plan.flatten(made)
    for field, reason in advice.why.items():
        assert flat[field] == reason.value, field
        assert "None" not in reason.reason.split(), (field, reason.reason)
    assert made.training.max_length <= bodies[name].max_positions
    assert made.training.batch_size * made.training.gradient_accumulation in (4, 8, 16)
    told = "advise.memory.does_not_fit" in {each.id for each in advice.findings}
    assert told is (advice.fit.estimate.device.high > gib * (1 << 30))
    errors = {each.id for each in rules.check(made, bodies[name]) if each.severity == "error"}
    assert errors == set()
