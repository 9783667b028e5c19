"""Where plan and scripts disagree, patches in both directions mend it."""

from __future__ import annotations

import pytest

from peftsmith import files, plan
from peftsmith.project import drift, settings
from tests.project.plans import generated, make


@pytest.fixture
def project(tmp_path):
    return generated(tmp_path / "project", make())


def _change(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_fresh_project_does_not_drift(project):
    assert drift.find(project, plan.load(project)) == []


def test_drift_is_found_and_mended_in_both_directions(project):
    script = project / "train.py"
    before = script.read_text(encoding="utf-8")
    _change(script, "RANK = 4", "RANK = 32  # more")
    _change(script, "LEARNING_RATE = 0.01", "LEARNING_RATE = 2e-4")
    found = drift.find(project, plan.load(project))
    assert [each.id for each in found] == ["plan.drift"]
    assert found[0].evidence["to_plan"] == {"method.rank": 32, "training.learning_rate": 2e-4}
    assert found[0].evidence["to_script"] == {"RANK": 4, "LEARNING_RATE": 0.01}
    assert found[0].evidence["file"] == "train.py"

    mended = settings.patch(script.read_text(encoding="utf-8"), found[0].evidence["to_script"])
    assert mended == before.replace("RANK = 4", "RANK = 4  # more")

    changed = plan.edit(files.read_text(project / plan.PLAN_FILE), found[0].evidence["to_plan"])
    files.write_text(project / plan.PLAN_FILE, changed)
    assert drift.find(project, plan.load(project)) == []


def test_each_script_is_compared(project):
    _change(project / "evaluate.py", 'SYSTEM_PROMPT = "Route', 'SYSTEM_PROMPT = "Send')
    _change(project / "merge.py", '"owner/model"', '"other/model"')
    found = {each.evidence["file"]: each.evidence["to_plan"] for each in drift.find(project, plan.load(project))}
    assert found == {
        "evaluate.py": {"data.system_prompt": "Send the ticket to one queue."},
        "merge.py": {"base.model": "other/model"},
    }


def test_an_edited_plan_drifts_from_the_scripts(project):
    changed = plan.edit(files.read_text(project / plan.PLAN_FILE), {"training.seed": 7})
    files.write_text(project / plan.PLAN_FILE, changed)
    found = drift.find(project, plan.load(project))
    assert {each.evidence["file"] for each in found} == {"train.py", "evaluate.py"}
    assert all(each.evidence["to_script"] == {"SEED": 7} for each in found)


@pytest.mark.parametrize(
    "line", ["RANK = 2 * 2", "RANK = int('4')", "rank = 4", "RANK = {1, 2}", "RANK = float('nan')"]
)
def test_a_computed_or_missing_setting_is_unknown(project, line):
    _change(project / "train.py", "RANK = 4", line)
    found = drift.find(project, plan.load(project))
    assert [(each.id, each.severity) for each in found] == [("project.settings.unreadable", "unknown")]
    assert found[0].evidence["names"] == ["RANK"]


def test_equal_values_of_another_type_are_no_drift_but_true_is_not_one(project):
    _change(project / "train.py", "EPOCHS = 1.0", "EPOCHS = 1")
    assert drift.find(project, plan.load(project)) == []
    _change(project / "train.py", "EPOCHS = 1", "EPOCHS = True")
    assert [each.id for each in drift.find(project, plan.load(project))] == ["plan.drift"]
