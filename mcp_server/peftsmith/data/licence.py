"""The licence under which a data set comes, as far as its folder says.

Knows: a data set card's front matter (README.md) and licence files beside the data.
Does not know: what a licence allows in a given case; it only names it and what commonly stands against training.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from peftsmith import files
from peftsmith.finding import Finding, finding

_CARD = "README.md"
_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "LICENCE.md", "LICENCE.txt", "COPYING")
_LARGEST = 1 << 20
_FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_LINE = re.compile(r"^licen[sc]e:[ \t]*(\S[^\n#]*)$|^licen[sc]e:[ \t]*\n((?:[ \t]*-[ \t]*\S+\n?)+)", re.MULTILINE)
_RESTRICTED = re.compile(
    r"(?:^|[-_ ])(?:nc|nd)(?:[-_ ]|$)|non-?commercial|no-?deriv|research|fair-noncommercial", re.IGNORECASE
)
_NAMES = (
    ("Apache License", "apache-2.0"), ("MIT License", "mit"), ("GNU AFFERO GENERAL PUBLIC", "agpl"),
    ("GNU LESSER GENERAL PUBLIC", "lgpl"), ("GNU GENERAL PUBLIC", "gpl"), ("Attribution-NonCommercial", "cc-by-nc"),
    ("Attribution-NoDerivatives", "cc-by-nd"), ("Attribution-ShareAlike", "cc-by-sa"),
    ("Creative Commons Attribution", "cc-by"), ("CC0", "cc0-1.0"), ("Community Data License Agreement", "cdla"),
    ("Open Data Commons Open Database", "odbl"), ("BSD", "bsd"),
)  # fmt: skip


def judge(data: Path) -> Iterator[Finding]:
    """One finding: the licence that stands beside `data`, that it restricts the use, or that there is none."""
    found = _licence(data if data.is_dir() else data.parent)
    if found is None:
        yield finding("data.source.licence_missing")
        return
    name, place = found
    shown = files.clean(name, 80)
    id_ = "data.source.licence_restricts" if _RESTRICTED.search(name) else "data.source.licence"
    yield finding(id_, f"The data's licence is {shown} ({place})", licence=shown, file=place)


def _licence(folder: Path) -> tuple[str, str] | None:
    front = _FRONT.match(_text(folder / _CARD))
    line = _LINE.search(front.group(1) + "\n") if front else None
    if line:
        listed = line.group(1) or ", ".join(each.strip(" \t-") for each in line.group(2).strip().split("\n"))
        return listed.strip().strip("\"'"), _CARD
    for name in _FILES:
        text = _text(folder / name)[:4000]
        if text:
            lowered = text.lower()
            return next((known for words, known in _NAMES if words.lower() in lowered), "of its own kind"), name
    return None


def _text(path: Path) -> str:
    if not path.is_file() or path.stat().st_size > _LARGEST:
        return ""
    return path.read_bytes().decode("utf-8", errors="replace").replace("\r\n", "\n")
