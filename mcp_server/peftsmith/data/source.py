"""Where rows come from: a path in the project, or a data set on the hub.

Knows: telling the two apart, and what is to be said about the source.
Does not know: how either is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peftsmith import files
from peftsmith.data.reading import SUFFIXES
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding


@dataclass(frozen=True)
class Source:
    path: Path
    findings: tuple[Finding, ...] = ()


def locate(data: str, split: str = "train", revision: str | None = None) -> Source:
    """The file or folder behind `data`: a path inside the roots, else the hub data set `owner/name`.

    `split` and `revision` are for the hub only. Raises PeftsmithError when there is neither.
    """
    if not _is_hub_id(data):
        if revision is not None:
            raise PeftsmithError("A local file has no revision", value=revision, next_step="Leave revision out.")
        return Source(files.resolve(data))
    from peftsmith.data import hub_data

    fetched = hub_data.fetch(data, split, revision)
    return Source(fetched.path, fetched.findings)


def _is_hub_id(data: str) -> bool:
    """True for owner/name where no file, and not even a folder "owner", is meant: a misspelt path is not asked for."""
    if "/" not in data or not files.is_model_id(data) or Path(data).suffix.lower() in SUFFIXES:
        return False
    return not Path(data).exists() and not Path(data).parent.exists()
