"""Rows out of a file or folder, one at a time, whatever it really holds.

Knows: telling kinds of files by their first bytes, folders of `datasets` and of shards, files that are something else.
Does not know: how rows stand in a file (text_files.py, tables.py), or what a row means.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from peftsmith import files
from peftsmith.data import row as limits
from peftsmith.data import text_files
from peftsmith.data.row import Row
from peftsmith.data.text_files import BOM
from peftsmith.errors import PeftsmithError

__all__ = ["SUFFIXES", "Row", "class_names", "fingerprint", "read_rows", "sources"]

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
_CSV_SUFFIXES = (".csv", ".tsv")
_TABLE_SUFFIXES = (".parquet", ".arrow")
_MOST_SHARDS = 10_000
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "a zip archive"),
    (b"PARE", "an encrypted Parquet file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
    *((b"\x80" + bytes([version]), "a pickle, which peftsmith never opens") for version in range(1, 6)),
)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a JSON lines file, JSON array, .csv/.tsv, Parquet or Arrow file, or of a folder of such files.

    A folder is what datasets' save_to_disk wrote, or shards of one kind, read in the order of their names; row numbers
    run through. Blank lines are no rows. A row that cannot be read is yielded with its fault, so that nothing is lost
    in silence. A few rows are in memory at a time; only a JSON array is read whole. Raises PeftsmithError for what is
    missing, empty, unreadable, or of another kind.
    """
    parts = sources(path)
    if len(parts) == 1:
        return _file_rows(parts[0])
    return _numbered_through(parts)


def _numbered_through(parts: list[Path]) -> Iterator[Row]:
    number = 0
    for part in parts:
        for row in _file_rows(part):
            number += 1
            yield Row(number, row.value, row.fault)


def _file_rows(path: Path) -> Iterator[Row]:
    kind, head = kind_of(path)
    if kind == "table":
        from peftsmith.data import tables

        return tables.rows(path, head)
    return {"csv": text_files.csv_rows, "array": text_files.array_rows, "lines": text_files.json_lines}[kind](path)


def kind_of(path: Path) -> tuple[Literal["table", "csv", "array", "lines"], bytes]:
    """How rows stand in a file, and its first bytes. Raises PeftsmithError for what is no readable data file."""
    head = _head(path)
    if _is_table(head):
        return "table", head
    if path.suffix.lower() in _TABLE_SUFFIXES:
        raise PeftsmithError(
            f"The file is named {path.suffix} but is no such file",
            value=str(path),
            next_step="Fetch or write it again; or name it by what it holds.",
        )
    if path.suffix.lower() in _CSV_SUFFIXES:
        return "csv", head
    opens = head.removeprefix(BOM).lstrip()[:1] == b"["
    return "array" if opens and text_files.holds_array(path) else "lines", head


def class_names(path: Path) -> dict[str, tuple[str, ...]]:
    """Column -> names of its whole numbers, where the file itself says so (Parquet and Arrow written by datasets)."""
    first = sources(path)[0]
    head = _head(first)
    if not _is_table(head):
        return {}
    from peftsmith.data import tables

    return tables.class_names(first, head)


def fingerprint(path: Path) -> str:
    """sha256 of a file; of a folder, of its data files' names and hashes."""
    if path.is_file():
        return files.sha256_file(path)
    parts = [(part.name, files.sha256_file(part)) for part in sources(path)]
    return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()


def sources(path: Path) -> list[Path]:
    """The files that hold the rows: the file itself, or a folder's in order. Links that lead out of it are refused."""
    if not path.is_dir():
        return [path]
    if (path / "dataset_dict.json").is_file():
        raise PeftsmithError(
            "The folder holds several splits",
            value=str(path),
            next_step=f"Name one of its folders, such as {path / 'train'}.",
        )
    names = _saved(path) if (path / "state.json").is_file() else _shards(path)
    root = path.resolve()
    for name in names:
        if root not in (path / name).resolve().parents:
            raise PeftsmithError(
                "A data file of this folder is a link that leads out of it",
                value=str(path / name),
                next_step="Put the file itself into the folder, or name the file that it leads to.",
            )
    return [path / name for name in names]


def _saved(folder: Path) -> list[str]:
    """The Arrow files of a data set that datasets' save_to_disk wrote, in the order of its state.json."""
    state = files.read_json(folder / "state.json")
    listed = state.get("_data_files") if isinstance(state, dict) else None
    named = [each.get("filename") for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    names = [name for name in named if isinstance(name, str) and Path(name).name == name]
    if not names or len(names) < len(named):
        raise PeftsmithError(
            "state.json names no data files", value=str(folder), next_step="Save the data set again (save_to_disk)."
        )
    if isinstance(state, dict) and state.get("_indices_data_files"):
        raise PeftsmithError(
            "The saved data set is a selection of rows with its indices in another file",
            value=str(folder),
            next_step="Call flatten_indices() before save_to_disk.",
        )
    return names


def _shards(folder: Path) -> list[str]:
    found = sorted(each.name for each in folder.iterdir() if each.suffix.lower() in SUFFIXES and each.is_file())
    if not found or len(found) > _MOST_SHARDS or len({Path(name).suffix.lower() for name in found}) > 1:
        reason = "no data files" if not found else "data files of several kinds"
        raise PeftsmithError(
            f"The folder holds {reason if len(found) <= _MOST_SHARDS else 'too many data files'}",
            value=str(folder),
            next_step="Name one file, or a folder with nothing but the shards of one split.",
        )
    splits = {split for name in found for split in ("train", "test", "valid") if name.startswith(split)}
    if len(splits) > 1:
        raise PeftsmithError(
            f"The folder holds several splits ({', '.join(sorted(splits))})",
            value=str(folder),
            next_step="Name one file, or a folder with nothing but the shards of one split.",
        )
    return found


def _is_table(head: bytes) -> bool:
    from peftsmith.data import tables

    return head.startswith((tables.PARQUET, tables.ARROW_FILE, tables.ARROW_STREAM))


def _head(path: Path) -> bytes:
    """The first bytes, after it is clear that this is a regular, readable, non-empty text file."""
    if not path.exists():
        raise PeftsmithError("The data file is missing", value=str(path), next_step="Check the path.")
    if not path.is_file():
        raise PeftsmithError(
            "The data must be a file or a folder, not a device", value=str(path), next_step="Name the file itself."
        )
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
            while head and not head.removeprefix(BOM).strip() and len(head) < limits.LONGEST_LINE:
                more = stream.read(1 << 16)
                if not more:
                    break
                head += more
    except OSError as error:
        raise PeftsmithError(
            f"The data file cannot be read: {error.strerror}", value=str(path), next_step="Check its permissions."
        ) from error
    if not head.removeprefix(BOM).strip():
        raise PeftsmithError("The data file is empty", value=str(path), next_step="Put at least one row into it.")
    for magic, name in _FOREIGN:
        if head.startswith(magic):
            raise PeftsmithError(
                f"The file is {name}, not JSON lines, a JSON array or CSV in UTF-8, Parquet or Arrow",
                value=str(path),
                next_step="Convert it to JSON lines in UTF-8 (one object a line).",
            )
    return head
