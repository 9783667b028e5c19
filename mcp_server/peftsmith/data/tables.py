"""Rows out of Parquet files and Arrow files, batch by batch, as the plain values that JSON would give.

Knows: Parquet, Arrow's stream and file format, their limits, class names that `datasets` keeps in a schema.
Does not know: folders and other files (reading.py), or what a row means. Imports pyarrow only when such a file is read.

A file from elsewhere may lie: every Arrow batch is validated in full before a value is touched, nothing is mapped into
memory (a file that shrinks meanwhile would end the process), and a value that stands in a dictionary once is held once,
however often it is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from peftsmith import files
from peftsmith.data import row
from peftsmith.data.row import Row
from peftsmith.errors import PeftsmithError

PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
_BATCH_ROWS = 256
_BATCH_BYTES = 32 << 20
_MOST_EXPANDED = 1 << 30
_BUFFER = 1 << 20


def rows(path: Path, head: bytes) -> Iterator[Row]:
    """The rows of a Parquet or Arrow file by their place from 1 on, each of at most row.LONGEST_LINE characters.

    Nulls inside objects are left out (Arrow cannot tell them from absent keys). A row that cannot be read has a fault.
    Raises PeftsmithError for a file that is broken, encrypted, empty or has a column name twice.
    """
    number = 0
    with _explained(path):
        for batch in _batches(path, head):
            for value, fault in _rows_of(batch):
                number += 1
                yield Row(number, value, fault)
    if not number:
        raise _empty(path)


def lots(path: Path, head: bytes) -> Iterator[tuple[Literal["table", "values"], list[int], Any]]:
    """(kind, numbers, content) as lots.Lot has them: batches as Arrow streams, unless only `rows` can take them apart.

    A batch that is sent on is valid in full, and has neither dictionaries, which every stream would repeat, nor types
    from elsewhere.
    """
    arrow = _library()
    number = 0
    with _explained(path):
        for batch in _batches(path, head):
            numbers = list(range(number + 1, number + 1 + batch.num_rows))
            number += batch.num_rows
            if all(_is_plain(each.type) for each in batch.schema) and _is_valid(batch):
                sink = arrow.BufferOutputStream()
                with arrow.ipc.new_stream(sink, batch.schema) as stream:
                    stream.write_batch(batch)
                yield "table", numbers, sink.getvalue().to_pybytes()
            else:
                yield "values", numbers, list(_rows_of(batch))
    if not number:
        raise _empty(path)


def unpacked(stream: bytes) -> Iterator[tuple[dict[str, Any] | None, str | None]]:
    """(value, fault) of the rows of one of `lots`."""
    arrow = _library()
    with arrow.ipc.open_stream(stream) as opened:
        for batch in opened:
            yield from _rows_of(batch)


def _is_plain(kind: Any) -> bool:
    types = _library().types
    if types.is_dictionary(kind) or isinstance(kind, _library().BaseExtensionType):
        return False
    return all(_is_plain(kind.field(place).type) for place in range(kind.num_fields))


def _is_valid(batch: Any) -> bool:
    try:
        batch.validate(full=True)
    except (ValueError, OverflowError, ArithmeticError, NotImplementedError):
        return False
    return True


def _empty(path: Path) -> PeftsmithError:
    return PeftsmithError("The table has no rows", value=str(path), next_step="Put at least one row into it.")


def size(path: Path, head: bytes) -> int:
    """About how many bytes the rows of a file are when unpacked; what its own metadata say, unchecked."""
    if not head.startswith(PARQUET):
        return path.stat().st_size
    with _explained(path):
        metadata = _library().parquet.read_metadata(path)
        groups = (metadata.row_group(place) for place in range(metadata.num_row_groups))
        return max(path.stat().st_size, sum(int(group.total_byte_size) for group in groups))


def class_names(path: Path, head: bytes) -> dict[str, tuple[str, ...]]:
    """Column -> names of its whole numbers, as `datasets` writes them into the schema (ClassLabel)."""
    with _explained(path):
        metadata = _schema(path, head).metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        found = {column: _names(feature) for column, feature in features.items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}
    return {column: names for column, names in found.items() if names}


def _names(feature: Any) -> tuple[str, ...]:
    if isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    while isinstance(feature, dict) and "feature" in feature:
        feature = feature["feature"]
    names = feature.get("names") if isinstance(feature, dict) else None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _library() -> Any:
    try:
        pyarrow = import_module("pyarrow")
        import_module("pyarrow.ipc")
        import_module("pyarrow.parquet")
    except ImportError as error:
        raise PeftsmithError(
            "Parquet and Arrow files need pyarrow, which is not installed",
            next_step="Install it into peftsmith's environment, or convert the file to JSON lines.",
        ) from error
    return pyarrow


def _schema(path: Path, head: bytes) -> Any:
    arrow = _library()
    if head.startswith(PARQUET):
        return arrow.parquet.read_schema(path)
    with arrow.OSFile(str(path)) as stream:
        opened = arrow.ipc.open_file(stream) if head.startswith(ARROW_FILE) else arrow.ipc.open_stream(stream)
        return opened.schema


def _batches(path: Path, head: bytes) -> Iterator[Any]:
    arrow = _library()
    if head.startswith(PARQUET):
        with arrow.parquet.ParquetFile(
            path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True
        ) as plain:
            _check_names(plain.schema_arrow.names, path)
            shared = _expanding(plain.metadata)
            size = _batch_rows(plain.metadata)
            if not shared:
                yield from plain.iter_batches(size, use_threads=False)
                return
        with arrow.parquet.ParquetFile(
            path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True, read_dictionary=shared
        ) as careful:
            yield from careful.iter_batches(size, use_threads=False)
        return
    with arrow.OSFile(str(path)) as stream:
        if head.startswith(ARROW_FILE):
            opened = arrow.ipc.open_file(stream)
            whole: Iterator[Any] = (opened.get_batch(place) for place in range(opened.num_record_batches))
        else:
            opened = arrow.ipc.open_stream(stream)
            whole = iter(opened)
        _check_names(opened.schema.names, path)
        for batch in whole:
            batch.validate()
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield batch.slice(start, _BATCH_ROWS)


def _batch_rows(metadata: Any) -> int:
    groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
    widest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=0)
    return int(min(_BATCH_ROWS, max(1, _BATCH_BYTES // max(widest, 1))))


def _expanding(metadata: Any) -> list[str]:
    """Columns whose dictionary page is so large that a batch of plain values from it could fill the memory."""
    found = set()
    for place in range(metadata.num_row_groups):
        group = metadata.row_group(place)
        for each in range(group.num_columns):
            column = group.column(each)
            if column.physical_type != "BYTE_ARRAY" or column.dictionary_page_offset is None:
                continue
            packed = column.data_page_offset - column.dictionary_page_offset
            ratio = column.total_uncompressed_size / max(column.total_compressed_size, 1)
            if packed * ratio * _BATCH_ROWS > _MOST_EXPANDED:
                found.add(column.path_in_schema)
    return sorted(found)


def _check_names(names: list[str], path: Path) -> None:
    if len(set(names)) != len(names) or not names:
        raise PeftsmithError(
            "The table must have columns, and each name once", value=str(path), next_step="Rename its columns."
        )


def _rows_of(batch: Any) -> Iterator[tuple[dict[str, Any] | None, str | None]]:
    """(value, None) of each row, or (None, why there is none)."""
    longest = row.LONGEST_LINE
    try:
        batch.validate(full=True)
        columns = [_values(column) for column in batch.columns]
    except (ValueError, OverflowError, ArithmeticError, NotImplementedError) as error:
        if batch.num_rows == 1:
            yield None, f"not readable: {files.clean(str(error), 120)}"
            return
        for place in range(batch.num_rows):
            yield from _rows_of(batch.slice(place, 1))
        return
    small = batch.get_total_buffer_size() <= longest
    for value in _dicts(batch.schema.names, columns):
        if small or _characters(value) <= longest:
            yield value, None
        else:
            yield None, f"the row is longer than {longest >> 20} MiB"


def _values(column: Any) -> list[Any]:
    """A column as Python values: columns of objects are taken apart and put together again, which is several times as
    fast as asking for each value."""
    arrow = _library()
    kind = column.type
    if isinstance(column, arrow.ExtensionArray):
        return _values(column.storage)
    if arrow.types.is_dictionary(kind):
        held = _values(column.dictionary)
        return [None if place is None else held[place] for place in column.indices.to_pylist()]
    if arrow.types.is_struct(kind):
        return _objects(column)
    if arrow.types.is_map(kind):
        return [None if pairs is None else _object(pairs) for pairs in column.to_pylist()]
    if arrow.types.is_list(kind) or arrow.types.is_large_list(kind):
        start, *_ = offsets = column.offsets.to_pylist()
        held = _values(column.values.slice(start, offsets[-1] - start))
        lists = [held[first - start : last - start] for first, last in pairwise(offsets)]
        return _masked(lists, column)
    if arrow.types.is_temporal(kind) or arrow.types.is_decimal(kind):
        shown: list[Any] = column.cast(arrow.string()).to_pylist()
        return shown
    values: list[Any] = column.to_pylist()
    return values


def _dicts(names: list[str], columns: list[list[Any]]) -> Iterator[dict[str, Any]]:
    """One object a row; objects of one or two fields, which messages are, are made more than twice as fast."""
    match names:
        case [only]:
            return ({only: value} for value in columns[0])
        case [one, other]:
            return ({one: value, other: more} for value, more in zip(*columns, strict=True))
    return (dict(zip(names, values, strict=False)) for values in zip(*columns, strict=True))


def _objects(column: Any) -> list[Any]:
    names = [column.type.field(place).name for place in range(column.type.num_fields)]
    # flatten() gives the fields their object's own nulls and its slice of the values
    fields = [_values(field) for field in column.flatten()]
    if not names:
        return _masked([{} for _ in range(len(column))], column)
    if any(field.null_count for field in column.flatten()):
        made = [
            {name: value for name, value in zip(names, values, strict=True) if value is not None}
            for values in zip(*fields, strict=True)
        ]
    else:
        made = list(_dicts(names, fields))
    return _masked(made, column)


def _object(pairs: Any) -> Any:
    pairs = list(pairs.items()) if isinstance(pairs, dict) else pairs
    return dict(pairs) if all(isinstance(key, str) for key, _ in pairs) else [list(pair) for pair in pairs]


def _masked(values: list[Any], column: Any) -> list[Any]:
    if not column.null_count:
        return values
    present = column.is_valid().to_pylist()
    return [value if there else None for value, there in zip(values, present, strict=True)]


def _characters(value: Any) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, (list, tuple)) else 8


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What pyarrow raises (ValueError, OSError, TypeError, MemoryError and its own kinds) as a PeftsmithError."""
    try:
        yield
    except PeftsmithError:
        raise
    except (ValueError, OSError, TypeError, KeyError, NotImplementedError, RecursionError, MemoryError) as error:
        raise PeftsmithError(
            f"The table cannot be read ({type(error).__name__}: {files.clean(str(error), 200)})",
            value=str(path),
            next_step="Fetch or write the file again; with pyarrow, read and write it once to repair it.",
        ) from error
