"""Settings are read back from scripts, and patched there."""

from __future__ import annotations

import pytest

from peftsmith.errors import PeftsmithError
from peftsmith.plan import FineTunePlan, flatten_fields
from peftsmith.project import settings


def test_every_setting_names_a_field_of_the_plan():
    # A star stands for the name of an adapter, or of a part of a mixture.
    named = {each.replace(".*", "") for each in settings._FIXED.values()}
    assert {each for each in named if not each.startswith("data.columns.")} <= set(flatten_fields(FineTunePlan))
    # A field of PEFT's config never takes the name of another setting or of a constant of the scripts.
    assert len(set(settings.fields().values())) == len(settings.fields())


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
