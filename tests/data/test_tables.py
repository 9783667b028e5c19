"""Parquet and Arrow: the same rows as JSON lines, in bounded memory, and no crash whatever a file claims to be."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import subprocess
import sys
import time
import zipfile
from datetime import date
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftsmith.data import row as limits
from peftsmith.data import tables
from peftsmith.data.formats import detect, to_example
from peftsmith.data.reading import class_names, fingerprint, read_rows
from peftsmith.errors import PeftsmithError


def stream(table, path):
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def arrow_file(table, path):
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def parquet(table, path):
    pq.write_table(table, path, row_group_size=11)


WRITERS = {"rows.parquet": parquet, "rows.arrow": stream, "file.arrow": arrow_file}
ROWS = [
    {
        "id": i,
        "messages": [{"role": "user", "content": f"é{i}" * (i % 5)}] * (i % 3 + 1),
        "tags": [i, None, 2] if i % 4 else [],
        "flag": bool(i % 2),
        "score": i / 3,
        "none": None,
        "nested": {"a": {"b": [[f"{i}"], []]}, "c": 1},
    }
    for i in range(50)
]


def values(path):
    return [row.value if row.fault is None else row.fault for row in read_rows(path)]


@pytest.mark.parametrize("name", WRITERS)
def test_the_rows_are_those_of_json(tmp_path, name):
    WRITERS[name](pa.Table.from_pylist(ROWS), tmp_path / name)
    assert values(tmp_path / name) == ROWS
    assert [row.number for row in read_rows(tmp_path / name)] == list(range(1, 51))


@pytest.mark.parametrize("name", WRITERS)
def test_types_that_json_lacks(tmp_path, name):
    table = pa.table(
        {
            "day": pa.array([date(2026, 1, 2), None]),
            "price": pa.array([Decimal("1.50"), None]),
            "kind": pa.array(["x", None]).dictionary_encode(),
            "large": pa.array([["a"], None], pa.large_list(pa.large_string())),
            "pairs": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
            "half": pa.array([{"a": 1, "b": None}, None], pa.struct({"a": pa.int64(), "b": pa.string()})),
            "fixed": pa.array([[1, 2], None], pa.list_(pa.int8(), 2)),
        }
    )
    WRITERS[name](table, tmp_path / name)
    assert values(tmp_path / name) == [
        {
            "day": "2026-01-02", "price": "1.50", "kind": "x", "large": ["a"], "pairs": {"k": 1}, "half": {"a": 1},
            "fixed": [1, 2],
        },
        dict.fromkeys(("day", "price", "kind", "large", "pairs", "half", "fixed")),
    ]  # fmt: skip


leaf = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5)
column_type = st.recursive(
    st.sampled_from([pa.int64(), pa.string(), pa.bool_(), pa.float64()]),
    lambda inner: st.builds(pa.list_, inner) | st.builds(lambda t: pa.struct({"a": t, "b": pa.string()}), inner),
    max_leaves=4,
)


def value_of(kind):
    if pa.types.is_list(kind):
        return st.none() | st.lists(value_of(kind.value_type), max_size=3)
    if pa.types.is_struct(kind):
        return st.none() | st.fixed_dictionaries({field.name: value_of(field.type) for field in kind})
    by_type = {
        "int64": st.integers(-5, 5),
        "string": st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
        "bool": st.booleans(),
        "double": st.floats(-2, 2),
    }
    return st.none() | by_type[str(kind)]


def without_null_keys(value):
    if isinstance(value, dict):
        return {key: without_null_keys(item) for key, item in value.items() if item is not None}
    return [without_null_keys(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(sorted(WRITERS)))
def test_any_nesting_comes_out_as_pyarrow_itself_says(tmp_path_factory, data, name):
    kind = data.draw(column_type)
    column = pa.array(data.draw(st.lists(value_of(kind), min_size=1, max_size=20)), kind)
    path = tmp_path_factory.mktemp("any") / name
    WRITERS[name](pa.table({"c": column}), path)
    assert values(path) == [{"c": without_null_keys(value)} for value in column.to_pylist()]


def test_folders_of_datasets_and_of_shards(tmp_path):
    saved = tmp_path / "saved"
    saved.mkdir()
    for place in range(2):
        stream(pa.Table.from_pylist(ROWS[place * 25 : place * 25 + 25]), saved / f"data-{place}.arrow")
    state = {"_data_files": [{"filename": "data-0.arrow"}, {"filename": "data-1.arrow"}], "_indices_data_files": None}
    (saved / "state.json").write_text(json.dumps(state), encoding="utf-8")
    (saved / "dataset_info.json").write_text("{}", encoding="utf-8")
    assert values(saved) == ROWS
    assert [row.number for row in read_rows(saved)][-1] == 50
    before = fingerprint(saved)
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-1.arrow"}]}), encoding="utf-8")
    assert values(saved) == ROWS[25:] and fingerprint(saved) != before
    for bad in ({"_data_files": [{"filename": "../x.arrow"}]}, {}, {**state, "_indices_data_files": [{}]}):
        (saved / "state.json").write_text(json.dumps(bad), encoding="utf-8")
        with pytest.raises(PeftsmithError, match=r"state\.json|selection"):
            values(saved)
    both = tmp_path / "both"
    both.mkdir()
    (both / "dataset_dict.json").write_text('{"splits": ["train"]}', encoding="utf-8")
    with pytest.raises(PeftsmithError, match="several splits"):
        values(both)
    shards = tmp_path / "shards"
    shards.mkdir()
    for place in (1, 0):
        parquet(pa.Table.from_pylist(ROWS[place * 25 : place * 25 + 25]), shards / f"train-{place}.parquet")
    assert values(shards) == ROWS
    parquet(pa.Table.from_pylist(ROWS), shards / "test-0.parquet")
    with pytest.raises(PeftsmithError, match="several splits"):
        values(shards)
    (shards / "more.jsonl").write_text("{}", encoding="utf-8")
    with pytest.raises(PeftsmithError, match="several kinds"):
        values(shards)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    parquet(pa.Table.from_pylist(ROWS), tmp_path / "secret.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.parquet").symlink_to(tmp_path / "secret.parquet")
    with pytest.raises(PeftsmithError, match="leads out of it"):
        values(folder)


def test_class_names_of_the_schema(tmp_path):
    features = {
        "label": {"names": ["no", "yes"], "_type": "ClassLabel"},
        "ner_tags": {"feature": {"names": ["O", "B"], "_type": "ClassLabel"}, "_type": "List"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    table = pa.Table.from_pylist([{"text": "a", "label": 1}, {"text": "b", "label": 0}])
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    for name, write in WRITERS.items():
        write(table, tmp_path / name)
        assert class_names(tmp_path / name) == {"label": ("no", "yes"), "ner_tags": ("O", "B")}
        found = detect(tmp_path / name)
        assert found.labels == ["no", "yes"]
        assert to_example({"text": "a", "label": 1}, found.mapping).label == "yes"
    for broken in ("{", '{"info": []}', '{"info": {"features": {"label": 5}}}'):
        parquet(table.replace_schema_metadata({"huggingface": broken}), tmp_path / "b.parquet")
        assert class_names(tmp_path / "b.parquet") == {}


def test_text_that_is_not_utf8_costs_one_row(tmp_path):
    column = pa.array([b"good", b"\xff\xfe", b"also good"]).cast(pa.binary()).view(pa.string())
    for name, write in WRITERS.items():
        write(pa.table({"text": column}), tmp_path / name)
        rows = list(read_rows(tmp_path / name))
        assert [row.value for row in rows] == [{"text": "good"}, None, {"text": "also good"}]
        assert "not readable" in rows[1].fault


def test_long_rows_are_faults(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "LONGEST_LINE", 1000)
    rows = [{"text": "a" * n} for n in (10, 2000, 30)]
    for name, write in WRITERS.items():
        write(pa.Table.from_pylist(rows), tmp_path / name)
        assert [type(value) for value in values(tmp_path / name)] == [dict, str, dict]


def test_a_dictionary_bomb_stays_small(tmp_path):
    """One text of 8 MB in a dictionary, used by 600 rows: 5 GB if each row were to hold its own."""
    for name in WRITERS:
        column = pa.DictionaryArray.from_arrays(pa.array([0] * 600, pa.int32()), pa.array(["a" * (8 << 20)]))
        table = pa.table({"text": column})
        if name.endswith("parquet"):
            pq.write_table(table, tmp_path / name, compression="zstd", dictionary_pagesize_limit=64 << 20)
        else:
            WRITERS[name](table, tmp_path / name)
    script = (
        "import sys, pathlib\n"
        "from peftsmith.data.reading import read_rows\n"
        "def peak(): return int(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "for name in sys.argv[1:]:\n"
        "    rows = read_rows(pathlib.Path(name))\n"
        "    assert sum(len(row.value['text']) for row in rows) == 600 << 23\n"
        "print(peak())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *(str(tmp_path / name) for name in WRITERS)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 400 << 10


def test_one_huge_row_group_is_read_in_pieces(tmp_path):
    """48 MB of text that does not compress, in one row group: reading adds far less to the process."""
    draw = random.Random(1)
    table = pa.table({"text": [draw.randbytes(400).hex() for _ in range(60_000)]})
    pq.write_table(table, tmp_path / "one.parquet", row_group_size=10**9, compression="none", use_dictionary=False)
    script = (
        "import sys, pathlib\n"
        "from peftsmith.data.reading import read_rows\n"
        "def peak(): return int(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "rows = read_rows(pathlib.Path(sys.argv[1]))\n"
        "next(rows)\n"
        "first = peak()\n"
        "assert sum(1 for _ in rows) == 59_999\n"
        "print(first, peak() - first)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "one.parquet")],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    before, added = map(int, done.stdout.split())
    assert before < 150 << 10 and added < 24 << 10


@pytest.mark.parametrize("depth", [50, 500])
def test_objects_nested_deeply(tmp_path, depth):
    column = pa.array(["x"])
    for _ in range(depth):
        column = pa.StructArray.from_arrays([column], ["a"])
    parquet(pa.table({"c": column}), tmp_path / "deep.parquet")
    if depth == 500:
        with pytest.raises(PeftsmithError, match="cannot be read"):
            values(tmp_path / "deep.parquet")
        return
    [value] = values(tmp_path / "deep.parquet")
    for name in ["c"] + ["a"] * depth:
        value = value[name]
    assert value == "x"


def hostile():
    table = pa.Table.from_pylist(ROWS)
    plain = pa.BufferOutputStream()
    pq.write_table(table, plain)
    good = plain.getvalue().to_pybytes()
    yield "pickle.parquet", pickle.dumps(ROWS), "pickle"
    yield "json.parquet", b'{"text": "a"}\n', "no such file"
    yield "json.arrow", b'{"text": "a"}\n', "no such file"
    yield "magic.parquet", b"PAR1", "cannot be read"
    yield "footer.parquet", good[:-20] + b"\xff" * 12 + good[-8:], "cannot be read"
    yield "length.parquet", good[:-8] + b"\xff\xff\xff\x7f" + good[-4:], "cannot be read"
    yield "cut.parquet", good[: len(good) // 2], "cannot be read"
    yield "page.parquet", good[:30] + bytes(200) + good[230:], "cannot be read"
    yield "encrypted.parquet", b"PARE" + good[4:-4] + b"PARE", "encrypted"
    yield "stream.arrow", b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(100), "cannot be read"
    yield "file.arrow", b"ARROW1\0\0" + bytes(100) + b"ARROW1", "cannot be read"


@pytest.mark.parametrize(
    ("name", "content", "word"), list(hostile()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_hostile_files_are_named(tmp_path, name, content, word):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PeftsmithError, match=word):
        values(tmp_path / name)


def test_a_zip_posing_as_parquet_and_tables_without_rows_or_names(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.parquet", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(PeftsmithError, match="zip"):
        values(tmp_path / "z.parquet")
    empty = pa.table({"text": pa.array([], pa.string())})
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    for name, write in WRITERS.items():
        write(empty, tmp_path / name)
        with pytest.raises(PeftsmithError, match="no rows"):
            values(tmp_path / name)
        write(twice, tmp_path / name)
        with pytest.raises(PeftsmithError, match="each name once"):
            values(tmp_path / name)


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_anywhere_is_an_error_or_faults_never_a_crash(tmp_path, name):
    """Every run is its own damage; the process that reads must end by itself, with 0, and every row told of."""
    WRITERS[name](pa.Table.from_pylist(ROWS), tmp_path / name)
    good = (tmp_path / name).read_bytes()
    draw = random.Random(7)
    for place in range(150):
        bad = bytearray(good)
        for _ in range(draw.choice((1, 4, 40))):
            bad[draw.randrange(8, len(bad))] = draw.randrange(256)
        if place % 3 == 0:
            del bad[draw.randrange(16, len(bad)) :]
        (tmp_path / f"{place}-{name}").write_bytes(bad)
    script = (
        "import sys, pathlib\n"
        "from peftsmith.data.reading import read_rows\n"
        "from peftsmith.errors import PeftsmithError\n"
        "ended = 0\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).glob('*-*.*')):\n"
        "    try:\n"
        "        for row in read_rows(path):\n"
        "            assert (row.value is None) != (row.fault is None)\n"
        "    except PeftsmithError:\n"
        "        pass\n"
        "    ended += 1\n"
        "print(ended)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "150"), done.stderr[-2000:]


@pytest.mark.slow
def test_at_least_as_fast_as_json_lines(tmp_path):
    text = "some words of a text that is neither short nor long, and the like of which chats are full. "
    rows = [
        {"messages": [{"role": "user", "content": f"{i} {text}"}, {"role": "assistant", "content": f"{text * 2} {i}"}]}
        for i in range(20_000)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    count, taken = len(rows), {}
    del rows  # what lives on makes each collection of garbage slower
    for name in ("rows.jsonl", "rows.parquet") * 5:
        start = time.process_time()
        assert sum(1 for _ in read_rows(tmp_path / name)) == count
        taken[name] = min(time.process_time() - start, taken.get(name, 1e9))
    assert taken["rows.parquet"] <= taken["rows.jsonl"], taken


def test_the_server_starts_without_pyarrow():
    script = "import sys, peftsmith.operations, peftsmith.data.tables\nprint('pyarrow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    assert done.stdout.strip() == "False"
    assert tables.PARQUET == b"PAR1"
