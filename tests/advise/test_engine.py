"""Rules as data: complete, evidenced, and the first that holds decides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftsmith.advise import engine, facts
from peftsmith.advise.facts import Device, Intent, Rows
from peftsmith.plan import FineTunePlan, flatten_fields

OWN = {"targets.preset", "batch.effective", "method.quantised"}


def test_every_rule_names_statement_source_strength_conflict_and_what_would_change_it():
    for rule in engine.rules():
        assert all((rule.statement, rule.source, rule.conflicts, rule.would_change, rule.reason)), rule.id
        assert rule.strength in {"measured", "practice", "arithmetic"}, rule.id
        assert rule.sets in OWN or rule.sets in flatten_fields(FineTunePlan), rule.id
        assert (rule.value is None) != (rule.value_of is None), rule.id


def test_every_field_ends_with_a_rule_that_always_holds_and_has_none_behind_it():
    for name in {rule.sets for rule in engine.rules()}:
        conditions = [rule.when for rule in engine.rules() if rule.sets == name]
        assert conditions[-1] == {}, name
        assert all(conditions[:-1]), name


def test_no_rule_is_hidden_by_an_earlier_one_with_the_same_conditions():
    seen = [(rule.sets, repr(sorted(rule.when.items()))) for rule in engine.rules()]
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize(
    ("fact", "wanted", "holds"),
    [
        (3, 3, True),
        (3, 4, False),
        ("a", ["a", "b"], True),
        ("c", ["a", "b"], False),
        (5, {"least": 5}, True),
        (5, {"below": 5}, False),
        (5, {"least": 2, "below": 9}, True),
        (True, "unknown", False),
    ],
)
def test_conditions(fact, wanted, holds):
    rule = engine.Rule("r", "x", "", "", "", "", "", "", {"fact": wanted}, value=1)
    assert rule.holds({"fact": fact}) is holds


def test_a_fact_that_nobody_worked_out_and_a_field_without_rules_are_faults_of_ours():
    with pytest.raises(KeyError):
        engine.decide("method.peft_type", {})
    with pytest.raises(LookupError):
        engine.decide("training.colour", {})


@given(
    rows=st.integers(0, 10**7),
    longest=st.none() | st.integers(1, 10**6),
    loss=st.none() | st.integers(0, 10**12),
    capability=st.none() | st.tuples(st.integers(5, 12), st.integers(0, 9)),
)
def test_what_stands_before_the_method_is_decided_for_any_rows_and_device(bodies, rows, longest, loss, capability):
    known = facts.of(bodies["tiny"], Rows(rows, longest, loss), Device("cuda", 24.0, capability), Intent())
    known |= {"packing": "none", "epochs": engine.decide("training.epochs", known).value}
    known["peft_type"] = engine.decide("method.peft_type", known).value
    known |= facts.of_updates(Rows(rows, longest, loss), known)
    for name in ("method.peft_type", "training.precision", "training.max_length", "training.epochs", "batch.effective"):
        decision = engine.decide(name, known)
        assert decision.value is not None
    assert known["rounded_length"] <= bodies["tiny"].max_positions
    modern = capability is None or capability >= (8, 0)
    assert (engine.decide("training.precision", known).value == "bf16") is modern
