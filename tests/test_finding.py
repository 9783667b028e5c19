"""The catalogue and the exit codes."""

import itertools

import pytest

from peftsmith import finding as findings


def test_every_entry_is_complete():
    for entry in findings.catalogue().values():
        assert findings.ID_RULE.fullmatch(entry.id)
        assert entry.title and entry.fix and entry.source
        assert all(1 <= row <= 44 for row in entry.rows)


def test_an_unknown_id_cannot_be_made():
    with pytest.raises(KeyError):
        findings.finding("no.such.thing")


def test_exit_codes():
    expected = {"error": 1, "warning": 1, "unknown": 3, "info": 0}
    for severity, code in expected.items():
        assert findings.exit_code([findings.finding("plan.drift", severity=severity)]) == code
    assert findings.exit_code([]) == 0
    both = [findings.finding("plan.drift", severity=each) for each in ("unknown", "warning")]
    assert findings.exit_code(both) == 1


def test_worst_comes_first():
    for order in itertools.permutations(("info", "error", "unknown", "warning")):
        made = [findings.finding("plan.drift", severity=each) for each in order]
        assert [each.severity for each in findings.worst_first(made)] == ["error", "unknown", "warning", "info"]


def test_a_finding_is_plain_data_with_clean_text():
    made = findings.finding("plan.drift", "bad\x1b[31m \u202etext", field="a").to_json()
    assert made["message"] == "bad[31m text"
    assert made["evidence"] == {"field": "a"}
    assert set(made) == {"id", "severity", "message", "fix", "source", "rows", "evidence"}
