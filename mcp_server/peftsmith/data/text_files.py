"""Rows out of text files: JSON lines, JSON arrays and CSV.

Knows: lines and their limits, broken JSON and CSV row by row, delimiters, byte order marks.
Does not know: which kind of file it is handed (reading.py), or what a row means.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from peftsmith.data import row
from peftsmith.data.row import Row
from peftsmith.errors import PeftsmithError

LARGEST_ARRAY = 128 << 20
LONGEST_FIELD = 4 << 20
_DELIMITERS = ",;\t|"
BOM = b"\xef\xbb\xbf"


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """(line number, line with its end); None for a line longer than row.LONGEST_LINE, which is skipped unread."""
    number = 0
    while line := stream.readline(row.LONGEST_LINE + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(BOM)
        if len(line) <= row.LONGEST_LINE or line.endswith(b"\n"):
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(1 << 20)
        yield number, None


def _too_long() -> str:
    return f"the line is longer than {row.LONGEST_LINE >> 20} MiB"


def json_lines(path: Path) -> Iterator[Row]:
    return (json_row(number, line) for number, line in filled_lines(path))


def filled_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """(line number, line) of a file's lines that are not blank; None for one that is too long."""
    with path.open("rb") as stream:
        for number, line in _lines(stream):
            if line is None or not line.isspace():
                yield number, line


def holds_array(path: Path) -> bool:
    """Whether a file that begins with [ is one array of rows, and not lines of which the first is no object.

    Only an array goes on behind an opening bracket or a comma; nothing stands behind a whole one.
    """
    lines = [line for _, line in islice(filled_lines(path), 2)]
    if len(lines) < 2 or lines[0] is None or lines[1] is None:
        return True
    first, second = lines[0].strip(), lines[1].strip()
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return not second.startswith(b"{") or first.endswith((b"[", b",", b":"))
    return False


def json_row(number: int, line: bytes | None) -> Row:
    """The row in one of filled_lines."""
    if line is None:
        return Row(number, None, _too_long())
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


def array_rows(path: Path) -> Iterator[Row]:
    size = path.stat().st_size
    if size > LARGEST_ARRAY:
        raise PeftsmithError(
            f"The JSON array is {size} bytes, more than the {LARGEST_ARRAY} that are read at once",
            value=str(path),
            next_step="Write it as JSON lines (one object a line); those are streamed at any size.",
        )
    try:
        values = json.loads(path.read_bytes().removeprefix(BOM).decode("utf-8"))
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


def csv_rows(path: Path) -> Iterator[Row]:
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
