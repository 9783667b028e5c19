"""Safetensors headers: real ones are read, hostile and broken ones are refused with what to do."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftsmith.errors import PeftsmithError
from peftsmith.model import headers


def file_of(header: object, body: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def read(tmp_path, content: bytes):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return headers.read_file(path)


def entry(begin: int, end: int, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_reads_names_types_shapes_and_where_the_bytes_lie(tmp_path):
    content = file_of({"__metadata__": {"format": "pt"}, "b": entry(8, 12, (2,), "BF16"), "a": entry(0, 8)}, b"x" * 12)
    tensors = read(tmp_path, content)
    assert tensors["a"].shape == (2,) and tensors["a"].dtype == "F32"
    assert content[tensors["b"].start : tensors["b"].end] == b"xxxx"
    assert tensors["b"].elements == 2 and tensors["b"].size == 4


def test_an_empty_tensor_and_a_scalar_are_fine(tmp_path):
    tensors = read(tmp_path, file_of({"none": entry(0, 0, (0, 5)), "one": entry(0, 4, ())}, b"abcd"))
    assert tensors["none"].elements == 0 and tensors["one"].elements == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "only 0 bytes"),
        (b"\x01\x02", "only 2 bytes"),
        (file_of({}, length=1 << 60), "claims 1152921504606846976 bytes"),
        (file_of({}, length=headers.LARGEST_HEADER + 1), "more than the 100000000"),
        (file_of({"a": entry(0, 8)}, length=5000), "truncated"),
        (file_of({"a": entry(0, 8)}, b"1234"), "truncated"),
        (file_of({"a": entry(0, 8)}, b"123456789"), "1 bytes follow"),
        (file_of({"a": entry(0, 8), "b": entry(4, 12)}, b"x" * 12), "overlaps"),
        (file_of({"a": entry(0, 8), "b": entry(12, 20)}, b"x" * 20), "gap"),
        (file_of({"a": entry(4, 12)}, b"x" * 12), "gap"),
        (file_of({"a": entry(8, 0)}, b"x" * 8), "impossible offsets"),
        (file_of({"a": entry(0, -8)}, b"x" * 8), "impossible offsets"),
        (file_of({"a": entry(0, 1 << 62, (1 << 60,))}, b""), "impossible shape"),
        (file_of({"a": entry(0, 8, (-2,))}, b"x" * 8), "impossible shape"),
        (file_of({"a": entry(0, 8, (True, 2))}, b"x" * 8), "impossible shape"),
        (file_of({"a": entry(0, 8, (3,))}, b"x" * 8), "needs 12 bytes"),
        (file_of({"a": entry(0, 8, (2,), "F31")}, b"x" * 8), "unknown type"),
        (file_of({"a": {"dtype": "F32"}}), "lacks dtype, shape or data_offsets"),
        (file_of({"a": 3}), "lacks dtype"),
        (file_of([1]), "not a JSON object"),
        (file_of(b"{" * 200_000), "not valid JSON"),
        (file_of(b'{"a":1,"a":2}'), "occurs twice"),
        (file_of(b"\xff\xfe{}"), "not valid JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
    ],
)
def test_refuses_what_a_loader_would_refuse(tmp_path, content, said):
    with pytest.raises(PeftsmithError) as caught:
        read(tmp_path, content)
    assert said in str(caught.value)
    assert "etch" in caught.value.next_step or "git lfs" in caught.value.next_step


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 1 << 62))
def test_any_bytes_are_read_or_refused_and_nothing_else(content, size):
    try:
        length = headers.header_length(content[:8], size, "x")
        headers.parse(content[8 : 8 + length], size, "x")
    except PeftsmithError as error:
        assert error.next_step


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
bodies = st.fixed_dictionaries(
    {"dtype": json_values | st.just("F32"), "shape": json_values, "data_offsets": json_values}
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=8), bodies | json_values, max_size=4), st.integers(0, 1 << 40))
def test_any_header_is_read_or_refused_and_nothing_else(header, extra):
    text = json.dumps(header).encode()
    try:
        tensors = headers.parse(text, 8 + len(text) + extra, "x")
    except PeftsmithError as error:
        assert error.next_step
    else:
        assert sum(each.size for each in tensors.values()) == extra
