"""A model's tokenizer as transformers would load it, out of its files.

Knows: tokenizer.json, tokenizer_config.json, chat template files, special tokens, eos ids, positions.
Does not know: rows, rendering, training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peftsmith import files
from peftsmith.errors import PeftsmithError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LARGEST_TOKENIZER = 256 << 20
# Classes for which transformers 5 takes tokenizer.json as it is; others with an own __init__ are rebuilt from the
# vocabulary and merges with that class's own pre-tokenizer (tokenization_utils_tokenizers.convert_to_native_format).
_TAKEN_AS_IS = (None, "TokenizersBackend", "PreTrainedTokenizer", "PreTrainedTokenizerFast")


@dataclass(frozen=True)
class TokenizerFiles:
    """`special` maps bos_token, eos_token, ... to their text, as a template sees them. Ids are None where not set.

    `borders` are the special tokens that cut a text in two wherever they stand (no lstrip, single_word or normalising).
    `stop_ids` end a generation: generation_config.json's eos ids, else config.json's, else the tokenizer's own.
    `rebuilt_as` names the tokenizer class when transformers rebuilds the tokenizer instead of reading tokenizer.json.
    """

    tokenizer: Tokenizer
    template: str | None
    special: dict[str, str]
    special_texts: frozenset[str]
    borders: frozenset[str]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    stop_ids: frozenset[int]
    max_positions: int | None
    embedding_rows: int | None
    rebuilt_as: str | None
    tool_template: str | None = None  # what transformers takes instead of `template` for rows that declare tools
    truncation_side: Literal["left", "right"] = "right"
    padding_side: Literal["left", "right"] = "right"


def load(folder: Path) -> TokenizerFiles:
    """The tokenizer in `folder`. Raises PeftsmithError when tokenizer.json is missing or cannot be read."""
    config = _json(folder / "tokenizer_config.json")
    model = _json(folder / "config.json")
    text_config = model.get("text_config")
    inner: dict[str, Any] = text_config if isinstance(text_config, dict) else model
    if "added_tokens_decoder" not in config:
        # transformers reads the legacy file only then
        config = {**config, **_json(folder / "special_tokens_map.json")}
    tokenizer = _read(folder / "tokenizer.json")
    config = {**_defaults(tokenizer), **config}
    special = _special(config)
    _set_up(tokenizer, config, special)
    ids = {name: tokenizer.token_to_id(text) for name, text in special.items()}
    added = list(tokenizer.get_added_tokens_decoder().values())
    named_class = config.get("tokenizer_class")
    return TokenizerFiles(
        tokenizer=tokenizer,
        template=_template(folder, config, "default"),
        tool_template=_template(folder, config, "tool_use"),
        truncation_side="left" if config.get("truncation_side") == "left" else "right",
        padding_side="left" if config.get("padding_side") == "left" else "right",
        special=special,
        special_texts=frozenset(token.content for token in added if token.special),
        borders=frozenset(
            token.content
            for token in added
            if token.special
            and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
            and not tokenizer.encode_special_tokens
        ),
        bos_id=ids.get("bos_token"),
        eos_id=ids.get("eos_token"),
        pad_id=ids.get("pad_token"),
        stop_ids=_stop_ids(_json(folder / "generation_config.json"), inner, ids.get("eos_token")),
        max_positions=_integer(inner.get("max_position_embeddings")),
        embedding_rows=_integer(inner.get("vocab_size")),
        rebuilt_as=None if named_class in _TAKEN_AS_IS else files.clean(str(named_class), 80),
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise PeftsmithError(f"{path.name} is not a JSON object", value=str(path), next_step="Fetch the file again.")
    return value


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _content(value: object) -> str | None:
    """The text of a special token, which is a string or an AddedToken as a dict."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _special(config: Mapping[str, Any]) -> dict[str, str]:
    """Named tokens and the model's own `*_token` entries: the names that a chat template can use."""
    found: dict[str, str] = {}
    extra = config.get("extra_special_tokens")
    own = extra if isinstance(extra, dict) else {}
    for name, value in {**config, **own}.items():
        text = _content(value)
        if text is not None and (name in own or name.endswith("_token")):
            found[name] = text
    return found


def _read(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    if not path.is_file():
        raise PeftsmithError(
            "The model has no tokenizer.json",
            value=str(path),
            next_step="Save it once with transformers (AutoTokenizer.from_pretrained(...).save_pretrained(...)).",
        )
    if path.stat().st_size > _LARGEST_TOKENIZER:
        raise PeftsmithError("tokenizer.json is too large to be one", value=str(path), next_step="Check the file.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        raise PeftsmithError(
            f"tokenizer.json cannot be read: {files.clean(str(error), 200)}",
            value=str(path),
            next_step="Fetch the model's files again, or update the tokenizers library.",
        ) from error


def _defaults(tokenizer: Tokenizer) -> dict[str, Any]:
    """What tokenizer.json's own padding and truncation say where tokenizer_config.json is silent.

    Source: transformers 5.23, tokenization_utils_tokenizers.py, TokenizersBackend.__init__.
    """
    found: dict[str, Any] = {}
    if tokenizer.padding is not None:
        found |= {"pad_token": tokenizer.padding["pad_token"], "padding_side": tokenizer.padding["direction"]}
    if tokenizer.truncation is not None:
        found["truncation_side"] = tokenizer.truncation["direction"]
    return found


def _set_up(tokenizer: Tokenizer, config: Mapping[str, Any], special: Mapping[str, str]) -> None:
    """Bring a tokenizer to the state in which transformers uses it. Source: as `_defaults`."""
    from tokenizers import AddedToken

    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = bool(config.get("split_special_tokens", False))
    present = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
    added: list[AddedToken] = []
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        for _, entry in sorted(decoder.items(), key=lambda item: int(item[0])):
            token = AddedToken(**entry)
            if repr(token) not in present:
                added.append(token)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    known |= {token.content for token in added}
    listed = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    wanted = [*special.values(), *(_content(item) for item in (listed if isinstance(listed, list) else []))]
    for text in wanted:
        if text is not None and text not in known:
            added.append(AddedToken(text, special=True))
            known.add(text)
    if added:
        tokenizer.add_tokens(added)
    # add_bos_token and add_eos_token count for nothing beside a tokenizer.json (tokenization_utils_base.py drops them)


def _template(folder: Path, config: Mapping[str, Any], name: Literal["default", "tool_use"]) -> str | None:
    """Files come before tokenizer_config.json. Of several named templates the one called default must be there."""
    named: Any = config.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        named = files.read_text(folder / "chat_template.jinja", largest=1 << 20)
        extra = folder / "additional_chat_templates" / "tool_use.jinja"
        if name == "tool_use":
            return files.read_text(extra, largest=1 << 20) if extra.is_file() else None
    if isinstance(named, str):
        return named if name == "default" else None
    if isinstance(named, list):
        named = {str(item.get("name")): item.get("template") for item in named if isinstance(item, dict)}
    if isinstance(named, dict) and named:
        found = named.get(name)
        if isinstance(found, str) or name == "tool_use":
            return found if isinstance(found, str) else None
        raise PeftsmithError(
            "The model has several chat templates and none is called default",
            value=sorted(named),
            next_step="Save the one to train with as chat_template.jinja beside tokenizer.json.",
        )
    return None


def _stop_ids(generation: Mapping[str, Any], model: Mapping[str, Any], own: int | None) -> frozenset[int]:
    for value in (generation.get("eos_token_id"), model.get("eos_token_id"), own):
        ids = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int)]
        if ids:
            return frozenset(ids)
    return frozenset()
