"""What config.json implies: every module with its shapes, for each model type of the catalogue.

Knows: how fields, defaults, aliases, flags and rules for layer kinds become a skeleton, and what sizes are absurd.
Does not know: what is really stored (anatomy.py compares), or types that the catalogue lacks: those have no skeleton.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from peftsmith.errors import PeftsmithError
from peftsmith.model import catalogue
from peftsmith.model.modules import Kind, Module, Skeleton

MOST_LAYERS = 2000
REMOTE_TYPES = ("qwen", "baichuan", "internlm2", "chatglm")  # written down by hand: their code is not in transformers
LARGEST_SIZE = 100_000_000
_MAY_BE_NONE = ("shared", "nextn", "num_experts", "first_k_dense", "num_dense_layers", "moe_layer_start")
# Older names of layer types (transformers configuration_utils, _LEGACY_LAYER_TYPE_REMAP).
_LAYER_TYPES = {
    "mamba": "linear_attention",
    "attention": "full_attention",
    "deepseek_sparse_attention": "indexed_attention",
    "qwen_sparse_attention": "indexed_attention",
}
# An explicit null: transformers then takes one key/value head for each head, and the class default for anything else.
_NULL_KEY_VALUE_HEADS = "num_key_value_heads"


class Fields:
    """The fields of one config.json as its class would see them: aliases, defaults, defaults that follow others."""

    def __init__(self, config: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
        self.config, self.defaults = config, entry["fields"]
        self.aliases = {real: alias for alias, real in entry["aliases"].items()}

    def raw(self, name: str) -> Any:
        """The value as stated, or its default; formulas stay {"is": ...}."""
        place: Any = self.config
        *path, leaf = name.split(".")
        for part in path:
            place = place.get(part) if isinstance(place, Mapping) else None
        if isinstance(place, Mapping):
            for key in (leaf, self.aliases.get(name, leaf)):
                if key in place:
                    if place[key] is None and self.defaults.get(name) is not None:
                        return self._of_null(name)
                    return place[key]
        return self.defaults.get(name)

    def _of_null(self, name: str) -> Any:
        if name.endswith(_NULL_KEY_VALUE_HEADS):
            return {"is": name.removesuffix(_NULL_KEY_VALUE_HEADS) + "num_attention_heads"}
        default = self.defaults[name]
        return default if isinstance(default, dict) else None

    def size(self, name: str) -> int:
        """A whole number of config.json within sane limits. Raises PeftsmithError naming the field."""
        value = self.raw(name)
        if isinstance(value, Mapping) and "is" in value:
            follows = str(value["is"])
            return _whole(catalogue.width(follows, self.size), name)
        if value is None and name.endswith(_NULL_KEY_VALUE_HEADS):
            return self.size(name.removesuffix(_NULL_KEY_VALUE_HEADS) + "num_attention_heads")
        least = 0 if any(part in name for part in _MAY_BE_NONE) else 1
        if type(value) is not int or not least <= value <= LARGEST_SIZE:
            raise PeftsmithError(
                f"config.json gives no usable {name}", value=value, next_step="Fetch config.json again, or correct it."
            )
        return value


def skeleton(config: Mapping[str, Any]) -> Skeleton | None:
    """Every module that `config` describes, or None when its type and class are not in the catalogue or its layers
    follow no known rule. Raises PeftsmithError for sizes that are missing, absurd, or contradict each other."""
    found = entry_of(config)
    if found is None:
        return None
    entry, architecture = found
    fields = Fields(config, entry)
    flags = _active(entry, fields)
    if any(set(pair) <= set(flags) for pair in entry.get("apart", ())):
        return None
    modules, tied = _patched(entry, flags)
    layers = {stack: _kinds(rule, fields) for stack, rule in entry["stacks"].items()}
    stacks = {name.partition("|")[0] for name in modules if "|" in name}
    if any(layers.get(stack) is None for stack in stacks):
        return None
    widths = _Widths(fields)
    rows: list[Module] = []
    for name, (kind, cls, parameters, *how) in modules.items():
        rows += _modules(name, kind, cls, widths.shapes(parameters), layers, depthwise="depthwise" in how)
    return Skeleton(
        architecture=architecture,
        model_type=str(config["model_type"]),
        source="config",
        modules=tuple(rows),
        containers=tuple(_expanded(entry["containers"], layers)),
        tied=_tied(tied, rows, layers),
    )


def entry_of(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str] | None:
    """The complete catalogue entry for a config's type and class, and the name of that class."""
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return None
    names = config.get("architectures")
    wanted = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    entries = [entry for task in catalogue.tasks(kind) if (entry := catalogue.entry(kind, task)) is not None]
    for entry in entries:
        named = wanted is None or wanted in (entry["architecture"], *entry.get("also", ()))
        if entry["complete"] and named and _is_meant(config, entry):
            return entry, entry["architecture"]
    return None


