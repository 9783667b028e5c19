"""One model type to experiment with: the real class built on the meta device, with fields of its config changed.

Knows: which values to try, which fields may be sizes or flags, when a variant counts as built.
Does not know: what follows from the variants (widths.py, layers.py).
"""

from __future__ import annotations

import json
import re
from typing import Any

from peftsmith.worker import shrink, table
from peftsmith.worker.architectures.built import Built
from peftsmith.worker.architectures.formulas import get, names_in, parts, place_of, prefixed, value_of

# What a field that is null may follow; tried in this order, and kept only when the class then builds the same.
NULLS = {
    "head_dim": ["hidden_size/num_attention_heads", "n_embd/n_head", "d_model/num_heads"],
    "num_key_value_heads": ["num_attention_heads"],
    "n_inner": ["4*n_embd"],
    "ffn_hidden_size": ["4*hidden_size"],
    "ffn_dim": ["4*hidden_size"],
    "intermediate_size": ["4*hidden_size"],
}
UNLISTED = ("head_dim",)  # read where a config.json has it, though the class does not list it
CHOICES = {"feed_forward_proj": ("gated-gelu", "relu")}
LAYER_KINDS = ("attention", "full_attention", "linear_attention", "mamba", "conv", "hybrid", "recurrent", "sparse",
               "dense", "moe", "mlp")  # fmt: skip
UNSET = {"mamba_d_head": "auto"}  # follows other fields when it is not stated, and must agree with them when it is
# Fields whose default hides what published models have: other values are tried for the experiments.
SHOWN = {
    "deepseek_v2": {"first_k_dense_replace": 1},
    "granitemoeshared": {"shared_intermediate_size": 1024},
    "granitemoe_swa": {"shared_intermediate_size": 1024},
}
NOT_SIZES = re.compile(
    r"token_id|_id$|^id2|label|seed|version|chunk|dropout|pad_idx|image_size|rope|scal|initial|eps|std$"
)


class Slow(Exception):
    """A type that takes too long is left out."""


class Experiment:
    """One model type: builds variants of its config and compares the shapes."""

    def __init__(self, model_type: str, task: str) -> None:
        from transformers import CONFIG_MAPPING

        self.kind, self.task = CONFIG_MAPPING[model_type], task
        self.needed = shrink.NEEDED.get(model_type, {})
        self.full = self.kind(**self.needed)
        self.small = shrink.shrunken(model_type)
        self.document = self.small.to_dict()
        self.full_document = self.full.to_dict()
        self.aliases = dict(self.kind.attribute_map)
        self.builds = 0
        for document in (self.document, self.full_document):
            for _, part in parts(document):
                part.update({name: value for name, value in UNSET.items() if name in part})
            document.update(SHOWN.get(model_type, {}))
        self.mix_layer_kinds()
        self.nulls = self.stand_ins()

    def mix_layer_kinds(self) -> None:
        """Lists with an entry a layer get one entry of every value that the class knows: defaults are often all
        alike."""
        for small, document in ((True, self.document), (False, self.full_document)):
            for prefix, part in parts(document):
                for name, value in part.items():
                    if not (
                        isinstance(value, list) and len(value) > 2 and all(isinstance(each, str) for each in value)
                    ):
                        continue
                    place = 1
                    for other in LAYER_KINDS:
                        if other in value or place >= len(value) - 1:
                            continue
                        mixed = [*value[:place], other, *value[place + 1 :]]
                        built = self.shapes({prefix + name: mixed}, small=small)
                        if built is not None and any(len(set(kinds)) > 1 for kinds in built.kinds.values()):
                            value[:] = mixed
                            place += 1

    def stand_ins(self) -> dict[str, str]:
        """Fields that are null by default and then follow others: filled in, where that changes nothing."""
        found = {}
        for prefix, part in parts(self.document):
            for name, formulas in NULLS.items():
                if part.get(name) is not None or (name not in part and name not in UNLISTED):
                    continue
                before = self.shapes({})
                for formula in formulas:
                    names = names_in(formula)
                    if before is None or not all(type(part.get(each)) is int for each in names):
                        continue
                    value = value_of(formula, part)
                    if value.denominator != 1 or value < 1:
                        continue
                    same = self.shapes({prefix + name: int(value)})
                    twice = self.shapes({prefix + name: 2 * int(value)})
                    read = name in part or (twice is not None and twice.widths != before.widths)
                    if same is not None and same.widths == before.widths and read:
                        part[name] = int(value)
                        found[prefix + name] = prefixed(formula, prefix)
                        break
        return found

    def shapes(self, changes: dict[str, Any], small: bool = True) -> Built | None:
        """What the class builds with these fields changed (dotted names); None when it refuses them."""
        self.builds += 1
        document = json.loads(json.dumps(self.document if small else self.full_document, default=str))
        for name, value in changes.items():
            place, *rest = place_of(document, name)
            place[rest[0]] = value
        try:
            config = self.kind.from_dict(document)
            for name, value in changes.items():
                if get(config, name) != value:
                    return None
            return Built(table.table(table.build(config, self.task)))
        except Slow:
            raise
        except Exception:  # any refusal means that this combination cannot exist
            return None

    def constructed(self, values: dict[str, Any]) -> Any:
        nested: dict[str, Any] = dict(self.needed)
        for name, value in values.items():
            prefix, _, leaf = name.rpartition(".")
            if prefix:
                nested.setdefault(prefix, {})[leaf] = value
            else:
                nested[leaf] = value
        return self.kind(**nested)

    def sizes(self) -> dict[str, int]:
        """Fields that may be widths: positive whole numbers, those of nested configs with dotted names."""
        found: dict[str, int] = {}
        for prefix, part in parts(self.document):
            for name, value in part.items():
                if type(value) is int and value > 0 and name not in self.aliases and not NOT_SIZES.search(name):
                    found[prefix + name] = value
        return {name: v for name, v in found.items() if name.rpartition(".")[2] not in shrink.COUNTS}

    def flags(self, base: Built) -> dict[str, Any]:
        """Boolean fields whose other value changes the table, with that value."""
        found: dict[str, Any] = {}
        for prefix, part in parts(self.document):
            for name, value in part.items():
                if isinstance(value, bool) and not re.search(r"cache|output_|return|^is_|chunk|torchscript", name):
                    other = self.shapes({prefix + name: not value})
                    if other is not None and (other.widths != base.widths or other.tied != base.tied):
                        found[prefix + name] = not value
                for choice in CHOICES.get(name, ()):
                    other = self.shapes({prefix + name: choice}) if isinstance(value, str) and value != choice else None
                    if other is not None and other.widths != base.widths:
                        found[prefix + name] = choice
        for name in self.sizes():
            other = None if name in self.nulls else self.shapes({name: None})
            if other is not None and other.shapes != base.shapes:
                found[name] = None
        return found
