"""Where a base model's files come from: a local folder, or the hub without fetching its weights.

Knows: which files a model folder holds, their limits, the hub through huggingface_hub (cache, offline, gated, ranges).
Does not know: what the config or the tensors mean (anatomy.py). Runs no code of a model and opens no pickle.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding
from peftsmith.model import gguf, headers
from peftsmith.model.headers import Tensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
# Small files that say what a model is; the tokenizer itself is fetched when it is asked for.
SMALL = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    INDEX,
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_GGUF_PART = re.compile(r"(.+)-\d{5}-of-\d{5}\.gguf")
_MOST_PARTS = 500
_LARGEST_CONFIG = 16 << 20
_LARGEST_INDEX = 256 << 20
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,200}")


@dataclass(frozen=True)
class ModelFiles:
    """What is there of a model.

    `folder` is set for a local folder only. `small` is where config and tokenizer files lie (for a hub model the hub
    cache's snapshot). `tensors` is empty when there are no safetensors headers; `notes` then says why. `gguf` sums up
    the GGUF files (gguf.summary) of a local folder that has nothing else. `gated` is None where the hub was not asked.
    """

    id: str
    folder: Path | None
    commit: str | None
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    notes: tuple[Finding, ...]
    small: Path
    licence: str | None = None
    gated: bool | None = None
    gguf: dict[str, Any] | None = None


def open_model(model: str, revision: str | None = None) -> ModelFiles:
    """The files of `model`: a local folder, else a hub id (`revision`: commit, branch or tag; default the newest).

    Raises PeftsmithError for a missing folder, an unknown or gated id, no network and nothing cached, pickle-only
    weights, and broken files.
    """
    local = Path(model).expanduser() if model and "\x00" not in model else None
    if local is not None and (local.is_dir() or not files.is_model_id(model)):
        folder = files.resolve(model)
        if revision is not None:
            raise PeftsmithError(
                "A local folder has no revision", value=revision, next_step="Leave revision out, or give a hub id."
            )
        return open_folder(folder)
    if not files.is_model_id(model):
        raise PeftsmithError(
            "This is neither a folder nor a hub id", value=model, next_step="Give a folder, or an id like owner/name."
        )
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise PeftsmithError("This is not a revision", value=revision, next_step="Give a commit of 40 hex digits.")
    from peftsmith.model import hub

    return hub.open_remote(model, revision)


def open_folder(folder: Path, *, id_: str | None = None, commit: str | None = None) -> ModelFiles:
    """The model in a local folder (for a complete copy in the hub cache, `id_` and `commit` name its origin)."""
    if not folder.is_dir():
        raise PeftsmithError(
            "A model is given as its folder, not as one file", value=str(folder), next_step=f"Give {folder.parent}."
        )
    names = sorted(entry.name for entry in folder.iterdir())
    notes = weight_notes(names, str(folder))
    stored = None
    if notes and notes[0].id == "model.weights.gguf_only":
        stored = _gguf(folder, names)
        notes = (finding("model.weights.gguf_only", _as_gguf(stored), files=notes[0].evidence["files"], **stored),)
    if "config.json" in names:
        config = read_config(folder / "config.json")
    elif stored is not None:
        config = {}
    else:
        adapter = "adapter_config.json" in names
        raise PeftsmithError(
            "This folder holds an adapter, not a base model" if adapter else "This folder holds no config.json",
            value=str(folder),
            next_step="Give the base model that the adapter was trained on; inspect_adapter looks at adapters."
            if adapter
            else "Give the folder of a model in the Hugging Face layout (config.json, *.safetensors, tokenizer.json).",
        )
    index = None if WEIGHTS in names or INDEX not in names else read_index(folder / INDEX)
    shards = index_shards(index) if index is not None else [WEIGHTS] if WEIGHTS in names else []
    read = {name: headers.read_file(_inside(folder, name)) for name in shards}
    return ModelFiles(
        id=id_ or str(folder),
        folder=None if commit else folder,
        commit=commit,
        config=config,
        tensors=merge(read, index),
        notes=notes,
        small=folder,
        licence=_licence_in_card(folder / "README.md"),
        gguf=stored,
    )


def _gguf(folder: Path, names: list[str]) -> dict[str, Any]:
    """What the GGUF files say: of a split model all parts, of several models the first. Raises PeftsmithError for a
    broken file."""
    every = [name for name in names if name.endswith(".gguf")]
    part = _GGUF_PART.fullmatch(every[0])
    chosen = [name for name in every if part and name.startswith(part.group(1) + "-")] if part else every[:1]
    return gguf.summary([gguf.read_file(folder / name) for name in chosen[:_MOST_PARTS]])


def _as_gguf(found: dict[str, Any]) -> str:
    kinds = ", ".join(found["types"]) or "no tensors"
    return (
        f"The folder holds GGUF files only: {found['architecture'] or 'an unnamed architecture'}, "
        f"{found['parameters']:,} parameters as {kinds}. LoRA is trained on a model in the Hugging Face layout."
    )


def tokenizer_folder(model: ModelFiles) -> Path:
    """The folder with tokenizer.json and its config; fetched into the hub cache for a hub model.

    Raises PeftsmithError when the model has no tokenizer.json.
    """
    if model.folder is None and model.commit and not (model.small / TOKENIZER).exists():
        from peftsmith.model import hub

        hub.fetch_tokenizer(model.id, model.commit)
    if not (model.small / TOKENIZER).exists():
        raise PeftsmithError(
            "The model has no tokenizer.json",
            value=model.id,
            next_step="Save its tokenizer in the fast format: AutoTokenizer.from_pretrained(...).save_pretrained(...).",
        )
    return model.small


def weight_notes(names: list[str], where: str) -> tuple[Finding, ...]:
    """What the file names alone say about the weights; pickle-only models are refused with a PeftsmithError."""
    if WEIGHTS in names or INDEX in names:
        return ()
    other = [name for name in names if name.endswith(".safetensors")]
    if any(name.endswith(".gguf") for name in names) and not other:
        return (finding("model.weights.gguf_only", files=[n for n in names if n.endswith(".gguf")][:5]),)
    pickles = [name for name in names if name.endswith(_PICKLES) and name != "training_args.bin"]
    if pickles and not other:
        raise PeftsmithError(
            f"The weights are pickle files only ({', '.join(pickles[:3])}), which can run code when they are opened",
            value=where,
            next_step="Take a copy of the model with *.safetensors (many hub models have one on a branch made by the "
            "safetensors conversion bot); peftsmith does not open pickle files.",
        )
    if other:
        return (finding("model.weights.unknown_layout", files=[files.clean(name, 200) for name in other[:5]]),)
    return (finding("model.weights.missing"),)


def read_config(path: Path) -> dict[str, Any]:
    config = files.read_json(path, largest=_LARGEST_CONFIG)
    if not isinstance(config, dict):
        raise PeftsmithError(f"{path.name} is not a JSON object", value=str(path), next_step="Fetch the file again.")
    return config


def read_index(path: Path) -> dict[str, str]:
    """Tensor name to shard file of a model.safetensors.index.json; shard names are bare file names."""
    document = files.read_json(path, largest=_LARGEST_INDEX)
    index = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(index, dict) or not index:
        raise PeftsmithError(f"{INDEX} has no weight_map", value=str(path), next_step="Fetch the file again.")
    for shard in index.values():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise PeftsmithError(
                f"{INDEX} names a shard that is not a plain safetensors file name",
                value=shard,
                next_step="Fetch the model again from a source that you trust.",
            )
    return index


def index_shards(index: dict[str, str]) -> list[str]:
    return sorted(set(index.values()))


def merge(read: dict[str, dict[str, Tensor]], index: dict[str, str] | None) -> dict[str, Tensor]:
    """All tensors of all shards, checked against the index: each where it says, none twice."""
    tensors: dict[str, Tensor] = {}
    for shard, found in read.items():
        for name, tensor in found.items():
            if name in tensors:
                raise PeftsmithError(
                    f"Tensor {name[:200]!r} is in {tensors[name].file} and again in {shard}",
                    next_step="Fetch the model again.",
                )
            tensors[name] = tensor
    for name, shard in (index or {}).items():
        if name not in tensors or tensors[name].file != shard:
            raise PeftsmithError(
                f"{INDEX} says that {shard} holds {name[:200]!r}, but it does not",
                next_step="Fetch the shard and the index again: they are of different versions.",
            )
    return tensors


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise PeftsmithError(
            f"The weights are incomplete: {name} is missing", value=str(folder), next_step="Fetch the model again."
        )
    return path


def _licence_in_card(path: Path) -> str | None:
    """`license:` of a model card's YAML front matter."""
    if not path.is_file() or path.stat().st_size > _LARGEST_CONFIG:
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return None
    found = re.search(r"^licen[sc]e:[ \t]*([A-Za-z0-9._-]{1,80})[ \t]*$", text[3:].split("\n---", 1)[0], re.MULTILINE)
    return found.group(1) if found else None
