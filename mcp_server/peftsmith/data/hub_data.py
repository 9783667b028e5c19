"""A data set on the hub: one split's files, at a pinned commit, in peftsmith's own cache.

Knows: huggingface_hub for data sets (offline, gated, resumed), which files make a split, size and licence.
Does not know: what the files hold (reading.py). Runs no loading script of a data set, and takes no token from anyone.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftsmith import files
from peftsmith.data.reading import SUFFIXES
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding
from peftsmith.model import hub

_MARK = "peftsmith.json"
_CARD = "README.md"
_SAFE = re.compile(r"(?!.*(^|/)\.)[A-Za-z0-9][A-Za-z0-9._=@+/ -]{0,400}")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_SPACE_LEFT = 1 << 30
_ALIASES = {"validation": ("validation", "valid", "dev", "val"), "eval": ("validation", "valid", "dev", "val", "eval")}
_WORDS = ("train", "test", "validation", "valid", "dev", "val", "eval")


@dataclass(frozen=True)
class Fetched:
    """`path` is one file, or a folder with nothing but the split's shards."""

    path: Path
    commit: str
    findings: tuple[Finding, ...]


def fetch(name: str, split: str = "train", revision: str | None = None) -> Fetched:
    """The files of `split` ("train", or "subset/train") of the hub data set `name`, downloaded unless they are there.

    `revision` is a commit, branch or tag; what is used is always the commit behind it. Raises PeftsmithError for an
    unknown or gated data set, a split that it lacks, files of other kinds only, too little disk, and no network.
    """
    subset, _, wanted = split.rpartition("/")
    if not _PART.fullmatch(wanted) or (subset and not _PART.fullmatch(subset)):
        raise PeftsmithError("This is not the name of a split", value=split, next_step="Give one such as train.")
    root = files.cache_folder("datasets", name.replace("/", "--"))
    place = f"{subset}--{wanted}" if subset else wanted
    library = hub.library()
    if library.constants.is_offline_mode():
        return _from_cache(name, root, place, revision, "HF_HUB_OFFLINE is set")
    try:
        with hub.explained(name, revision, "data set"):
            info = library.HfApi().dataset_info(name, revision=revision, files_metadata=True, timeout=hub.TIMEOUT)
            return _download(name, info, root, place, subset, wanted)
    except hub.NoNetwork as error:
        return _from_cache(name, root, place, revision, str(error))


def _download(name: str, info: Any, root: Path, place: str, subset: str, split: str) -> Fetched:
    library, commit = hub.library(), str(info.sha)
    folder = root / commit / place
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or []}
    if (folder / _MARK).is_file():
        return _kept(name, folder, commit)

    def get(file: str) -> Path:
        kept = {"repo_type": "dataset", "revision": commit, "local_dir": folder, "etag_timeout": hub.TIMEOUT}
        return Path(library.hf_hub_download(name, file, **kept))

    card = _card(get(_CARD)) if _CARD in sizes else {}
    data = [each for each in sizes if each.lower().endswith(SUFFIXES) and _SAFE.fullmatch(each)]
    chosen = choose(data, card, subset, split)
    total = sum(sizes[each] for each in chosen)
    if total + _SPACE_LEFT > shutil.disk_usage(root).free:
        raise PeftsmithError(
            f"The split takes {total >> 20} MiB, more than the disk has to spare",
            value=str(root),
            next_step="Free some space, or set PEFTSMITH_HOME to a folder on another disk.",
        )
    for each in chosen:
        get(each)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    licence = next((tag.removeprefix("license:")[:80] for tag in info.tags or [] if tag.startswith("license:")), None)
    files.write_json(folder / _MARK, {"files": chosen, "bytes": total, "licence": licence})
    return _kept(name, folder, commit)


def _kept(name: str, folder: Path, commit: str, *notes: Finding) -> Fetched:
    record = files.read_json(folder / _MARK)
    paths = [folder / each for each in record["files"]]
    licence = record["licence"]
    about = (
        f"{name} at commit {commit}: {len(paths)} file(s), {record['bytes'] / (1 << 20):.1f} MiB, "
        f"licence {files.clean(licence, 80) if licence else 'not stated'}"
    )
    found = finding("data.source.hub", about, commit=commit, files=record["files"][:20], licence=licence)
    return Fetched(paths[0] if len(paths) == 1 else paths[0].parent, commit, (*notes, found))


