"""The header of a GGUF file, read by hand: metadata and tensor infos without a byte of weights.

Knows: the layout of versions 2 and 3 in both byte orders, the limits of a sound file, and what the usual keys mean.
Does not know: what can be trained (nothing: anatomy.py says so), or any other format (headers.py).
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; sizes of types: GGML_QUANT_SIZES of gguf-py 0.19.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from peftsmith import files
from peftsmith.errors import PeftsmithError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_TENSORS, MOST_KEYS = 200_000, 10_000
LONGEST_KEY, LONGEST_NAME, LONGEST_TEXT = 1 << 16, 1 << 10, 16 << 20
LARGEST_ARRAY, LARGEST_HEADER = 10_000_000, 256 << 20  # entries; bytes
_DEEPEST, _MOST_DIMENSIONS, _MOST_ELEMENTS = 4, 4, 1 << 48
_ALIGNMENT, _LARGEST_ALIGNMENT = 32, 1 << 20
_KEPT = 16  # entries of an array that are kept; its length always is
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# type: name, elements of a block, bytes of a block
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip


@dataclass(frozen=True)
class Array:
    """An array of the metadata: how long it is, and its first entries."""

    length: int
    first: tuple[Any, ...]


@dataclass(frozen=True)
class Info:
    """One tensor: `shape` as stored (fastest dimension first), `start` and `end` in bytes of the whole file."""

    type: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file declares. `size` in bytes of the whole file."""

    version: int
    metadata: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, Info] = field(repr=False)
    size: int


def read_file(path: Path) -> Header:
    """The header of a local GGUF file. Raises PeftsmithError for anything that a loader would refuse, and for sizes
    that no model has."""
    try:
        with path.open("rb") as stream:
            return _Reader(stream, path.stat().st_size, path.name).header()
    except OSError as error:
        raise PeftsmithError(
            f"{path.name} cannot be read: {error.strerror}", value=str(path), next_step="Check its permissions."
        ) from error


def summary(headers: Sequence[Header]) -> dict[str, Any]:
    """Architecture, name, sizes (None where the file does not say), parameters, bytes, and tensors by type. Of a split
    model the first part says what it is; the tensors of all parts are counted."""
    of = headers[0].metadata
    tensors = {name: info for header in headers for name, info in header.tensors.items()}
    kind = of.get("general.architecture")
    kind = files.clean(kind, 80) if isinstance(kind, str) else None

    def size(key: str) -> int | None:
        value = of.get(f"{kind}.{key}")
        if isinstance(value, Array):  # one entry a layer: the largest of those that were kept
            value = max((each for each in value.first if type(each) is int), default=None)
        return value if type(value) is int and 0 < value < 10**9 else None

    tokens = of.get("tokenizer.ggml.tokens")
    embedding = tensors.get("token_embd.weight")
    rows = embedding.shape[1] if embedding and len(embedding.shape) == 2 else None
    name = of.get("general.name")
    return {
        "version": headers[0].version,
        "architecture": kind,
        "name": files.clean(name, 200) if isinstance(name, str) else None,
        "layers": size("block_count"),
        "hidden": size("embedding_length"),
        "intermediate": size("feed_forward_length"),
        "heads": size("attention.head_count"),
        "kv_heads": size("attention.head_count_kv"),
        "head_dim": size("attention.key_length"),
        "vocab": rows or size("vocab_size") or (tokens.length if isinstance(tokens, Array) else None),
        "positions": size("context_length"),
        "parameters": sum(each.elements for each in tensors.values()),
        "bytes": sum(each.end - each.start for each in tensors.values()),
        "types": dict(Counter(each.type for each in tensors.values()).most_common()),
    }


