"""GGUF headers: hand-made files are read, hostile and broken ones are refused with what to do."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftsmith.errors import PeftsmithError
from peftsmith.model import anatomy, gguf

HUGE = 1 << 60


def text(value: str, order: str = "<") -> bytes:
    raw = value.encode()
    return struct.pack(order + "Q", len(raw)) + raw


def value(of: object, order: str = "<") -> bytes:
    """Type and body of a metadata value: int as UINT32, str, float as FLOAT32, list as an array of its first's type."""
    if isinstance(of, list):
        body = b"".join(value(each, order)[4:] for each in of)
        return struct.pack(order + "I", 9) + value(of[0], order)[:4] + struct.pack(order + "Q", len(of)) + body
    if isinstance(of, str):
        return struct.pack(order + "I", 8) + text(of, order)
    code, kind = ("f", 6) if isinstance(of, float) else ("I", 4)
    return struct.pack(order + "I" + code, kind, of)


def file_of(
    metadata: dict[str, object], tensors: dict[str, tuple[tuple[int, ...], int]], *, version: int = 3, order: str = "<"
) -> bytes:
    """A sound file: `tensors` maps names to (shape, type); their bytes are zeros."""
    head = b"GGUF" + struct.pack(order + "IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key, order) + value(of, order) for key, of in metadata.items())
    offset, body = 0, b""
    for name, (shape, kind) in tensors.items():
        _, block, size = gguf.TYPES[kind]
        elements = 1
        for each in shape:
            elements *= each
        head += text(name, order) + struct.pack(order + f"I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        part = b"\0" * (elements // block * size)
        body += part + b"\0" * (-len(part) % 32)
        offset = len(body)
    return head + b"\0" * (-len(head) % 32) + body


METADATA: dict[str, object] = {
    "general.architecture": "llama", "general.name": "Tiny", "llama.block_count": 2, "llama.embedding_length": 64,
    "llama.feed_forward_length": 128, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
    "llama.context_length": 512, "llama.rope.freq_base": 10000.0, "tokenizer.ggml.tokens": ["a", "b", "c"] * 10,
}  # fmt: skip
TENSORS = {"token_embd.weight": ((64, 32), 1), "blk.0.attn_q.weight": ((64, 64), 2), "output_norm.weight": ((64,), 0)}
SOUND = file_of(METADATA, TENSORS)


def read(tmp_path, content: bytes) -> gguf.Header:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return gguf.read_file(path)


@pytest.mark.parametrize(("version", "order"), [(2, "<"), (3, "<"), (3, ">")])
def test_a_header_says_what_the_model_is(tmp_path, version, order):
    header = read(tmp_path, file_of(METADATA, TENSORS, version=version, order=order))
    found = gguf.summary([header])
    assert found["architecture"] == "llama" and found["name"] == "Tiny" and found["version"] == version
    sizes = {name: found[name] for name in ("layers", "hidden", "intermediate", "heads", "kv_heads", "vocab")}
    assert sizes == {"layers": 2, "hidden": 64, "intermediate": 128, "heads": 4, "kv_heads": 2, "vocab": 32}
    assert found["parameters"] == 64 * 32 + 64 * 64 + 64
    assert found["bytes"] == 2 * 64 * 32 + 64 * 64 // 32 * 18 + 4 * 64
    assert found["types"] == {"F16": 1, "Q4_0": 1, "F32": 1}
    assert header.metadata["tokenizer.ggml.tokens"] == gguf.Array(30, tuple("abc" * 5 + "a"))


def test_the_real_writer_agrees(tmp_path, training_python):
    import subprocess

    path = tmp_path / "real.gguf"
    code = (
        "import sys, numpy, gguf\n"
        "w = gguf.GGUFWriter(sys.argv[1], 'qwen2'); w.add_block_count(3); w.add_embedding_length(32)\n"
        "w.add_head_count_kv([2, 1, 2]); w.add_token_list(['x', 'y'])\n"
        "w.add_tensor('token_embd.weight', numpy.zeros((5, 32), numpy.float16))\n"
        "w.add_tensor('output_norm.weight', numpy.zeros(32, numpy.float32))\n"
        "w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()\n"
    )
    subprocess.run([training_python, "-c", code, str(path)], check=True, timeout=60)
    found = gguf.summary([gguf.read_file(path)])
    assert (found["architecture"], found["layers"], found["kv_heads"], found["vocab"]) == ("qwen2", 3, 2, 5)
    assert found["parameters"] == 5 * 32 + 32 and found["types"] == {"F16": 1, "F32": 1}


def test_a_folder_with_nothing_else_is_described(tmp_path):
    (tmp_path / "model-q4.gguf").write_bytes(SOUND)
    body = anatomy.inspect(str(tmp_path))
    assert (body.model_type, body.layers, body.hidden, body.heads, body.vocab) == ("llama", 2, 64, 4, 32)
    assert body.parameters == 6208 and body.quantization == "gguf" and not body.supported
    ids = {each.id: each for each in body.findings}
    assert ids["model.weights.gguf_only"].severity == "error" and "model.architecture.unsupported" not in ids
    assert ids["model.weights.gguf_only"].evidence["types"] == {"F16": 1, "Q4_0": 1, "F32": 1}


def test_the_parts_of_a_split_model_are_counted_together(tmp_path):
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(SOUND)
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(file_of({"split.no": 1}, {"output.weight": ((64, 32), 0)}))
    assert anatomy.inspect(str(tmp_path)).parameters == 6208 + 64 * 32


def header_of(tensors: int, keys: int, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body


def one_tensor(shape: tuple[int, ...], kind: int = 0, offset: int = 0, dimensions: int | None = None) -> bytes:
    count = len(shape) if dimensions is None else dimensions
    return text("t") + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset) + b"\0" * 256


nested = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 20 + struct.pack("<IQ", 4, 0)
HOSTILE = {
    "nothing": b"",
    "other": b"GGML" + b"\0" * 60,
    "version 1": header_of(0, 0, version=1),
    "tensors": header_of(HUGE, 0),
    "keys": header_of(0, HUGE),
    "key length": header_of(0, 1, struct.pack("<Q", HUGE) + b"x" * 64),
    "text length": header_of(0, 1, text("k") + struct.pack("<IQ", 8, HUGE) + b"x" * 64),
    "numbers": header_of(0, 1, text("k") + struct.pack("<IIQ", 9, 4, HUGE) + b"x" * 64),
    "numbers past the end": header_of(0, 1, text("k") + struct.pack("<IIQ", 9, 4, 60) + b"x" * 64),
    "texts": header_of(0, 1, text("k") + struct.pack("<IIQ", 9, 8, HUGE) + b"x" * 64),
    "nesting": header_of(0, 1, text("k") + nested + b"x" * 64),
    "value type": header_of(0, 1, text("k") + struct.pack("<I", 99) + b"x" * 64),
    "twice": header_of(0, 2, (text("k") + value(1)) * 2),
    "alignment": header_of(0, 1, text("general.alignment") + value(0)),
    "alignment type": header_of(0, 1, text("general.alignment") + value("32")),
    "no dimensions": header_of(1, 0, one_tensor((), dimensions=0)),
    "dimensions": header_of(1, 0, one_tensor((1, 1), dimensions=HUGE >> 30)),
    "shape": header_of(1, 0, one_tensor((HUGE, HUGE))),
    "shape past the end": header_of(1, 0, one_tensor((1 << 40,))),
    "type": header_of(1, 0, one_tensor((32,), kind=77)),
    "rows": header_of(1, 0, one_tensor((33,), kind=2)),
    "offset": header_of(1, 0, one_tensor((32,), offset=HUGE)),
    "tensor twice": header_of(2, 0, one_tensor((32,))[:-256] * 2 + b"\0" * 512),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(tmp_path, name):
    with pytest.raises(PeftsmithError, match="not a sound GGUF file") as caught:
        read(tmp_path, HOSTILE[name])
    assert "Fetch" in caught.value.next_step


def test_every_truncation_is_refused(tmp_path):
    for length in range(0, len(SOUND) - 32, 7):
        with pytest.raises(PeftsmithError):
            read(tmp_path, SOUND[:length])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, len(SOUND) - 9), st.sampled_from([HUGE, (1 << 64) - 1, 1 << 31, 0, 1]) | st.integers(0, 1 << 64 - 1)
)
def test_any_eight_bytes_changed_are_read_or_refused(tmp_path, place, number):
    content = SOUND[:place] + struct.pack("<Q", number) + SOUND[place + 8 :]
    try:
        header = read(tmp_path, content)
    except PeftsmithError as error:
        assert error.next_step
    else:
        assert gguf.summary([header])["parameters"] >= 0


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_read(tmp_path, tail):
    try:
        read(tmp_path, b"GGUF" + tail)
    except PeftsmithError as error:
        assert error.next_step


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(PeftsmithError, match="cannot be read"):
        gguf.read_file(tmp_path / "none.gguf")
