"""A unified diff that renames what was only renamed, and nothing else.

Knows: where a keyword, a name or a value stands in the text, to the column.
Does not know: which renames keep the meaning (knowledge/spellings.toml, `pure`).
"""

from __future__ import annotations

import ast
import difflib
import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peftsmith.project import signatures
from peftsmith.project.foreign.source import Source
from peftsmith.project.foreign.values import Site


@dataclass(frozen=True, order=True)
class Edit:
    """Replace `old` by `new` at a 1-based line and a column in bytes."""

    line: int
    column: int
    old: str
    new: str


def diff(source: Source, sites: list[Site]) -> str:
    """The renames as a unified diff, of a notebook a part for each cell; empty when there are none."""
    edits = sorted({*_keywords(source, sites), *_names(source)}, reverse=True)
    lines = [line.encode("utf-8") for line in source.lines]
    for edit in edits:
        raw, old = lines[edit.line - 1], edit.old.encode("utf-8")
        if raw[edit.column : edit.column + len(old)] == old:
            lines[edit.line - 1] = raw[: edit.column] + edit.new.encode("utf-8") + raw[edit.column + len(old) :]
    new = [line.decode("utf-8") for line in lines]
    spans: list[tuple[str, int, int]] = [(source.name, 0, len(new))]
    if source.notebook:
        firsts = [first - 1 for _, first in source.starts] + [len(new)]
        spans = [
            (f"{source.name} cell {cell}", first - 1, firsts[at + 1]) for at, (cell, first) in enumerate(source.starts)
        ]
    parts: list[str] = []
    for name, begin, end in spans:
        parts += difflib.unified_diff(source.lines[begin:end], new[begin:end], name, name, lineterm="", n=1)
    return "\n".join(parts) + "\n" if parts else ""


def _keywords(source: Source, sites: list[Site]) -> Iterator[Edit]:
    table = signatures.spellings()
    for site in sites:
        if site.source is not source:
            continue
        for keyword in site.node.keywords:
            for entry in table["keyword"]:
                if keyword.arg == entry["old"] and entry.get("pure") and _fits(site.name, entry["on"]):
                    taken = entry["new"] in {each.arg for each in site.node.keywords}
                    if not taken:
                        yield Edit(keyword.lineno, keyword.col_offset, entry["old"], entry["new"])
            value: Any = keyword.value
            for entry in table["value"]:
                meant = keyword.arg == entry["keyword"] and entry.get("pure") and _fits(site.name, entry["on"])
                if meant and isinstance(value, ast.Constant) and value.value == entry["old"]:
                    yield Edit(value.lineno, value.col_offset + 1, entry["old"], entry["new"])


def _names(source: Source) -> Iterator[Edit]:
    """Imported names that were renamed, at the import and wherever they stand."""
    for entry in signatures.spellings()["name"]:
        if not entry.get("pure"):
            continue
        module, _, old = entry["old"].rpartition(".")
        new = entry["new"].rpartition(".")[2]
        for node in ast.walk(source.tree):
            if not (isinstance(node, ast.ImportFrom) and node.module == module):
                continue
            for alias in node.names:
                if alias.name != old:
                    continue
                yield Edit(alias.lineno, alias.col_offset, old, new)
                if alias.asname is None:
                    for used in ast.walk(source.tree):
                        if isinstance(used, ast.Name) and used.id == old:
                            yield Edit(used.lineno, used.col_offset, old, new)


def _fits(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
