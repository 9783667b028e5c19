"""Reading rows: everything real files hold, and files that are not what they say."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import resource
import tracemalloc
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftsmith.data import row, text_files
from peftsmith.data.reading import read_rows
from peftsmith.errors import PeftsmithError


def rows_of(path):
    return list(read_rows(path))


def write(tmp_path, content, name="rows.jsonl"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_json_lines(tmp_path, end, mark):
    path = write(tmp_path, mark + end.join([b'{"a": "x"}', b"", b"   ", '{"a": "é"}'.encode()]))
    assert [(row.number, row.value, row.fault) for row in read_rows(path)] == [
        (1, {"a": "x"}, None),
        (4, {"a": "é"}, None),
    ]


def test_broken_lines_do_not_hide_the_others(tmp_path):
    deep = b"[" * 100_000
    lines = [
        *(b'{"a": 1}', b"{", b'{"a": "\xff"}', b'{"a": "\x00"}', b"\x00\x00", b"[1]", b"null", b'"x"', b"3"),
        *(b'{"a":' + deep, b'{"a": ' + b"9" * 5000 + b"}", b'{"a": 2}'),
    ]
    rows = rows_of(write(tmp_path, b"\n".join(lines)))
    assert [row.number for row in rows] == list(range(1, 13))
    assert [row.value for row in rows if row.value] == [{"a": 1}, {"a": 2}]
    assert all((row.value is None) != (row.fault is None) for row in rows)
    assert rows[2].fault == "not UTF-8 at byte 7 of the line"
    assert rows[9].fault == "nested too deeply"


@pytest.mark.slow
def test_a_200_mb_line_is_a_fault_and_not_memory(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as stream:
        stream.write(b'{"a": 1}\n{"a": "')
        for _ in range(200):
            stream.write(b"x" * (1 << 20))
        stream.write(b'"}\n{"a": 2}\n')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = rows_of(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 80 << 10  # KiB
    assert [row.number for row in rows] == [1, 2, 3]
    assert rows[1].fault == "the line is longer than 16 MiB"
    assert rows[2].value == {"a": 2}


def test_a_long_line_at_the_end_without_line_feed(tmp_path, monkeypatch):
    monkeypatch.setattr(row, "LONGEST_LINE", 100)
    rows = rows_of(write(tmp_path, b'{"a": 1}\n' + b"x" * 250))
    assert [row.fault is None for row in rows] == [True, False]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b" \n\r\n\t", "empty"),
        (b"PAR1\x15\x04", "Parquet"),
        (pickle.dumps({"a": 1}), "pickle"),
        (gzip.compress(b'{"a": 1}', mtime=0), "gzip"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        (b"SQLite format 3\x00", "SQLite"),
        (b"[]", "no rows"),
        (b'[{"a": 1}, {', "cannot be parsed"),
        (b"[" * 100_000, "nested|parsed"),
        (b'[{"a": "\xff"}]', "not UTF-8"),
    ],
)
def test_files_that_are_something_else(tmp_path, content, word):
    with pytest.raises(PeftsmithError, match=word):
        rows_of(write(tmp_path, content))


def test_zip_missing_folder_pipe_and_unreadable(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.jsonl", "w") as archive:
        archive.writestr("a", "b")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, word in (
        ("z.jsonl", "zip"),
        ("none.jsonl", "missing"),
        ("pipe.jsonl", "not a device"),
    ):
        with pytest.raises(PeftsmithError, match=word):
            rows_of(tmp_path / name)
    with pytest.raises(PeftsmithError, match="not a device"):
        rows_of(tmp_path.__class__("/dev/zero"))


def test_json_array(tmp_path):
    path = write(tmp_path, '\ufeff [\n {"a": 1},\n 2, {"b": [1]}]\n', "rows.json")
    rows = rows_of(path)
    assert [(row.number, row.value) for row in rows] == [(1, {"a": 1}), (2, None), (3, {"b": [1]})]


@pytest.mark.parametrize(
    ("content", "values"),
    [
        ('["a", "list"]\n{"a": 1}\n', [None, {"a": 1}]),
        ('[INFO] started\n{"a": 1}\n{"b": 2}\n', [None, {"a": 1}, {"b": 2}]),
        ('[]\n\n{"a": 1}\n', [None, {"a": 1}]),
        ('[{"a": 1},\n{"b": 2}]', [{"a": 1}, {"b": 2}]),
        ('[\n{"a": 1}\n,\n{"b": 2}\n]\n', [{"a": 1}, {"b": 2}]),
        ('[{"a": 1}\n,{"b": 2}]', [{"a": 1}, {"b": 2}]),
        ('[{"a":\n{"b": 2}}]', [{"a": {"b": 2}}]),
        ('[{"a": 1}, {"b": 2}]\n\n', [{"a": 1}, {"b": 2}]),
    ],
)
def test_lines_whose_first_is_a_list_are_no_array(tmp_path, content, values):
    assert [row.value for row in rows_of(write(tmp_path, content, "rows.jsonl"))] == values


def test_json_array_above_the_cap(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LARGEST_ARRAY", 10)
    with pytest.raises(PeftsmithError, match="JSON lines"):
        rows_of(write(tmp_path, '[{"a": 1}, {"a": 2}]', "rows.json"))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv(tmp_path, delimiter):
    content = 'text,label\r\n"one, with ""quotes""\r\nand a line",a\r\n\r\nzwei,b\r\n'.replace(",", delimiter)
    content = content.replace("one" + delimiter, "one,")
    rows = rows_of(write(tmp_path, "\ufeff" + content, "rows.csv"))
    assert [(row.number, row.value) for row in rows] == [
        (2, {"text": 'one, with "quotes"\r\nand a line', "label": "a"}),
        (5, {"text": "zwei", "label": "b"}),
    ]


def test_csv_faults(tmp_path):
    content = b'text,label\ngood,a\nonly one\nthree,b,c\nb\xe9d,a\n"bad"x,a\nfine,b\n"never closed,a\n'
    rows = rows_of(write(tmp_path, content, "rows.csv"))
    assert [row.number for row in rows] == [2, 3, 4, 5, 6, 7, 8]
    assert [row.value for row in rows if row.value] == [{"text": "good", "label": "a"}, {"text": "fine", "label": "b"}]
    assert rows[3].fault == "not UTF-8"


def test_csv_overlong_line_and_field(tmp_path, monkeypatch):
    monkeypatch.setattr(row, "LONGEST_LINE", 1000)
    content = "text,label\n" + "x" * 3000 + ",a\ngood,b\n"
    rows = rows_of(write(tmp_path, content, "rows.csv"))
    assert [row.fault is None for row in rows] == [False, True]
    assert rows[1].value == {"text": "good", "label": "b"}


@pytest.mark.parametrize("header", ["text,text\na,b\n", "text,\na,b\n", '"te"xt,label\na,b\n'])
def test_csv_header(tmp_path, header):
    with pytest.raises(PeftsmithError, match="CSV"):
        rows_of(write(tmp_path, header, "rows.csv"))


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(st.dictionaries(st.text(max_size=4), st.text()), st.binary(max_size=20)), min_size=1, max_size=12
    )
)
def test_any_bytes_give_rows_or_faults(tmp_path, pieces):
    lines = [json.dumps(piece).encode() if isinstance(piece, dict) else piece.replace(b"\n", b" ") for piece in pieces]
    path = write(tmp_path, b'{"first": 1}\n' + b"\n".join(lines))
    rows = rows_of(path)
    assert len(rows) == 1 + sum(bool(line.strip()) for line in lines)
    good = [row.value for row in rows[1:] if row.value is not None]
    assert all(piece in good for piece in pieces if isinstance(piece, dict))


@pytest.mark.slow
def test_a_line_of_200_megabytes_costs_one_row(tmp_path):
    """A sparse file: 200 MB of NUL bytes as one line, between two good ones."""
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as stream:
        stream.write(b'{"a": 1}\n')
        stream.seek(200_000_000, 1)
        stream.write(b'\n{"a": 2}\n')
    tracemalloc.start()
    rows = rows_of(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [row.value for row in rows] == [{"a": 1}, None, {"a": 2}]
    assert "longer than" in rows[1].fault
    assert peak < 64 << 20


def test_encodings_mixed_in_one_file_cost_their_rows_only(tmp_path):
    lines = ['{"a": "é"}'.encode(code) for code in ("utf-8", "latin-1", "utf-16-le", "utf-8")]
    rows = rows_of(write(tmp_path, b"\n".join(lines)))
    assert rows[0].value == rows[-1].value == {"a": "é"}
    assert all(row.fault for row in rows[1:-1])
