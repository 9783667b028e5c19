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
from peftsmith.data.examples import AnyExample, Classified, Judged
from peftsmith.data.faults import RowFault
from peftsmith.data.views import loose, view

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
    return _hash(loose(view(example).asked))


def group(value: Mapping[str, Any], column: str) -> bytes:
    held = value.get(column)
    if held is None:
        raise RowFault("shape", f"the row has nothing in the column {files.clean(column, 60)!r} that groups rows")
    return b"group" + _hash(json.dumps(held, sort_keys=True, default=str))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", errors="surrogatepass"), digest_size=16).digest()