class _Reader:
    """Reads forwards through one file, never past its end and never more than a header may hold."""

    def __init__(self, stream: BinaryIO, size: int, name: str) -> None:
        self.stream, self.size, self.name = stream, size, name
        self.position, self.order = 0, "<"

    def header(self) -> Header:
        if self.take(4, "magic") != MAGIC:
            self.refuse("it does not begin with GGUF")
        version = self.number("I")
        if version not in VERSIONS:
            self.order = ">"
            version = int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in VERSIONS:
            self.refuse("its version is none of " + ", ".join(map(str, VERSIONS)), version)
        tensors = self.count("tensors", MOST_TENSORS)
        keys = self.count("metadata keys", MOST_KEYS)
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self.text(LONGEST_KEY, "a metadata key")
            if key in metadata:
                self.refuse("a metadata key occurs twice", key)
            metadata[key] = self.value(self.number("I"), 0)
        infos = self.infos(tensors)
        begin = _up(self.position, self.alignment(metadata))
        return Header(version, metadata, self.placed(infos, begin, self.alignment(metadata)), self.size)

    def alignment(self, metadata: Mapping[str, Any]) -> int:
        value = metadata.get("general.alignment", _ALIGNMENT)
        if type(value) is not int or not 0 < value <= _LARGEST_ALIGNMENT or value % 8:
            self.refuse("its general.alignment is impossible", value)
        return int(value)

    def infos(self, count: int) -> dict[str, tuple[tuple[int, ...], int, int]]:
        found: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(count):
            key = self.text(LONGEST_NAME, "a tensor's name")
            if key in found:
                self.refuse("a tensor occurs twice", key)
            dimensions = self.number("I")
            if not 1 <= dimensions <= _MOST_DIMENSIONS:
                self.refuse(f"tensor {key[:200]!r} has an impossible number of dimensions", dimensions)
            shape = tuple(self.number("Q") for _ in range(dimensions))
            if any(each > _MOST_ELEMENTS for each in shape) or math.prod(shape) > _MOST_ELEMENTS:
                self.refuse(f"tensor {key[:200]!r} has an impossible shape", shape)
            found[key] = shape, self.number("I"), self.number("Q")
        return found

    def placed(
        self, infos: Mapping[str, tuple[tuple[int, ...], int, int]], begin: int, alignment: int
    ) -> dict[str, Info]:
        """The tensors with their places; each begins where the one before it ends, rounded up to the alignment."""
        found: dict[str, Info] = {}
        position = begin
        for key, (shape, kind, offset) in sorted(infos.items(), key=lambda item: item[1][2]):
            shown = key[:200]
            if kind not in TYPES:
                self.refuse(f"tensor {shown!r} has an unknown type", kind)
            name, block, each = TYPES[kind]
            if shape[0] % block:
                self.refuse(f"tensor {shown!r} of type {name} has rows that are no multiple of {block}", shape)
            if begin + offset != position:
                self.refuse(f"tensor {shown!r} does not begin where the one before it ends", offset)
            end = position + math.prod(shape) // block * each
            if end > self.size:
                self.refuse(f"tensor {shown!r} ends at byte {end} but the file has {self.size}: it is truncated", end)
            found[key] = Info(name, shape, position, end)
            position = _up(end, alignment)
        return {key: found[key] for key in infos}

    def value(self, kind: int, depth: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text(LONGEST_TEXT, "a text")
        if kind != _ARRAY:
            self.refuse("a metadata value has an unknown type", kind)
        if depth >= _DEEPEST:
            self.refuse(f"arrays are nested more than {_DEEPEST} deep")
        inner = self.number("I")
        length = self.count("entries of an array", LARGEST_ARRAY)
        if inner in _SCALARS:
            width = struct.calcsize(_SCALARS[inner])
            if length * width > self.size - self.position:
                self.refuse("an array is longer than the file", length)
            first = tuple(self.number(_SCALARS[inner]) for _ in range(min(length, _KEPT)))
            self.skip((length - len(first)) * width)
            return Array(length, first)
        kept = []
        for index in range(length):
            entry = self.value(inner, depth + 1)
            if index < _KEPT:
                kept.append(entry)
        return Array(length, tuple(kept))

    def text(self, longest: int, what: str) -> str:
        length = self.number("Q")
        if length > longest:
            self.refuse(f"{what} is longer than {longest} bytes", length)
        return self.take(length, what).decode("utf-8", errors="replace")

    def count(self, what: str, most: int) -> int:
        """A count, which cannot exceed what the rest of the file has bytes for."""
        value = int(self.number("Q"))
        if value > most or value > self.size - self.position:
            self.refuse(f"it claims {value} {what}", value)
        return value

    def number(self, code: str) -> Any:
        width = struct.calcsize(code)
        return struct.unpack(self.order + code, self.take(width, "a number"))[0]

    def take(self, length: int, what: str) -> bytes:
        self.advance(length)
        found = self.stream.read(length)
        if len(found) != length:
            self.refuse(f"it ends within {what}: it is truncated", self.position)
        return found

    def skip(self, length: int) -> None:
        self.advance(length)
        self.stream.seek(length, 1)

    def advance(self, length: int) -> None:
        self.position += length
        if self.position > self.size:
            self.refuse(f"it ends before its header does: it is truncated ({self.size} bytes)", self.size)
        if self.position > LARGEST_HEADER:
            self.refuse(f"its header is larger than {LARGEST_HEADER} bytes", self.position)

    def refuse(self, fault: str, value: object = None) -> NoReturn:
        raise PeftsmithError(
            f"{self.name} is not a sound GGUF file: {fault}",
            value=value,
            next_step="Fetch the file again; to train, give the model in the Hugging Face layout it was made from.",
        )


def _up(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
