"""Data sets on the hub, against a loopback server: pinned, kept for offline use, and refused with a reason."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peftsmith import operations
from peftsmith.data.hub_data import choose, fetch
from peftsmith.data.reading import read_rows
from peftsmith.data.source import locate
from peftsmith.errors import PeftsmithError
from tests.model.hub_server import COMMIT, serve

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: [data/test-00000.parquet]
- config_name: small
  data_files: small/*.jsonl
---
# A data set
"""


@pytest.fixture
def at(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setenv("PEFTSMITH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def point(url, *, offline=False):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)

    return point


@pytest.fixture
def sets(tmp_path):
    """own/rows has a card and shards, own/plain one file, own/code no data but a script."""
    rows, plain, code = (tmp_path / name for name in ("rows", "plain", "code"))
    for folder in (rows / "data", rows / "small", plain, code):
        folder.mkdir(parents=True)
    (rows / "README.md").write_text(CARD, encoding="utf-8")
    for name, first in (("train-00000", 0), ("train-00001", 10), ("test-00000", 20)):
        made = [{"text": f"row {i}", "label": i % 2} for i in range(first, first + 10)]
        pq.write_table(pa.Table.from_pylist(made), rows / "data" / f"{name}.parquet")
    (rows / "small" / "a.jsonl").write_text('{"text": "small", "label": 1}\n', encoding="utf-8")
    lines = "".join(json.dumps({"prompt": f"q{i}", "completion": f"a{i}"}) + "\n" for i in range(12))
    (plain / "all.jsonl").write_text(lines, encoding="utf-8")
    (code / "code.py").write_text("raise SystemExit('never run')\n", encoding="utf-8")
    return {f"datasets/own/{name}": path for name, path in (("rows", rows), ("plain", plain), ("code", code))}


def test_a_split_is_fetched_once_and_kept_for_offline(sets, at):
    with serve(sets) as hub:
        at(hub.url)
        first = fetch("own/rows")
        assert first.commit == COMMIT
        assert [row.value["text"] for row in read_rows(first.path)] == [f"row {i}" for i in range(20)]
        asked = len([path for _, path, _ in hub.seen if "/resolve/" in path])
        assert all(COMMIT in path for _, path, _ in hub.seen if "/resolve/" in path)
        assert not [path for _, path, _ in hub.seen if "test-00000" in path]
        assert fetch("own/rows", revision=COMMIT).path == first.path
        assert len([path for _, path, _ in hub.seen if "/resolve/" in path]) == asked
    assert first.findings[0].id == "data.source.hub" and "apache-2.0" in first.findings[0].message
    at("http://127.0.0.1:9")
    again = fetch("own/rows")
    assert again.path == first.path and [each.id for each in again.findings] == [
        "data.source.cached",
        "data.source.hub",
    ]
    at(hub.url, offline=True)
    assert fetch("own/rows", revision=COMMIT).path == first.path
    for split, revision in (("test", None), ("train", "6" * 40)):
        with pytest.raises(PeftsmithError, match="not fetched before") as caught:
            fetch("own/rows", split, revision)
        assert "HF_HUB_OFFLINE" in str(caught.value)


def test_splits_and_subsets(sets, at):
    with serve(sets) as hub:
        at(hub.url)
        assert len(list(read_rows(fetch("own/rows", "test").path))) == 10
        assert [row.value["text"] for row in read_rows(fetch("own/rows", "small/train").path)] == ["small"]
        assert len(list(read_rows(fetch("own/plain").path))) == 12
        for name, split, word in (
            ("own/rows", "validation", "its splits are: test, train"),
            ("own/rows", "absent/train", "subsets default, small"),
            ("own/rows", "../x", "not the name of a split"),
            ("own/code", "train", "no data files"),
            ("own/none", "train", "no such data set"),
        ):
            with pytest.raises(PeftsmithError, match=word):
                fetch(name, split)


def test_operations_take_a_hub_id(sets, at, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with serve(sets) as hub:
        at(hub.url)
        result = operations.prepare_dataset("own/plain", str(tmp_path / "out"), revision=COMMIT)
        assert result["prepared"]["written"] == 12
        assert "data.source.hub" in {each["id"] for each in result["findings"]}
        (tmp_path / "own").mkdir()
        with pytest.raises(PeftsmithError, match="no such file"):
            locate("own/plain")
    with pytest.raises(PeftsmithError, match="no revision"):
        locate("rows.jsonl", revision=COMMIT)


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["data/train-0.parquet", "data/dev-0.parquet"], "validation", ["data/dev-0.parquet"]),
        (["a.csv", "b.csv"], "train", ["a.csv", "b.csv"]),
        (["training_notes.csv", "train.csv"], "train", ["train.csv"]),
    ],
)
def test_which_files_make_a_split(names, split, expected):
    assert choose(names, {}, "", split) == expected


def test_files_that_do_not_go_together():
    with pytest.raises(PeftsmithError, match="several folders"):
        choose(["a/train.csv", "b/train.csv"], {}, "", "train")
