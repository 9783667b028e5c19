"""What makes examples of any kind equal, alike or of one group: keys of 16 bytes.

Knows: what is asked in each kind of example, which label it has, the key of a group.
Does not know: what follows from it (prepare.py, split.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from peftsmith import files
from peftsmith.data import content
from peftsmith.data.examples import AnyExample, Chat, Classified, Judged, Pair, Plain, Preference, Side, Tagged
from peftsmith.data.faults import RowFault

_SORTED = json.JSONEncoder(sort_keys=True)


def exact(row: Mapping[str, Any]) -> bytes:
    """Equal for equal normalised rows."""
    return _hash(_SORTED.encode(row))


def label(example: AnyExample) -> str:
    """What the splits keep the proportions of; "" where there is nothing."""
    match example:
        case Classified():
            return example.label
        case Judged():
            return json.dumps(example.desirable)
    return ""


def question(example: AnyExample) -> bytes:
    """Equal for examples that ask the same, case and white space aside; the text itself where nothing is asked."""
    match example:
        case Chat():
            return content.loose_key(content.question(example))
        case Classified():
            asked: list[Side] = [example.text, example.second or ""]
        case Preference() | Judged():
            asked = [example.prompt]
        case Plain():
            asked = [example.prompt or example.completion]
        case Tagged():
            asked = [" ".join(example.words)]
        case Pair():
            asked = [example.source]
    parts = [side if isinstance(side, str) else json.dumps(side, sort_keys=True, ensure_ascii=False) for side in asked]
    return _hash("\0".join(content.loose_text(part) for part in parts))


def group(value: Mapping[str, Any], column: str) -> bytes:
    held = value.get(column)
    if held is None:
        raise RowFault("shape", f"the row has nothing in the column {files.clean(column, 60)!r} that groups rows")
    return b"group" + _hash(json.dumps(held, sort_keys=True, default=str))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", errors="surrogatepass"), digest_size=16).digest()
