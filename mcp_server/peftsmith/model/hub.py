"""A base model on the hub: small files into the hub's own cache, safetensors headers by ranged reads.

Knows: huggingface_hub (HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, the user's own login), and what its errors mean to a user.
Does not know: what the files mean. Never fetches weights, and takes no token from anyone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.finding import finding
from peftsmith.model import headers, source
from peftsmith.model.headers import Tensor
from peftsmith.model.source import INDEX, SMALL, TOKENIZER, WEIGHTS, ModelFiles

TIMEOUT = 20.0  # seconds without a byte
_FIRST_READ = 128 << 10  # most headers fit; a longer one takes a second request
_AT_ONCE = 8
_MOST_SHARDS = 2000


def open_remote(model: str, revision: str | None) -> ModelFiles:
    """The hub model `model` at `revision`; from the cache alone when offline."""
    hub = library()
    if hub.constants.is_offline_mode():
        return _from_cache(model, revision, "HF_HUB_OFFLINE is set")
    try:
        with explained(model, revision):
            info = hub.HfApi().model_info(model, revision=revision, timeout=TIMEOUT)
    except NoNetwork as error:
        return _from_cache(model, revision, str(error), error)
    commit = str(info.sha)
    names = [sibling.rfilename for sibling in info.siblings or []]
    notes = source.weight_notes(names, model)
    gguf_only = bool(notes) and notes[0].id == "model.weights.gguf_only"
    if "config.json" not in names and not gguf_only:
        raise PeftsmithError(
            "This hub model has no config.json, so it is not in the layout that transformers loads",
            value=model,
            next_step="Give the id of a transformers model (an adapter's own base model, not the adapter).",
        )
    with explained(model, revision):
        wanted = [name for name in SMALL if name in names]
        if "config.json" in wanted and revision != commit:
            # Notes in the cache which commit the branch (or the default) stands at, so that it is found offline.
            hub.hf_hub_download(model, "config.json", revision=revision, etag_timeout=TIMEOUT)
        for name in wanted:
            hub.hf_hub_download(model, name, revision=commit, etag_timeout=TIMEOUT)
        small = _snapshot(model, commit, "config.json") or Path(hub.constants.HF_HUB_CACHE)
        index = source.read_index(small / INDEX) if INDEX in wanted and WEIGHTS not in names else None
        shards = source.index_shards(index) if index is not None else [WEIGHTS] if WEIGHTS in names else []
        if len(shards) > _MOST_SHARDS:
            raise PeftsmithError(f"{INDEX} names {len(shards)} shards", next_step="Check that this is the right model.")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            read = dict(zip(shards, pool.map(lambda name: _header(model, commit, name), shards), strict=True))
    return ModelFiles(
        id=model,
        folder=None,
        commit=commit,
        config=source.read_config(small / "config.json") if "config.json" in names else {},
        tensors=source.merge(read, index),
        notes=notes,
        small=small,
        licence=_licence(info.tags or []),
        gated=bool(info.gated),
    )


def fetch_tokenizer(model: str, commit: str) -> None:
    """tokenizer.json into the hub cache; silent when the model has none, a PeftsmithError without network."""
    hub = library()
    from huggingface_hub.errors import EntryNotFoundError

    try:
        with explained(model, commit), suppress(EntryNotFoundError):
            hub.hf_hub_download(model, TOKENIZER, revision=commit, etag_timeout=TIMEOUT)
    except NoNetwork as error:
        raise PeftsmithError(
            f"The hub cannot be reached ({error}) and the tokenizer of {model} is not in the hub cache",
            value=model,
            next_step="Connect (or unset HF_HUB_OFFLINE), or give a local folder with the model.",
        ) from error


def _header(model: str, commit: str, name: str) -> dict[str, Tensor]:
    cached = _snapshot(model, commit, name)
    if cached is not None:
        return headers.read_file(cached / name)
    hub = library()
    url = hub.hf_hub_url(model, name, revision=commit)
    head, size = _ranged(url, 0, _FIRST_READ)
    length = headers.header_length(head[: headers.PREFIX], size, name)
    body = head[headers.PREFIX : headers.PREFIX + length]
    if len(body) < length:
        rest, _ = _ranged(url, headers.PREFIX + len(body), length - len(body))
        body += rest
    if len(body) < length:
        raise PeftsmithError(
            f"The hub sent only a part of {name}'s header", value=model, next_step="Try again in a minute."
        )
    return headers.parse(body, size, name)


def _ranged(url: str, start: int, count: int) -> tuple[bytes, int]:
    """At most `count` bytes from `start`, and the size of the whole file; a server that ignores ranges is cut off."""
    tools = library().utils
    asked = {**tools.build_hf_headers(), "Range": f"bytes={start}-{start + count - 1}", "Accept-Encoding": "identity"}
    with tools.get_session().stream("GET", url, headers=asked, timeout=TIMEOUT) as answer:
        tools.hf_raise_for_status(answer)
        partial = answer.status_code == 206
        stated = (
            answer.headers.get("Content-Range", "").rpartition("/")[2]
            if partial
            else answer.headers.get("Content-Length", "")
        )
        if not stated.isdigit():
            raise PeftsmithError(
                "The hub does not say how large the weight file is",
                value=url,
                next_step="Fetch the model, give its folder.",
            )
        skip = 0 if partial else start
        received = bytearray()
        for chunk in answer.iter_bytes():
            received += chunk
            if len(received) >= skip + count:
                break
        return bytes(received[skip : skip + count]), int(stated)


def cached_config(model: str) -> Path | None:
    """config.json of a hub model as it lies in the cache; the hub is not asked."""
    folder = _snapshot(model, None, "config.json")
    return folder / "config.json" if folder else None


def _from_cache(model: str, revision: str | None, why: str, cause: BaseException | None = None) -> ModelFiles:
    folder = _snapshot(model, revision, "config.json")
    if folder is None:
        raise PeftsmithError(
            f"The hub cannot be reached ({why}) and {model} is not in the hub cache",
            value=revision or model,
            next_step="Connect (or unset HF_HUB_OFFLINE), or give a local folder with the model.",
        ) from cause
    note = finding("model.source.cached", f"The hub was not asked ({why}); this is the copy in the hub cache.")
    index = source.read_index(folder / INDEX) if (folder / INDEX).is_file() else None
    shards = [WEIGHTS] if index is None else source.index_shards(index)
    if all((folder / shard).is_file() for shard in shards):
        found = source.open_folder(folder, id_=model, commit=folder.name)
        return replace(found, notes=(note, *found.notes))
    incomplete = finding(
        "model.weights.missing", "The cached copy holds no complete weights: sizes come from config.json."
    )
    config = source.read_config(folder / "config.json")
    return ModelFiles(model, None, folder.name, config, {}, (note, incomplete), folder)


def cached(model: str) -> Path | None:
    """Folder in the hub cache with a model's config.json, of whatever revision was fetched last; nothing is asked."""
    return _snapshot(model, None, "config.json") if files.is_model_id(model) else None


