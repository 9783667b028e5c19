"""The documents that are made from the code equal what is committed."""

from __future__ import annotations

import pytest

from peftsmith.finding import catalogue
from peftsmith.knowledge import document
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("name", sorted(document.documents()))
def test_the_committed_document_is_what_the_code_makes(name):
    committed = (REPOSITORY / "docs" / name).read_text(encoding="utf-8")
    assert committed == document.documents()[name], f"docs/{name} is out of date: run `make docs`"


def test_every_finding_and_every_failure_row_is_listed_once():
    lines = document.findings_markdown().splitlines()
    for id_, entry in catalogue().items():
        assert sum(line.startswith(f"| `{id_}` |") for line in lines) == 1
        assert set(entry.rows) <= document.failures().keys(), id_
    assert sorted(document.failures()) == list(range(1, 45))


def test_writing_goes_to_the_folder_that_is_named(tmp_path):
    assert document.main([str(tmp_path)]) == 0
    assert {str(path.relative_to(tmp_path / "docs")) for path in (tmp_path / "docs").rglob("*.*")} == set(
        document.documents()
    )
