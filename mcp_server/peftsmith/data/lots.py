"""Rows in lots as they stand in a file, so that whoever looks at them can also parse them, in another process too.

Knows: lines of JSON, batches of tables, and rows that were read already, as values that marshal takes.
Does not know: what a row means. A lot holds at most 512 rows, and about 1 MiB unless one row is larger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from peftsmith.data import reading, tables, text_files
from peftsmith.data.row import Row

_ROWS, _BYTES = 512, 1 << 20


class Lot(NamedTuple):
    """`content` is a list of lines (None for one that is too long), one of (value, fault), or an Arrow stream."""

    kind: Literal["lines", "values", "table"]
    numbers: list[int]
    content: Any

    def rows(self) -> list[Row]:
        if self.kind == "lines":
            return list(map(text_files.json_row, self.numbers, self.content))
        if self.kind == "table":
            values: Iterable[tuple[Any, str | None]] = tables.unpacked(self.content)
        else:
            values = self.content
        return [Row(number, value, fault) for number, (value, fault) in zip(self.numbers, values, strict=True)]


def lots(path: Path) -> Iterator[Lot]:
    """What reading.read_rows reads, with the same numbers and errors; files are opened one after the other."""
    parts = reading.sources(path)
    if len(parts) == 1:
        yield from _of_file(parts[0])
        return
    number = 0
    for part in parts:
        for lot in _of_file(part):
            yield lot._replace(numbers=list(range(number + 1, number + 1 + len(lot.numbers))))
            number += len(lot.numbers)


def size(path: Path) -> int:
    """About how many bytes of rows a file or folder holds."""
    total = 0
    for part in reading.sources(path):
        kind, head = reading.kind_of(part)
        total += tables.size(part, head) if kind == "table" else part.stat().st_size
    return total


def _of_file(path: Path) -> Iterator[Lot]:
    kind, head = reading.kind_of(path)
    if kind == "lines":
        return _gathered("lines", text_files.filled_lines(path), lambda line: len(line or b""))
    if kind == "table":
        return (Lot(*each) for each in tables.lots(path, head))
    rows = ((row.number, (row.value, row.fault)) for row in reading.read_rows(path))
    return _gathered("values", rows, lambda _: 0)


def _gathered(
    kind: Literal["lines", "values"], items: Iterable[tuple[int, Any]], size: Callable[[Any], int]
) -> Iterator[Lot]:
    numbers: list[int] = []
    content: list[Any] = []
    held = 0
    for number, item in items:
        numbers.append(number)
        content.append(item)
        held += size(item)
        if len(numbers) >= _ROWS or held >= _BYTES:
            yield Lot(kind, numbers, content)
            numbers, content, held = [], [], 0
    if numbers:
        yield Lot(kind, numbers, content)
