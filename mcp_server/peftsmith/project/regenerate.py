"""What becomes of a file that is generated again: written, left alone, merged with a person's edits, or refused.

Knows: the texts that were generated last (.peftsmith/generated.json, true only as far as the lock's hashes agree).
Does not know: how lines are merged (edits.py), or how files are put in place (generate.py).
"""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding
from peftsmith.project import edits, notebook
from peftsmith.secrets import redact

GENERATED = ".peftsmith/generated.json"
Action = Literal["written", "unchanged", "kept", "merged", "refused"]
_LONGEST_DIFF = 6000
_MOST_CLASHES = 10


@dataclass(frozen=True)
class Fate:
    """`text` is what will lie on the disk; None where the file cannot be read and stays as it is."""

    action: Action
    text: str | None
    finding: Finding | None = None


def last(project: Path, hashes: Mapping[str, str]) -> dict[str, str]:
    """The texts that were generated last, by name. What is missing, damaged or not of these hashes is left out."""
    try:
        kept = files.read_json(project / GENERATED)
    except PeftsmithError:
        return {}  # a project of before there was this file: its edits are kept or refused, never merged
    if not isinstance(kept, dict):
        return {}
    return {
        name: text
        for name, text in kept.items()
        if isinstance(text, str) and name in hashes and files.sha256_text(text) == hashes[name]
    }


def to_keep(texts: Mapping[str, str]) -> str:
    """The text of .peftsmith/generated.json."""
    return json.dumps(dict(sorted(texts.items())), indent=1, ensure_ascii=False) + "\n"


def decide(path: Path, new: str, base: str | None, hash_: str | None) -> Fate:
    """The fate of a file whose text would be `new`; `base` is what was generated last, `hash_` its hash in the lock.

    A file of before the first generation is kept. Raises PeftsmithError for a folder in the file's place.
    """
    if path.is_dir():
        raise PeftsmithError("A folder is in the place of a file", value=str(path), next_step="Move it elsewhere.")
    if not path.exists():
        return Fate("written", new)
    present = files.sha256_file(path)
    if present == files.sha256_text(new):
        return Fate("unchanged", new)
    if present == hash_:
        return Fate("written", new)
    try:
        mine = files.read_text(path)
        if path.name == notebook.FILE:
            return _notebook(path, mine, new, base, hash_)
    except PeftsmithError as error:
        return _unreadable(path, error, same=hash_ in (None, files.sha256_text(new)))
    if hash_ is None or hash_ == files.sha256_text(new):
        return Fate("kept", mine, _edited(path.name, "is kept", mine, new))
    return _merged(path.name, mine, new, base)


def _notebook(path: Path, mine: str, new: str, base: str | None, hash_: str | None) -> Fate:
    """What running a notebook leaves in it is no edit; it goes when the cells change."""
    cells = notebook.canonical(mine)
    if hash_ is None or new in (base, cells):
        action: Action = "unchanged" if cells == new else "kept"
        return Fate(action, mine, _edited(path.name, "is kept", cells, new) if action == "kept" else None)
    if cells == base:
        return Fate("written", new)
    fate = _merged(path.name, cells, new, base)
    if fate.action == "merged" and fate.text is not None:
        try:
            return Fate("merged", notebook.canonical(fate.text), fate.finding)
        except PeftsmithError:
            return _refused(path.name, "the two changes give no notebook", [])
    return fate


def _merged(name: str, mine: str, new: str, base: str | None) -> Fate:
    if base is None:
        diff = files.clean(redact(_diff(name, new, mine)), _LONGEST_DIFF)
        return _refused(name, "what was generated last is not known, so the edits cannot be told apart", [], diff=diff)
    made = edits.merge(base, mine, new)
    if made.text is None:
        clashes = [
            {
                "line": each.line,
                "generated_last": _shown(each.base),
                "yours": _shown(each.mine),
                "generated_now": _shown(each.new),
            }
            for each in made.clashes[:_MOST_CLASHES]
        ]
        lines = ", ".join(str(each.line) for each in made.clashes[:_MOST_CLASHES])
        return _refused(name, f"your edits and the plan's change the same lines ({lines} of the text before)", clashes)
    if name.endswith(".py") and _parses(mine) and not _parses(made.text):
        return _refused(name, "your edits and the plan's together do not parse", [])
    return Fate("merged", made.text, _edited(name, "has both your edits and the plan's", made.text, new))


def _refused(name: str, why: str, clashes: list[dict[str, object]], *, diff: str = "") -> Fate:
    message = f"{name}: {why}; nothing was written"
    return Fate("refused", None, finding("project.file.conflict", message, file=name, clashes=clashes, diff=diff))


def _unreadable(path: Path, error: PeftsmithError, *, same: bool) -> Fate:
    if not same:
        return _refused(path.name, error.cause, [])
    message = f"{path.name} was changed by hand and is kept: {error.cause}"
    return Fate("kept", None, finding("project.file.edited", message, file=path.name))


def _edited(name: str, what: str, mine: str, new: str) -> Finding:
    diff = files.clean(redact(_diff(name, new, mine)), _LONGEST_DIFF)
    return finding("project.file.edited", f"{name} was changed by hand and {what}", file=name, diff=diff)


def _diff(name: str, new: str, mine: str) -> str:
    before, after = new.splitlines(keepends=True), mine.splitlines(keepends=True)
    return "".join(difflib.unified_diff(before, after, f"{name} (generated)", f"{name} (yours)"))


def _shown(text: str) -> str:
    return files.clean(redact(text), 1000)


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