def _snapshot(model: str, revision: str | None, name: str) -> Path | None:
    """Folder in the hub cache that holds `name` of this revision."""
    found = library().try_to_load_from_cache(model, name, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _licence(tags: list[str]) -> str | None:
    return next((tag.removeprefix("license:")[:80] for tag in tags if tag.startswith("license:")), None)


def library() -> Any:
    # Telemetry also means a request of its own for a list of assistants (huggingface_hub 2.4); peftsmith makes none.
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import huggingface_hub
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    return huggingface_hub


class NoNetwork(Exception):
    """The hub did not answer."""


@contextmanager
def explained(model: str, revision: str | None, kind: str = "model") -> Iterator[None]:
    """huggingface_hub's exceptions as PeftsmithErrors that say what to do; no network as NoNetwork."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except PeftsmithError:
        raise
    except errors.GatedRepoError as error:
        raise PeftsmithError(
            f"This {kind} is gated: its owner grants access on request",
            value=model,
            next_step=f"Ask for access on the {kind}'s page, then log in with `hf auth login` (or set HF_TOKEN).",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise PeftsmithError(
            f"There is no such folder here; the hub knows no such {kind}, or it is private and you are not logged in",
            value=model,
            next_step=f"Check the spelling; for a private {kind} log in with `hf auth login` (or set HF_TOKEN).",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise PeftsmithError(
            f"The {kind} {model} has no such revision", value=revision, next_step="Leave revision out, or correct it."
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise NoNetwork("HF_HUB_OFFLINE is set") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no"
        if status in (401, 403):
            raise PeftsmithError(
                f"The hub refuses access to this {kind} (status {status})",
                value=model,
                next_step="Log in with `hf auth login` (or set HF_TOKEN) as a user who may read it.",
            ) from error
        raise PeftsmithError(
            f"The hub answered with status {status}", value=model, next_step="Try again in a minute."
        ) from error
    except (errors.LocalEntryNotFoundError, httpx2.TransportError, httpx2.InvalidURL) as error:
        raise NoNetwork(type(error).__name__) from error
