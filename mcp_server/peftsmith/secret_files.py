"""Looking through files and folders for credentials.

Knows: which files are worth reading, encodings, the size limit, how hits become findings.
Does not know: what a credential looks like (secrets.py).
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peftsmith.errors import PeftsmithError
from peftsmith.files import clean
from peftsmith.finding import Finding, finding
from peftsmith.secrets import allowed, find_in_text, title

LARGEST_FILE = 16 << 20  # bytes of one file that are looked through
_MOST_FINDINGS = 200
_SKIPPED_FOLDERS = {
    *(".git", ".hg", ".svn", "node_modules", "__pycache__", "site-packages", ".tox", ".nox"),
    *(".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"),
}


@dataclass(frozen=True)
class Scan:
    """What `scan` saw; `scanned` counts the files that were looked through."""

    findings: list[Finding]
    scanned: int


def scan(path: Path) -> Scan:
    """Look through a file, or a folder without .git, virtual environments, caches, binary files and symbolic links.

    Findings name file, line and kind, never the value. What could not be read, or only in part, is `unknown`; what
    was left out is counted in one `info`. Raises PeftsmithError when there is nothing at `path`.
    """
    if not path.exists():
        raise PeftsmithError("There is no such file or folder", value=str(path), next_step="Check the spelling.")
    root = path if path.is_dir() else path.parent
    findings: list[Finding] = []
    left_out: Counter[str] = Counter()
    found, marked, scanned = 0, 0, 0
    for file, why_not in _walk(path):
        name = clean(file.relative_to(root).as_posix(), 300)
        if why_not == "unreadable":
            findings.append(finding("secrets.file.unread", f"{name} could not be read", file=name))
            continue
        if why_not:
            left_out[why_not] += 1
            continue
        try:
            with file.open("rb") as stream:
                raw = stream.read(LARGEST_FILE + 1)
        except OSError as error:
            message = f"{name} could not be read: {error.strerror}"
            findings.append(finding("secrets.file.unread", message, file=name))
            continue
        text = _decode(raw[:LARGEST_FILE])
        if text is None:
            left_out["binary files"] += 1
            continue
        scanned += 1
        if len(raw) > LARGEST_FILE:
            message = f"only the first {LARGEST_FILE >> 20} MiB of {name} were looked through"
            findings.append(finding("secrets.file.partial", message, file=name))
        for hit in find_in_text(text):
            if allowed(text, hit):
                marked += 1
                continue
            found += 1
            if found <= _MOST_FINDINGS:
                message = f"{name} line {hit.line} holds a {title(hit.kind)}"
                findings.append(finding("secrets.file.credential", message, file=name, line=hit.line, kind=hit.kind))
    if found > _MOST_FINDINGS:
        more = found - _MOST_FINDINGS
        findings.append(finding("secrets.file.credential", f"{more} more credentials are not listed here", more=more))
    if marked:
        message = f"{marked} credential(s) stand on lines marked as allowed"
        findings.append(finding("secrets.mark.allowed", message, count=marked))
    if left_out:
        counts = dict(sorted(left_out.items()))
        message = "not looked through: " + ", ".join(f"{count} {what}" for what, count in counts.items())
        findings.append(finding("secrets.files.left_out", message, counts=counts))
    return Scan(findings, scanned)


def _walk(path: Path) -> Iterator[tuple[Path, str]]:
    """Every file under `path` in a fixed order, each with the reason why it is left out, or ""."""
    if not path.is_dir():
        yield path, ""
        return
    broken: list[OSError] = []
    for folder, below, names in os.walk(path, onerror=broken.append):
        here = Path(folder)
        keep = []
        for name in sorted(below):
            child = here / name
            if child.is_symlink():
                yield child, "symbolic links"
            elif name in _SKIPPED_FOLDERS or (child / "pyvenv.cfg").exists():
                yield child, "folders of tools and virtual environments"
            else:
                keep.append(name)
        below[:] = keep
        for name in sorted(names):
            file = here / name
            mode = file.lstat().st_mode
            yield file, "symbolic links" if stat.S_ISLNK(mode) else "" if stat.S_ISREG(mode) else "special files"
    for error in broken:
        yield Path(str(error.filename)), "unreadable"


def _decode(raw: bytes) -> str | None:
    """The text in `raw`, with what is not valid replaced; None for binary content."""
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if raw.startswith(mark):
            return raw[2:].decode(encoding, errors="replace")
    if b"\x00" in raw[:8192]:
        return None
    return raw.decode("utf-8", errors="replace")
