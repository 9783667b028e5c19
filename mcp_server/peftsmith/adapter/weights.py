"""What the bytes of stored tensors say: all zero, or not finite. No torch, no numpy, one chunk at a time.

Knows: how the float types lay their exponent out; an all-ones exponent is NaN or infinity (IEEE 754).
Does not know: what a tensor is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peftsmith.model.headers import Tensor

_CHUNK = 1 << 20
_ZEROS = bytes(_CHUNK)


def _ones_where(mask: int) -> bytes:
    """A table for bytes.translate: 1 for bytes that have all bits of `mask`, else 0."""
    return bytes(int(byte & mask == mask) for byte in range(256))


# type -> bytes of one element, tables for the exponent's bits in its highest and second highest byte
_EXPONENT = {
    "F64": (8, _ones_where(0x7F), _ones_where(0xF0)),
    "F32": (4, _ones_where(0x7F), _ones_where(0x80)),
    "BF16": (2, _ones_where(0x7F), _ones_where(0x80)),
    "F16": (2, _ones_where(0x7C), _ones_where(0x00)),
}


@dataclass(frozen=True)
class Content:
    """`not_finite` counts NaN and infinite elements; None for types in which that was not looked for."""

    zero: bool
    not_finite: int | None


def look(folder: Path, tensor: Tensor) -> Content:
    """Read one tensor through. A float32 minus zero counts as not zero, as no initialisation writes it."""
    layout = _EXPONENT.get(tensor.dtype)
    zero, bad = True, 0
    with (folder / tensor.file).open("rb") as stream:
        stream.seek(tensor.start)
        left = tensor.end - tensor.start
        while left:
            chunk = stream.read(min(left, _CHUNK))
            if not chunk:
                raise OSError(f"{tensor.file} became shorter while it was read")
            left -= len(chunk)
            zero = zero and chunk == _ZEROS[: len(chunk)]
            if layout and not zero:
                bad += _not_finite(chunk, *layout)
    return Content(zero, bad if layout else None)


def is_zero(folder: Path, tensor: Tensor) -> bool:
    """True when every byte is 0; reads no further than the first chunk that is not."""
    with (folder / tensor.file).open("rb") as stream:
        stream.seek(tensor.start)
        left = tensor.end - tensor.start
        while left:
            chunk = stream.read(min(left, _CHUNK))
            if not chunk or chunk != _ZEROS[: len(chunk)]:
                return False
            left -= len(chunk)
    return True


def _not_finite(chunk: bytes, width: int, high: bytes, second: bytes) -> int:
    """Little-endian elements whose exponent is all ones. Works on whole chunks: no Python loop over elements."""
    marks = chunk[width - 1 :: width].translate(high)
    if 1 not in marks:
        return 0
    others = chunk[width - 2 :: width].translate(second)
    return (int.from_bytes(marks, "little") & int.from_bytes(others, "little")).bit_count()
