"""The header of a safetensors file, read by hand: names, types and shapes of tensors without a byte of weights.

Knows: the safetensors layout (8 bytes length, JSON, tensors without gap or overlap), its limits, and a file's faults.
Does not know: where the bytes come from (source.py), or what a tensor is for (anatomy.py).
Layout and limits: https://github.com/huggingface/safetensors#format and its reference reader.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from peftsmith.errors import PeftsmithError

PREFIX = 8
LARGEST_HEADER = 100_000_000  # bytes; the reference reader refuses more
_MOST_DIMENSIONS = 32
_LARGEST_DIMENSION = 1 << 48

# bits of one element
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One stored tensor. `start` and `end` are byte offsets in the whole file `file` (a bare file name)."""

    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int = 0
    end: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return -(-self.elements * BITS[self.dtype] // 8)


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a local safetensors file, by name. Raises PeftsmithError for anything a loader would refuse."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = header_length(stream.read(PREFIX), size, path.name)
            return parse(stream.read(length), size, path.name)
    except FileNotFoundError as error:
        raise PeftsmithError("A weight file is missing", value=str(path), next_step="Fetch the model again.") from error
    except OSError as error:
        raise PeftsmithError(
            f"{path.name} cannot be read: {error.strerror}", value=str(path), next_step="Check its permissions."
        ) from error


def header_length(prefix: bytes, size: int, name: str) -> int:
    """Bytes of JSON that follow the 8-byte `prefix` of a file of `size` bytes."""
    if len(prefix) < PREFIX:
        _refuse(name, f"it is only {len(prefix)} bytes long", size)
    length = int.from_bytes(prefix, "little")
    if prefix.startswith(b"version "):
        raise PeftsmithError(
            f"{name} is a Git LFS pointer, not the weights",
            next_step="Run `git lfs pull` in the folder, or fetch the model again.",
        )
    if length > LARGEST_HEADER:
        _refuse(name, f"its header claims {length} bytes, more than the {LARGEST_HEADER} that loaders accept", length)
    if PREFIX + length > size:
        _refuse(name, f"its header claims {length} bytes but the file has {size}: it is truncated", length)
    return length


def parse(header: bytes, size: int, name: str) -> dict[str, Tensor]:
    """The tensors that `header` (the JSON, without its length prefix) declares for a file of `size` bytes."""
    begin = PREFIX + len(header)
    entries = _entries(header, name)
    tensors = {key: _tensor(key, body, begin, name) for key, body in entries.items()}
    position = begin
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != position:
            fault = "overlaps the one before it" if tensor.start < position else "leaves a gap before it"
            _refuse(name, f"tensor {key[:200]!r} {fault}", [tensor.start - begin, tensor.end - begin])
        position = tensor.end
    if position > size:
        _refuse(name, f"its tensors need {position} bytes but the file has {size}: it is truncated", size)
    if position < size:
        _refuse(name, f"{size - position} bytes follow its last tensor", size)
    return tensors


def _entries(header: bytes, name: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name occurs twice")
        return found

    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        _refuse(name, f"its header is not valid JSON ({error})", header[:40], error)
    if not isinstance(entries, dict):
        _refuse(name, "its header is not a JSON object", type(entries).__name__)
    entries.pop("__metadata__", None)
    return entries


def _tensor(key: str, body: Any, begin: int, name: str) -> Tensor:
    shown = key[:200]
    if not isinstance(body, dict) or not {"dtype", "shape", "data_offsets"} <= body.keys():
        _refuse(name, f"tensor {shown!r} lacks dtype, shape or data_offsets", body)
    dtype, shape, offsets = body["dtype"], body["shape"], body["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        _refuse(name, f"tensor {shown!r} has an unknown type", dtype)
    if (
        not isinstance(shape, list)
        or len(shape) > _MOST_DIMENSIONS
        or not all(type(n) is int and 0 <= n <= _LARGEST_DIMENSION for n in shape)
    ):
        _refuse(name, f"tensor {shown!r} has an impossible shape", shape)
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(n) is int and n >= 0 for n in offsets)
        or offsets[0] > offsets[1]
    ):
        _refuse(name, f"tensor {shown!r} has impossible offsets", offsets)
    tensor = Tensor(dtype, tuple(shape), name, begin + offsets[0], begin + offsets[1])
    if tensor.size != offsets[1] - offsets[0]:
        _refuse(name, f"tensor {shown!r} needs {tensor.size} bytes but its offsets span another size", offsets)
    return tensor


def _refuse(name: str, fault: str, value: object, cause: BaseException | None = None) -> NoReturn:
    raise PeftsmithError(
        f"{name} is not a sound safetensors file: {fault}",
        value=value,
        next_step="Fetch the file again (delete it first); if it stays so, take another copy of the model.",
    ) from cause