def _from_cache(name: str, root: Path, place: str, revision: str | None, why: str) -> Fetched:
    kept = [each for each in root.iterdir() if (each / place / _MARK).is_file() and revision in (None, each.name)]
    if not kept:
        raise PeftsmithError(
            f"The hub cannot be reached ({why}) and this split of {name} was not fetched before",
            value=revision or name,
            next_step="Connect (or unset HF_HUB_OFFLINE), or give a local file.",
        )
    newest = max(kept, key=lambda each: (each / place / _MARK).stat().st_mtime)
    note = finding("data.source.cached", f"The hub was not asked ({why}); this is what was fetched before.")
    return _kept(name, newest / place, newest.name, note)


def _card(path: Path) -> Mapping[str, Any]:
    """The YAML front matter of a data set's card; an empty one where it cannot be read."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    text = files.read_text(path, largest=4 << 20)
    if not text.startswith("---"):
        return {}
    try:
        front = YAML(typ="safe", pure=True).load(text[3:].split("\n---", 1)[0])
    except (YAMLError, ValueError, RecursionError):
        return {}
    return front if isinstance(front, dict) else {}


def choose(names: list[str], card: Mapping[str, Any], subset: str, split: str) -> list[str]:
    """The files of a split, sorted: as the card's `configs` say, else those whose names hold the split's name.

    Source: huggingface.co/docs/hub/datasets-data-files-configuration. Raises PeftsmithError where that is not clear.
    """
    stated = list(_stated(card, subset))
    patterns = [pattern for name, each in stated if name == split for pattern in each]
    if stated:
        found = sorted({each for each in names for pattern in patterns if fnmatch.fnmatchcase(each, pattern)})
        known = sorted({name for name, _ in stated})
    else:
        inside = [each for each in names if not subset or subset in Path(each).parts[:-1] or subset in Path(each).stem]
        found = sorted(each for each in inside if _is_of(each, _ALIASES.get(split, (split,))))
        if not found and split == "train" and not any(_is_of(each, _WORDS) for each in inside):
            found = sorted(inside)
        known = sorted({word for each in inside for word in _WORDS if _is_of(each, (word,))})
    if not found:
        raise PeftsmithError(
            f"The data set has no data files for the split {split!r}; its splits are: {', '.join(known) or 'unknown'}",
            value=subset or split,
            next_step="Name another split (subset/split where there are subsets), or fetch the files by hand.",
        )
    if len({(str(Path(each).parent), Path(each).suffix) for each in found}) > 1:
        raise PeftsmithError(
            "The split's files lie in several folders, or are of several kinds",
            value=found[0],
            next_step="Name a subset as subset/split, or fetch the files by hand.",
        )
    return found


def _stated(card: Mapping[str, Any], subset: str) -> Iterator[tuple[str, list[str]]]:
    """(split, patterns) of the wanted subset in the card's `configs`."""
    configs = [each for each in card.get("configs") or [] if isinstance(each, dict) and each.get("data_files")]
    if not configs:
        return
    names = [str(each.get("config_name", "default")) for each in configs]
    usual = [each for each in configs if each.get("default") is True or each.get("config_name") == "default"]
    chosen = [each for each, name in zip(configs, names, strict=True) if name == subset]
    chosen = chosen or ([] if subset else usual or (configs if len(configs) == 1 else []))
    if not chosen:
        raise PeftsmithError(
            f"The data set has the subsets {files.clean(', '.join(names[:30]), 600)}",
            value=subset or None,
            next_step="Name one of them with the split, such as subset/train.",
        )
    data_files = chosen[0]["data_files"]
    entries = data_files if isinstance(data_files, list) else [data_files]
    for entry in entries:
        split, path = (entry.get("split", "train"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        yield str(split), [each for each in (path if isinstance(path, list) else [path]) if isinstance(each, str)]


def _is_of(name: str, words: tuple[str, ...]) -> bool:
    return any(re.search(rf"(^|[/_.\- ]){re.escape(word)}([/_.\- ]|$)", name) for word in words)
