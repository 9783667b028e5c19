"""What a model's tokenizer files say about where text begins, ends and is padded.

Knows: eos, bos and pad in config.json, generation_config.json, tokenizer_config.json and tokenizer.json; the chat
template and the token that closes its turns; where these contradict each other.
Does not know: how to render or tokenize (data/rendering.py). It runs no template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding
from peftsmith.model import source

_LARGEST_TOKENIZER = 256 << 20
_LARGEST_TEMPLATE = 1 << 20
# Tokens that close a turn in the templates of public models.
_CLOSERS = (
    "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|eot|>", "<|end_of_turn|>", "<|endofturn|>",
    "<|END_OF_TURN_TOKEN|>", "<|return|>", "<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "<|user_end|>",
)  # fmt: skip


@dataclass(frozen=True)
class Tokens:
    """Ids as training and generation will use them. `eos` is the tokenizer's own, `stop` where generation stops."""

    eos: int | None
    stop: tuple[int, ...]
    pad: int | None
    bos: int | None
    chat_template: str | None
    findings: tuple[Finding, ...]


def read(model: source.ModelFiles, vocab: int | None) -> Tokens:
    """The token facts of `model`; `vocab` is the number of rows of its embedding.

    Raises PeftsmithError for files that are not JSON objects; everything else that is wrong or missing is a finding.
    """
    tokenizer = _optional(model.small / "tokenizer_config.json")
    generation = _optional(model.small / "generation_config.json")
    findings: list[Finding] = []
    known = _added(tokenizer)
    if not known or any(_text(tokenizer, f"{name}_token") not in (None, *known) for name in ("eos", "bos", "pad")):
        known = {**known, **_vocabulary(model)}
    if not known:
        findings.append(finding("model.tokenizer.missing"))
    ids = {name: known.get(_text(tokenizer, f"{name}_token") or "") for name in ("eos", "bos", "pad")}
    stop = _ids(generation.get("eos_token_id", model.config.get("eos_token_id")))
    eos = ids["eos"] if ids["eos"] is not None else next(iter(_ids(model.config.get("eos_token_id"))), None)
    stop = stop or ((eos,) if eos is not None else ())
    pad = ids["pad"] if ids["pad"] is not None else next(iter(_ids(model.config.get("pad_token_id"))), None)
    bos = ids["bos"] if ids["bos"] is not None else next(iter(_ids(model.config.get("bos_token_id"))), None)
    template = _template(model.small, tokenizer)
    if pad is None:
        findings.append(finding("model.tokenizer.no_pad"))
    elif pad == eos:
        findings.append(finding("model.tokenizer.pad_is_eos", pad_token_id=pad))
    highest = max((i for i in (*stop, pad, bos, eos, *known.values()) if i is not None), default=-1)
    if vocab is not None and highest >= vocab:
        findings.append(
            finding(
                "model.tokenizer.beyond_embeddings",
                f"The tokenizer has id {highest}, but the embedding has only {vocab} rows.",
                highest_id=highest,
                vocab=vocab,
            )
        )
    findings += _ending(template, eos, stop, known)
    return Tokens(eos, stop, pad, bos, template, tuple(findings))


def _ending(template: str | None, eos: int | None, stop: tuple[int, ...], known: Mapping[str, int]) -> list[Finding]:
    if template is None:
        return [finding("model.chat_template.missing")]
    closers = {token: known[token] for token in _CLOSERS if token in template and token in known}
    if "eos_token" in template and eos is not None:
        closers["eos_token"] = eos
    if not closers:
        return [finding("model.chat_template.end_unknown")]
    if not stop or not set(closers.values()) & set(stop):
        return [
            finding(
                "model.tokenizer.end_of_turn",
                f"The chat template closes a turn with {' or '.join(closers)} (id {sorted(set(closers.values()))}), "
                f"but generation stops at {sorted(stop) or 'nothing'}.",
                closes_with=closers,
                stops_at=list(stop),
            )
        ]
    if eos is not None and eos not in stop:
        return [
            finding(
                "model.tokenizer.end_of_turn",
                f"The tokenizer's eos is id {eos}, but generation stops at {sorted(stop)}.",
                tokenizer_eos=eos,
                stops_at=list(stop),
            )
        ]
    return []


def _template(folder: Path, tokenizer: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else tokenizer_config.json's (of several named ones, "default"), as transformers chooses."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return files.read_text(path, largest=_LARGEST_TEMPLATE)
    found = tokenizer.get("chat_template")
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    return found if isinstance(found, str) and len(found) <= _LARGEST_TEMPLATE else None


def _optional(path: Path) -> dict[str, Any]:
    return source.read_config(path) if path.is_file() else {}


def _added(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    decoder = tokenizer.get("added_tokens_decoder")
    if not isinstance(decoder, dict):
        return {}
    return {
        text: int(key)
        for key, token in decoder.items()
        if key.isdigit() and len(key) < 12 and (text := _content(token)) is not None
    }


def _vocabulary(model: source.ModelFiles) -> dict[str, int]:
    """Added tokens of tokenizer.json, and of its vocabulary those that may close a turn."""
    try:
        path = source.tokenizer_folder(model) / source.TOKENIZER
    except PeftsmithError:
        return {}
    document = files.read_json(path, largest=_LARGEST_TOKENIZER)
    if not isinstance(document, dict):
        raise PeftsmithError("tokenizer.json is not a JSON object", value=str(path), next_step="Fetch it again.")
    body = document.get("model")
    words = body.get("vocab") if isinstance(body, dict) else None
    found = {t: words[t] for t in _CLOSERS if t in words and type(words[t]) is int} if isinstance(words, dict) else {}
    added = document.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        text = _content(token)
        if text is not None and type(token.get("id")) is int:
            found[text] = token["id"]
    return found


def _text(tokenizer: Mapping[str, Any], key: str) -> str | None:
    value = tokenizer.get(key)
    return value if isinstance(value, str) else _content(value)


def _content(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else None
    return text if isinstance(text, str) else None


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(i for i in (value if isinstance(value, list) else [value]) if type(i) is int and i >= 0)
