"""Several tasks for one base, from rows to a plan with an adapter each or one for all."""

import json

import pytest

from peftsmith import lock, plan
from peftsmith.advise import planner
from peftsmith.advise.facts import Intent
from peftsmith.errors import PeftsmithError


@pytest.fixture
def rows(tmp_path):
    def write(name, count, row=None):
        path = tmp_path / f"{name}.jsonl"
        lines = [
            row or {"prompt": f"question {i} about {name}", "completion": f"{name} {i * 7}."} for i in range(count)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return path

    return write


def test_each_task_gets_an_adapter_with_the_reason(tmp_path, tiny_model, rows):
    tests = {"delivery": rows("delivery-test", 4)}
    wish = planner.Wish(
        model=str(tiny_model),
        data=rows("billing", 12),
        test=rows("billing-test", 4),
        others={"delivery": rows("delivery", 30)},
        other_tests=tests,
    )
    made = planner.make(tmp_path / "project", wish)
    assert {name: (each.train, each.test) for name, each in made.plan.adapters.items()} == {
        "billing": ("data/billing/train.jsonl", "data/billing/test.jsonl"),
        "delivery": ("data/delivery/train.jsonl", "data/delivery/test.jsonl"),
    }
    assert made.why["adapters"]["value"] == "billing, delivery"
    assert made.why["adapters"]["rule"] == "adapters.separate"
    locked = lock.load(tmp_path / "project")
    assert {split: each.rows for split, each in locked.data.items()} == {
        "billing.train": 12,
        "billing.test": 4,
        "delivery.train": 30,
        "delivery.test": 4,
    }
    assert plan.load(tmp_path / "project") == made.plan
    assert "advise.test.missing" not in {each.id for each in made.findings}


def test_one_adapter_for_all_is_a_mixture(tmp_path, tiny_model, rows):
    others = {"delivery": rows("delivery", 30)}
    wish = planner.Wish(model=str(tiny_model), data=rows("billing", 12), others=others, intent=Intent(mix=True))
    made = planner.make(tmp_path / "project", wish)
    assert list(made.plan.mixture) == ["billing", "delivery"]
    assert not made.plan.adapters
    assert made.why["mixture"]["rule"] == "mixture.wished"


@pytest.mark.parametrize("method", ["poly", "multitask_prompt_tuning"])
def test_a_method_of_several_tasks_takes_the_mixtures_parts_as_tasks(tmp_path, tiny_model, rows, method):
    others, intent = {"delivery": rows("delivery", 30)}, Intent(mix=True, method=method)
    wish = planner.Wish(model=str(tiny_model), data=rows("billing", 12), others=others, intent=intent)
    made = planner.make(tmp_path / "project", wish)
    assert made.plan.method.peft_type == method.upper()
    assert not [each.id for each in made.findings if each.severity == "error"]


def test_rows_of_another_format_leave_nothing_behind(tmp_path, tiny_model, rows):
    others = {"texts": rows("texts", 30, {"text": "the parcel never came"})}
    wish = planner.Wish(model=str(tiny_model), data=rows("billing", 12), others=others)
    with pytest.raises(PeftsmithError, match="rows of texts are text"):
        planner.make(tmp_path / "project", wish)
    assert not (tmp_path / "project").exists()


@pytest.mark.parametrize("said", ["a name of its own", "others is missing", "brings training rows"])
def test_what_would_be_lost_in_silence_is_refused(said, tmp_path, tiny_model, rows):
    billing, other = rows("billing", 12), rows("other", 12)
    wish = {
        "a name of its own": planner.Wish(model=str(tiny_model), data=billing, others={"billing": other}),
        "others is missing": planner.Wish(model=str(tiny_model), data=billing, intent=Intent(mix=True)),
        "brings training rows": planner.Wish(model=str(tiny_model), data=billing, eval=other, others={"more": other}),
    }[said]
    with pytest.raises(PeftsmithError, match=said):
        planner.make(tmp_path / "project", wish)


def test_each_of_several_classifiers_gets_the_labels_of_its_own_rows(tmp_path, tiny_model):
    def labelled(name, *labels):
        path = tmp_path / f"{name}.jsonl"
        rows = [{"text": f"text {i} of {name}", "label": labels[i % len(labels)]} for i in range(30)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def made(place, *others, mix=False):
        wish = planner.Wish(
            model=str(tiny_model),
            data=labelled("billing", "paid", "unpaid"),
            others={"delivery": labelled("delivery", *others)},
            task="sequence_classification",
            intent=Intent(mix=mix),
        )
        return planner.make(tmp_path / place, wish).plan

    apart = made("apart", "early", "late")
    assert apart.data.labels == []
    assert {name: one.data.labels for name, one in apart.alone().items()} == {
        "billing": ["paid", "unpaid"],
        "delivery": ["early", "late"],
    }
    same = made("same", "paid", "unpaid")
    assert same.data.labels == ["paid", "unpaid"]
    assert all(each.labels is None for each in same.adapters.values())
    assert made("mixed", "early", "late", "never", mix=True).data.labels == ["early", "late", "never", "paid", "unpaid"]
    with pytest.raises(PeftsmithError, match="as many labels for each: billing 2, delivery 3"):
        made("refused", "early", "late", "never")
    assert not (tmp_path / "refused").exists()


def test_too_few_updates_are_told_of_the_adapter_that_makes_them(tmp_path, tiny_model, rows):
    wish = planner.Wish(model=str(tiny_model), data=rows("billing", 12), others={"delivery": rows("delivery", 400)})
    few = [each for each in planner.make(tmp_path / "project", wish).findings if each.id == "plan.updates.few"]
    assert [(each.evidence["adapter"], each.evidence["rows"]) for each in few] == [("billing", 12)]
