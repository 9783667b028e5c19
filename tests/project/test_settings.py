"""Settings are read back from scripts, and where plan and script differ both patches mend it."""

from __future__ import annotations

import pytest

from peftsmith import files, plan
from peftsmith.errors import PeftsmithError
from peftsmith.plan import FineTunePlan, flatten_fields
from peftsmith.project import settings
from tests.project.plans import generated, make


@pytest.fixture
def project(tmp_path):
    return generated(tmp_path / "project", make())


def _change(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_every_setting_names_a_field_of_the_plan():
    # A star stands for the name of an adapter, or of a part of a mixture.
    named = {each.replace(".*", "") for each in settings._FIXED.values()}
    assert {each for each in named if not each.startswith("data.columns.")} <= set(flatten_fields(FineTunePlan))
    # A field of PEFT's config never takes the name of another setting or of a constant of the scripts.
    assert len(set(settings.fields().values())) == len(settings.fields())


def test_a_fresh_project_does_not_drift(project):
    assert settings.drift(project, plan.load(project)) == []


def test_drift_is_found_and_mended_in_both_directions(project):
    script = project / "train.py"
    before = script.read_text(encoding="utf-8")
    _change(script, "RANK = 4", "RANK = 32  # more")
    _change(script, "LEARNING_RATE = 0.01", "LEARNING_RATE = 2e-4")
    found = settings.drift(project, plan.load(project))
    assert [each.id for each in found] == ["plan.drift"]
    assert found[0].evidence["to_plan"] == {"method.rank": 32, "training.learning_rate": 2e-4}
    assert found[0].evidence["to_script"] == {"RANK": 4, "LEARNING_RATE": 0.01}
    assert found[0].evidence["file"] == "train.py"

    mended = settings.patch(script.read_text(encoding="utf-8"), found[0].evidence["to_script"])
    assert mended == before.replace("RANK = 4", "RANK = 4  # more")

    changed = plan.edit(files.read_text(project / plan.PLAN_FILE), found[0].evidence["to_plan"])
    files.write_text(project / plan.PLAN_FILE, changed)
    assert settings.drift(project, plan.load(project)) == []


def test_each_script_is_compared(project):
    _change(project / "evaluate.py", 'SYSTEM_PROMPT = "Route', 'SYSTEM_PROMPT = "Send')
    _change(project / "merge.py", '"owner/model"', '"other/model"')
    found = {each.evidence["file"]: each.evidence["to_plan"] for each in settings.drift(project, plan.load(project))}
    assert found == {
        "evaluate.py": {"data.system_prompt": "Send the ticket to one queue."},
        "merge.py": {"base.model": "other/model"},
    }


def test_an_edited_plan_drifts_from_the_scripts(project):
    changed = plan.edit(files.read_text(project / plan.PLAN_FILE), {"training.seed": 7})
    files.write_text(project / plan.PLAN_FILE, changed)
    found = settings.drift(project, plan.load(project))
    assert {each.evidence["file"] for each in found} == {"train.py", "evaluate.py"}
    assert all(each.evidence["to_script"] == {"SEED": 7} for each in found)


@pytest.mark.parametrize(
    "line", ["RANK = 2 * 2", "RANK = int('4')", "rank = 4", "RANK = {1, 2}", "RANK = float('nan')"]
)
def test_a_computed_or_missing_setting_is_unknown(project, line):
    _change(project / "train.py", "RANK = 4", line)
    found = settings.drift(project, plan.load(project))
    assert [(each.id, each.severity) for each in found] == [("project.settings.unreadable", "unknown")]
    assert found[0].evidence["names"] == ["RANK"]


def test_equal_values_of_another_type_are_no_drift_but_true_is_not_one(project):
    _change(project / "train.py", "EPOCHS = 1.0", "EPOCHS = 1")
    assert settings.drift(project, plan.load(project)) == []
    _change(project / "train.py", "EPOCHS = 1", "EPOCHS = True")
    assert [each.id for each in settings.drift(project, plan.load(project))] == ["plan.drift"]


def test_the_last_assignment_counts_and_annotations_are_read():
    assert settings.read("RANK = 4\nRANK: int = 8\nOTHER = 1\n") == {"RANK": 8}
    assert settings.read("def f():\n    RANK = 4\n") == {}


def test_a_patch_replaces_any_layout_and_keeps_the_rest():
    script = '# \u00e9\nTARGET_MODULES = [  # these\n    "a",\n    "b",\n]\n'
    script += 'SYSTEM_PROMPT = (\n    "x "\n    "y"\n)  # end\nSEED = 1\n'
    patched = settings.patch(script, {"TARGET_MODULES": "all-linear", "SYSTEM_PROMPT": "q", "SEED": 2})
    assert patched == '# \u00e9\nTARGET_MODULES = "all-linear"\nSYSTEM_PROMPT = "q"  # end\nSEED = 2\n'
    with pytest.raises(PeftsmithError, match="no such setting"):
        settings.patch(script, {"RANK": 2})


@pytest.mark.parametrize("script", ["RANK = (", "x = 1\x00", "(" * 3000])
def test_a_script_that_does_not_parse_is_an_error(script):
    with pytest.raises(PeftsmithError, match="does not parse"):
        settings.read(script)
