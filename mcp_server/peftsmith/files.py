"""Reading and writing small files so that nothing is left half-written.

Knows: atomic replacement, hashes, the jail that every user-supplied path passes, and how untrusted text is shown.
Does not know: what the files mean.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peftsmith.errors import PeftsmithError

_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_roots: list[Path] = []


def set_roots(roots: Iterable[str | Path]) -> None:
    """Folders that user-supplied paths must lie in. The CLI sets "/", the server the project and PEFTSMITH_ROOTS."""
    _roots[:] = [Path(root).resolve() for root in roots]


def resolve(path: str | Path, *, must_exist: bool = True) -> Path:
    """The absolute path behind `path`, symlinks followed, inside the roots (default: the working folder)."""
    text = str(path)
    if not text or "\x00" in text or "\n" in text:
        raise PeftsmithError("This is not a usable path", value=text, next_step="Give a path without NUL or newline.")
    resolved = Path(text).expanduser().resolve()
    roots = _roots or [Path.cwd().resolve()]
    if not any(resolved == root or root in resolved.parents for root in roots):
        allowed = ", ".join(str(root) for root in roots)
        raise PeftsmithError(
            f"The path lies outside of what peftsmith may touch here ({allowed})",
            value=str(resolved),
            next_step="Move the file into the project, or add its folder to PEFTSMITH_ROOTS.",
        )
    if must_exist and not resolved.exists():
        raise PeftsmithError("There is no such file or folder", value=str(resolved), next_step="Check the spelling.")
    return resolved


def is_model_id(text: str) -> bool:
    """True for `name` or `owner/name` as the hub allows them; a local folder is not a model id."""
    return bool(_MODEL_ID.fullmatch(text)) and ".." not in text and "--" not in text


def is_commit(text: str) -> bool:
    return bool(_COMMIT.fullmatch(text))


def write_text(path: Path, text: str) -> None:
    """Replace `path` with `text` in one step: readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PeftsmithError(
                "The disk is full; the old file, if any, is untouched",
                value=str(path),
                next_step="Free some space and try again.",
            ) from error
        raise
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def copy(source: Path, target: Path) -> None:
    """Copy a file; a failure (full disk, unreadable source) leaves no part of `target` behind."""
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise PeftsmithError(
            f"{source.name} cannot be copied: {error.strerror}",
            value=str(target),
            next_step="Free some space or check permissions.",
        ) from error


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n")


def read_json(path: Path, *, largest: int = 64 << 20) -> Any:
    """The JSON value in `path`; a missing, oversized or malformed file is a PeftsmithError."""
    text = read_text(path, largest=largest)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PeftsmithError(
            f"{path.name} is not valid JSON: {error}", value=str(path), next_step="Repair the file or fetch it again."
        ) from error


def read_text(path: Path, *, largest: int = 64 << 20) -> str:
    """The UTF-8 text in `path`, refused above `largest` bytes."""
    try:
        size = path.stat().st_size
        if size > largest:
            raise PeftsmithError(
                f"{path.name} is {size} bytes, more than the {largest} expected of such a file",
                value=str(path),
                next_step="Check that this is the right file.",
            )
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise PeftsmithError("The file is missing", value=str(path), next_step="Check the path.") from error
    except UnicodeDecodeError as error:
        raise PeftsmithError(
            f"{path.name} is not UTF-8 text (byte {error.start})", value=str(path), next_step="Save it as UTF-8."
        ) from error
    except OSError as error:
        raise PeftsmithError(
            f"{path.name} cannot be read: {error.strerror}", value=str(path), next_step="Check its permissions."
        ) from error


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hash of the value in canonical form (sorted keys, no white space)."""
    return sha256_text(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def clean(text: str, limit: int = 2000) -> str:
    """Untrusted text for showing: no control, format (bidi, zero-width) or private characters, at most `limit` long."""
    kept = "".join(
        c for c in text[: limit * 4] if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs")
    )
    return kept if len(kept) <= limit else kept[:limit] + f"... [{len(text) - limit} more characters]"


def cache_folder(*parts: str) -> Path:
    """A folder of peftsmith's own cache: PEFTSMITH_HOME, else XDG_CACHE_HOME or ~/.cache, then `parts`."""
    home = os.environ.get("PEFTSMITH_HOME")
    base = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peftsmith"
    folder = base.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