def _is_meant(config: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Whether an entry speaks of this config at all. Repositories with code of their own use one type and class name
    for several models, which `needs` and `lacks` tell apart; `only` names fields that change modules in a way that no
    formula here tells, with the one value that the entry is true for."""
    needs, lacks, only = entry.get("needs", {}), entry.get("lacks", ()), entry.get("only", {})
    return (
        all(config.get(key) == value for key, value in needs.items())
        and not any(map(config.get, lacks))
        and all(_stated(config, name) in (None, value) for name, value in only.items())
    )


def _stated(config: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted field; None where it is not stated."""
    place: Any = config
    for part in name.split("."):
        place = place.get(part) if isinstance(place, Mapping) else None
    return place


class _Widths:
    """Widths by formula, each worked out once."""

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        self.of = lru_cache(maxsize=None)(self._of)

    def _of(self, text: str) -> int:
        return _whole(catalogue.width(text, self.fields.size), text)

    def shapes(self, parameters: Mapping[str, list[str]]) -> dict[str, tuple[int, ...]]:
        return {leaf: tuple(self.of(text) for text in dims) for leaf, dims in parameters.items()}


def _whole(value: Any, name: str) -> int:
    if value.denominator != 1 or not 0 <= value <= LARGEST_SIZE**2:
        raise PeftsmithError(
            f"config.json contradicts itself: {name} does not divide evenly by the heads",
            value=str(value),
            next_step="Fetch config.json again, or correct it.",
        )
    return int(value)


def _active(entry: Mapping[str, Any], fields: Fields) -> list[str]:
    """The patches of an entry that apply: by one flag ("attention_bias=true"), or by two ("bias=true&alibi=true")."""
    return [key for key in entry["patches"] if all(_is_set(flag, fields) for flag in key.split("&"))]


def _is_set(flag: str, fields: Fields) -> bool:
    name, _, text = flag.partition("=")
    value, wanted = fields.raw(name), json.loads(text)
    if isinstance(fields.defaults.get(name), bool) and value is not None and not isinstance(value, bool):
        raise PeftsmithError(
            f"{name} in config.json must be true or false", value=value, next_step="Correct config.json."
        )
    return bool(value == wanted and type(value) is type(wanted))


def _patched(entry: Mapping[str, Any], keys: list[str]) -> tuple[dict[str, Any], Mapping[str, str]]:
    """Modules and ties with the changes that these patches bring; later ones overrule."""
    modules, tied = dict(entry["modules"]), entry["tied"]
    for key in keys:
        patch = entry["patches"][key]
        modules = {name: row for name, row in (modules | patch["set"]).items() if name not in patch["drop"]}
        tied = tied if patch["tied"] is None else patch["tied"]
    return modules, tied


def _kinds(stack: Mapping[str, Any] | None, fields: Fields) -> list[str] | None:
    """The kind of every layer of a stack, by the first rule whose fields are there."""
    if stack is None:
        return None
    layers = fields.size(stack["count"])
    if not 1 <= layers <= MOST_LAYERS:
        raise PeftsmithError(
            f"config.json gives no usable {stack['count']}", value=layers, next_step="Fetch config.json again."
        )
    for rule in stack["rules"]:
        found = _by_rule(rule, layers, fields)
        if found is not None:
            return found
    return None


def _by_rule(rule: list[Any], layers: int, fields: Fields) -> list[str] | None:
    if rule[0] == "uniform":
        return [rule[1]] * layers
    if rule[0] == "lists":
        lists = [fields.raw(name) for name in rule[1]]
        if not all(isinstance(each, list) and len(each) == layers for each in lists):
            return None
        lists = [[_LAYER_TYPES.get(each, each) if isinstance(each, str) else each for each in some] for some in lists]
        kinds = [rule[2].get(json.dumps([each[index] for each in lists], default=str)) for index in range(layers)]
        return None if None in kinds else kinds
    number = 1 if rule[1] == "1" else fields.size(rule[1])
    if rule[0] == "first":
        return [rule[2] if index < number else rule[3] for index in range(layers)]
    return [rule[3] if (index + rule[2]) % number == 0 else rule[4] for index in range(layers)]


def _modules(
    name: str, kind: Kind, cls: str, shapes: Mapping[str, tuple[int, ...]], layers: Mapping[str, list[str] | None],
    *, depthwise: bool,
) -> list[Module]:  # fmt: skip
    if any(0 in shape for shape in shapes.values()):
        return []
    inputs, outputs = _ends(kind, shapes)
    if depthwise:  # one filter a channel: the weight shows a single input
        inputs = outputs
    if "|" not in name:
        return [Module(name, kind, inputs, outputs, shapes, cls)]
    stack, label, rest = name.split("|")
    ending = f".{rest}" if rest else ""
    return [
        Module(f"{stack}.{index}{ending}", kind, inputs, outputs, shapes, cls)
        for index, each in enumerate(layers[stack] or ())
        if each == label
    ]


def _ends(kind: Kind, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """(inputs, outputs) as the real class has them: Linear stores (out, in), Conv1D (in, out), Embedding (rows,
    width)."""
    weight = shapes.get("weight", ())
    if kind == "linear" and len(weight) == 2:
        return weight[1], weight[0]
    if kind in ("conv1d", "embedding") and len(weight) == 2:
        return weight[0], weight[1]
    if kind == "conv" and len(weight) >= 2:
        return weight[1], weight[0]
    return 0, 0


def _expanded(templates: list[str], layers: Mapping[str, list[str] | None]) -> list[str]:
    found = []
    for template in templates:
        stack, braces, rest = template.partition(".{}")
        found += [f"{stack}.{index}{rest}" for index in range(len(layers.get(stack) or ()))] if braces else [template]
    return found


def _tied(templates: Mapping[str, str], rows: list[Module], layers: Mapping[str, list[str] | None]) -> dict[str, str]:
    there = {f"{module.name}.{leaf}" for module in rows for leaf in module.parameters}
    found = {}
    for template, target in templates.items():
        stack, braces, rest = template.partition(".{}")
        names = [f"{stack}.{i}{rest}" for i in range(len(layers.get(stack) or ()))] if braces else [template]
        first = target.replace(".{}", ".0")
        found.update({name: first for name in names if name in there and name != first})
    return found
