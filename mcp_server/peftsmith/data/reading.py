"""Rows out of a file, one at a time, whatever the file really holds.

Knows: JSON lines, JSON arrays and CSV; byte order marks, line ends, size limits, and files that are something else.
Does not know: what a row means.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from peftsmith import files
from peftsmith.errors import PeftsmithError

LONGEST_LINE = 16 << 20
LARGEST_ARRAY = 128 << 20
LONGEST_FIELD = 4 << 20
_CSV_SUFFIXES = (".csv", ".tsv")
_DELIMITERS = ",;\t|"
_BOM = b"\xef\xbb\xbf"
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "a zip archive"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
    *((b"\x80" + bytes([version]), "a pickle, which peftsmith never opens") for version in range(1, 6)),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row: `number` is its line (JSON lines, CSV: where it starts) or its place in the array, from 1 on.

    Exactly one of `value` and `fault` is set; `fault` says why the row could not be read.
    """

    number: int
    value: dict[str, Any] | None
    fault: str | None = None


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a .csv/.tsv file, a JSON array or a JSON lines file, with one row in memory at a time.

    Blank lines are no rows. A row that cannot be read is yielded with its fault, so that nothing is lost in silence.
    A JSON array is read whole (at most LARGEST_ARRAY bytes). Raises PeftsmithError for a file that is missing, empty,
    unreadable, or of another kind.
    """
    head = _head(path)
    if path.suffix.lower() in _CSV_SUFFIXES:
        return _csv_rows(path)
    if head.removeprefix(_BOM).lstrip()[:1] == b"[":
        return _array_rows(path)
    return _json_lines(path)


def fingerprint(path: Path) -> str:
    """sha256 of a file; "" for what is no file (read_rows says what is wrong with it)."""
    return files.sha256_file(path) if path.is_file() else ""


def _head(path: Path) -> bytes:
    """The first bytes, after it is clear that this is a regular, readable, non-empty text file."""
    if not path.exists():
        raise PeftsmithError("The data file is missing", value=str(path), next_step="Check the path.")
    if not path.is_file():
        raise PeftsmithError(
            "The data must be one file, not a folder or a device", value=str(path), next_step="Name the file itself."
        )
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
            while head and not head.removeprefix(_BOM).strip() and len(head) < LONGEST_LINE:
                more = stream.read(1 << 16)
                if not more:
                    break
                head += more
    except OSError as error:
        raise PeftsmithError(
            f"The data file cannot be read: {error.strerror}", value=str(path), next_step="Check its permissions."
        ) from error
    if not head.removeprefix(_BOM).strip():
        raise PeftsmithError("The data file is empty", value=str(path), next_step="Put at least one row into it.")
    for magic, name in _FOREIGN:
        if head.startswith(magic):
            raise PeftsmithError(
                f"The file is {name}, not JSON lines, a JSON array or CSV in UTF-8",
                value=str(path),
                next_step="Convert it to JSON lines in UTF-8 (one object a line).",
            )
    return head


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """(line number, line with its end); None instead of a line longer than LONGEST_LINE, which is skipped unread."""
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(_BOM)
        if len(line) <= LONGEST_LINE or line.endswith(b"\n"):
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(1 << 20)
        yield number, None


def _too_long() -> str:
    return f"the line is longer than {LONGEST_LINE >> 20} MiB"


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as stream:
        for number, line in _lines(stream):
            if line is None:
                yield Row(number, None, _too_long())
            elif not line.isspace():
                yield _json_row(number, line)


def _json_row(number: int, line: bytes) -> Row:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return Row(number, None, f"not UTF-8 at byte {error.start} of the line")
    try:
        return _object(number, json.loads(text))
    except json.JSONDecodeError as error:
        return Row(number, None, f"not JSON: {error.msg} at character {error.pos + 1}")
    except RecursionError:
        return Row(number, None, "nested too deeply")
    except ValueError as error:
        return Row(number, None, f"not usable JSON: {error}")


def _object(number: int, value: object) -> Row:
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}.get(type(value), "a number")
        return Row(number, None, f"{kind} instead of an object")
    return Row(number, value)


def _array_rows(path: Path) -> Iterator[Row]:
    size = path.stat().st_size
    if size > LARGEST_ARRAY:
        raise PeftsmithError(
            f"The JSON array is {size} bytes, more than the {LARGEST_ARRAY} that are read at once",
            value=str(path),
            next_step="Write it as JSON lines (one object a line); those are streamed at any size.",
        )
    try:
        values = json.loads(path.read_bytes().removeprefix(_BOM).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise PeftsmithError(
            f"The JSON array is not UTF-8 (byte {error.start})", value=str(path), next_step="Save it as UTF-8."
        ) from error
    except (ValueError, RecursionError) as error:
        first = str(error) or "nested too deeply"
        raise PeftsmithError(
            f"The JSON array cannot be parsed: {first}",
            value=str(path),
            next_step="Repair it, or write one object a line: then only the broken rows are lost.",
        ) from error
    if not values:
        raise PeftsmithError("The JSON array has no rows", value=str(path), next_step="Put at least one row into it.")
    for number, value in enumerate(values, start=1):
        yield _object(number, value)


class _CsvLines:
    """Text lines for the csv module. Bytes that are not UTF-8 become lone surrogates; overlong lines are remembered."""

    def __init__(self, stream: BinaryIO) -> None:
        self._lines = _lines(stream)
        self.overlong = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        _, line = next(self._lines)
        if line is None:
            self.overlong = True
            return "\n"
        return line.decode("utf-8", errors="surrogateescape")


def _csv_rows(path: Path) -> Iterator[Row]:
    # The limit is process-wide in the csv module and 128 KiB at first, less than one long document.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    with path.open("rb") as stream:
        lines = _CsvLines(stream)
        reader = csv.reader(lines, delimiter=_delimiter(path), strict=True)
        header = _csv_header(reader, path)
        while True:
            start, lines.overlong = reader.line_num + 1, False
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(start, None, f"not CSV: {error}")
                continue
            if lines.overlong:
                yield Row(start, None, _too_long())
            elif fields:
                yield _csv_row(start, header, fields)


def _csv_row(number: int, header: list[str], fields: list[str]) -> Row:
    if len(fields) != len(header):
        return Row(number, None, f"{len(fields)} fields under a header of {len(header)}")
    if any("\udc80" <= c <= "\udcff" for field in fields if not field.isascii() for c in field):
        return Row(number, None, "not UTF-8")
    return Row(number, dict(zip(header, fields, strict=True)))


def _csv_header(reader: Iterator[list[str]], path: Path) -> list[str]:
    try:
        header = [name.strip() for name in next((fields for fields in reader if fields), [])]
    except csv.Error as error:
        raise PeftsmithError(
            f"The CSV header cannot be read: {error}", value=str(path), next_step="Repair line 1."
        ) from error
    if not header or "" in header or len(set(header)) != len(header):
        raise PeftsmithError(
            "The first CSV line must name every column, each name once",
            value=header,
            next_step="Add a header line such as text,label.",
        )
    return header


def _delimiter(path: Path) -> str:
    """The delimiter that stands most often in the header line, outside of quotes."""
    with path.open("rb") as stream:
        _, line = next(_lines(stream))
    outside = (line or b"").decode("utf-8", errors="replace").split('"')[::2]
    return max(_DELIMITERS, key=lambda delimiter: sum(part.count(delimiter) for part in outside))
