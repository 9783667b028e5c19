"""The planted mistakes of tests/cases, and that the counting itself cannot be fooled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from benchmarks import traps
from peftsmith.errors import PeftsmithError
from peftsmith.finding import catalogue
from peftsmith.knowledge import case as cases

pytestmark = pytest.mark.slow

CASES = Path(__file__).parent / "cases"
FOLDERS = sorted(path.parent for path in CASES.rglob(cases.CASE_FILE))


def test_every_planted_mistake_is_found_and_no_clean_case_raises_an_alarm():
    outcomes = traps.run_all(CASES)
    text, good = traps.report(outcomes)
    assert good, text
    assert len(outcomes) == len(FOLDERS) >= 25
    assert {each.name.split("-")[0] for each in outcomes} == {
        "data",
        "model",
        "plan",
        "project",
        "script",
        "run",
        "adapter",
    }
    assert sum(not each.planted for each in outcomes) >= 10
    assert text.splitlines()[-1].startswith(f"found {sum(each.planted for each in outcomes)} of ")


def test_cases_follow_the_published_schema():
    import jsonschema

    schema = json.loads((traps.REPOSITORY / "docs" / "schema" / "case.schema.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    for folder in FOLDERS:
        document = YAML(typ="safe", pure=True).load((folder / cases.CASE_FILE).read_text(encoding="utf-8"))
        assert list(validator.iter_errors(document)) == [], folder.name
        for expected in document["expect"]:
            assert expected in catalogue() or cases.row_of(expected) or expected == "refused", folder.name
        named = {item["source"] for item in document.get("files", [])} | {cases.CASE_FILE}
        assert {path.name for path in folder.iterdir()} == named, folder.name


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"stage": "dreams"}, "stage"),
        ({"expect": ["not an id"]}, "expect"),
        ({"surprise": 1}, "surprise"),
        ({"files": [{"path": "../outside", "source": "train.jsonl"}]}, "relative path"),
        ({"files": [{"path": "data/train.jsonl", "source": "absent.jsonl"}]}, "lacks files"),
        ({"schema_version": 2}, "schema_version"),
    ],
)
def test_a_wrong_case_is_refused_with_its_fault(tmp_path, change, fault):
    document = {"schema_version": 1, "stage": "data", "title": "a case", **change}
    (tmp_path / cases.CASE_FILE).write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(PeftsmithError, match=fault):
        cases.load(tmp_path)


def test_missed_mistakes_and_false_alarms_are_counted_and_fail(tmp_path, capsys):
    for name, change in {
        "missed": ("data-clean-chat", "expect: []", "expect:\n  - data.rows.duplicate"),
        "alarm": ("data-duplicate-rows", "expect:\n  - data.rows.duplicate", "expect: []"),
        "found": ("data-malformed-line", "schema_version: 1", "schema_version: 1"),
    }.items():
        source, old, new = change
        shutil.copytree(CASES / source, tmp_path / name)
        text = (tmp_path / name / cases.CASE_FILE).read_text(encoding="utf-8")
        assert old in text
        (tmp_path / name / cases.CASE_FILE).write_text(text.replace(old, new), encoding="utf-8")
    assert traps.main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "found 1 of 2 planted, 0 of 1 clean without alarm"
    assert any(line.startswith("missed") and "missed:" in line for line in printed)
    assert any(line.startswith("false alarm") for line in printed)


def test_a_folder_without_cases_is_an_error(tmp_path):
    with pytest.raises(PeftsmithError, match="no case"):
        traps.main([str(tmp_path)])
