"""Writes knowledge/architectures.jsonl: what config.json implies for every model type of the installed transformers.

Run as: python -m peftsmith.worker.catalogue OUT.jsonl [--types a,b]      (training environment; minutes to an hour)

Every width is found by experiment: the real class is built on the meta device with one field of its config changed at a
time, then with several, and the width is written as a sum of products of fields. Formulas count only when they also
hold for configs that had no part in finding them; what does not is left out, and the type is then marked incomplete.
Knows: how to experiment. Does not know: how a config.json is read with the result (model/layouts.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import signal
import sys
import time
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

from peftsmith.worker import shrink, table

MOST_FIELDS_OF_A_WIDTH = 6
MOST_BUILDS = 400
SECONDS_A_TYPE = 150
CHECKS = 3
MOST_LAYER_KINDS = 8
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
# Layers of these follow lists of indices or two periods at once, which no rule here can tell: headers answer for them.
LEFT_OUT = ("bamba", "jamba", "zamba", "zamba2", "nemotron_h")
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
Width = tuple[str, int, str, int]  # stack kind and module, which parameter, which dimension
Shapes = dict[tuple[str, str], tuple[int, ...]]


class Slow(Exception):
    """A type that takes too long is left out."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--types", help="only these, comma-separated")
    parser.add_argument("--task", action="append", help="only these tasks")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    wanted = set(arguments.types.split(",")) if arguments.types else None
    done = _read(arguments.output)
    signal.signal(signal.SIGALRM, too_slow)
    for task, model_type in every_type(arguments.task or list(table.TASKS)):
        key = f"{model_type}:{task}"
        if (
            model_type in LEFT_OUT
            or (wanted is not None and model_type not in wanted)
            or (wanted is None and key in done)
        ):
            continue
        began = time.monotonic()
        signal.alarm(SECONDS_A_TYPE)
        try:
            entry = Experiment(model_type, task).entry()
        except Exception as error:  # one type that cannot be built must not end the run; it is reported
            print(f"{key}: left out, {type(error).__name__}: {str(error)[:160]}", file=sys.stderr, flush=True)
            continue
        finally:
            signal.alarm(0)
        done[key] = {"key": key, "transformers": transformers.__version__, **entry}
        state = "complete" if entry["complete"] else f"incomplete: {entry['missing'][:3]}"
        print(f"{key}: {state}, {time.monotonic() - began:.1f} s", flush=True)
        _write(arguments.output, done)
    return 0


def every_type(tasks: list[str]) -> list[tuple[str, str]]:
    """(task, model type) for what the tasks' Auto classes know."""
    from transformers.models.auto import modeling_auto

    names = {
        "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        "image-text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
        "masked-lm": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
        "sequence-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    }
    return [(task, name) for task in tasks for name in getattr(modeling_auto, names[task])]


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
            for _, part in _parts(document):
                part.update({name: value for name, value in UNSET.items() if name in part})
            document.update(SHOWN.get(model_type, {}))
        self.mix_layer_kinds()
        self.nulls = self.stand_ins()

    def entry(self) -> dict[str, Any]:
        base = self.shapes({})
        if base is None:
            raise ValueError("the shrunken config does not build")
        flags = self.flags(base)
        expressions, missing = self.fitted({}, base)
        entry: dict[str, Any] = {
            "architecture": table.class_of(self.small, self.task).__name__,
            "modules": self.described(base, expressions),
            "containers": base.containers,
            "tied": base.tied,
            "stacks": self.stacks(),
            "patches": {},
        }
        missing += [f"layers of {stack}" for stack, rule in entry["stacks"].items() if rule is None]
        for name, value in flags.items():
            other = self.shapes({name: value})
            assert other is not None
            more, lost = self.fitted({name: value}, other)
            described = self.described(other, more)
            patch = {key: row for key, row in described.items() if entry["modules"].get(key) != row}
            entry["patches"][f"{name}={json.dumps(value)}"] = {
                "set": patch,
                "drop": [key for key in entry["modules"] if key not in described],
                "tied": other.tied if other.tied != base.tied else None,
            }
            missing += lost
        entry["fields"] = self.fields(entry)
        entry["aliases"] = {k: v for k, v in self.aliases.items() if v in entry["fields"]}
        entry["complete"], entry["missing"] = not missing, sorted(set(missing))
        return entry

    def mix_layer_kinds(self) -> None:
        """Lists with an entry a layer get one entry of every value that the class knows: defaults are often all
        alike."""
        for small, document in ((True, self.document), (False, self.full_document)):
            for prefix, part in _parts(document):
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
        for prefix, part in _parts(self.document):
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
                        found[prefix + name] = _prefixed(formula, prefix)
                        break
        return found

    def shapes(self, changes: dict[str, Any], small: bool = True) -> Built | None:
        """What the class builds with these fields changed (dotted names); None when it refuses them."""
        self.builds += 1
        document = json.loads(json.dumps(self.document if small else self.full_document, default=str))
        for name, value in changes.items():
            place, *rest = _place(document, name)
            place[rest[0]] = value
        try:
            config = self.kind.from_dict(document)
            for name, value in changes.items():
                if _get(config, name) != value:
                    return None
            return Built(table.table(table.build(config, self.task)))
        except Slow:
            raise
        except Exception:  # any refusal means that this combination cannot exist
            return None

    def sizes(self) -> dict[str, int]:
        """Fields that may be widths: positive whole numbers, those of nested configs with dotted names."""
        found: dict[str, int] = {}
        for prefix, part in _parts(self.document):
            for name, value in part.items():
                if type(value) is int and value > 0 and name not in self.aliases and not NOT_SIZES.search(name):
                    found[prefix + name] = value
        return {name: v for name, v in found.items() if name.rpartition(".")[2] not in shrink.COUNTS}

    def flags(self, base: Built) -> dict[str, Any]:
        """Boolean fields whose other value changes the table, with that value."""
        found: dict[str, Any] = {}
        for prefix, part in _parts(self.document):
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

    def fitted(self, fixed: dict[str, Any], base: Built) -> tuple[dict[Any, str], list[str]]:
        """An expression for every width, and the widths without one. Widths: (module, parameter, dimension)."""
        sizes = self.sizes()
        depends: dict[Any, list[str]] = {}
        refused: list[int] = []
        for name, value in sizes.items():
            other = self.shapes({**fixed, name: 2 * value})
            if other is None or other.shapes.keys() != base.shapes.keys():
                refused.append(value)
                continue
            for place, width in base.widths.items():
                if other.widths.get(place) != width:
                    depends.setdefault(place, []).append(name)
        known: dict[tuple[str, ...], Built | None] = {(): base}
        expressions: dict[Any, str] = {}
        for place, width in base.widths.items():
            names = depends.get(place, [])
            if names:
                found = self.fit(place, names, sizes, fixed, known)
            else:  # a constant, unless it may follow a field that could not be varied
                found = None if any(width > 1 and (width % v == 0 or v % width == 0) for v in refused) else str(width)
            if found is not None:
                expressions[place] = found
        wrong = self.disproved(expressions, sizes, fixed, base)
        missing = [place for place in base.widths if place not in expressions or place in wrong]
        return (
            {place: text for place, text in expressions.items() if place not in wrong},
            [f"{module}.{leaf}[{axis}]" for module, leaf, axis in missing],
        )

    def fit(
        self, place: Any, names: list[str], sizes: dict[str, int], fixed: dict[str, Any],
        known: dict[tuple[str, ...], Built | None],
    ) -> str | None:  # fmt: skip
        """A sum of products of fields, by doubling every subset of them; a number of heads may also divide, and is then
        halved instead. None when there is no such formula."""
        if len(names) > MOST_FIELDS_OF_A_WIDTH:
            return None
        dividing = [name for name in names if re.search(r"heads?$", name) and not re.search(r"kv|key_value", name)]
        found = self._sum(place, names, (), sizes, fixed, known) or self._product(place, names, sizes, known)
        for name in dividing if found is None else []:
            found = found or self._sum(place, names, (name,), sizes, fixed, known)
        return found

    def _product(
        self, place: Any, names: list[str], sizes: dict[str, int], known: dict[tuple[str, ...], Built | None]
    ) -> str | None:
        """One product with quotients, where fields can only be doubled one at a time."""
        base = known[()]
        assert base is not None
        factor = Fraction(base.widths[place])
        over: list[str] = []
        under: list[str] = []
        for name in names:
            built = known.get((name,))
            ratio = Fraction(built.widths[place], base.widths[place]) if built and place in built.widths else None
            if ratio not in (2, Fraction(1, 2)):
                return None
            (over if ratio == 2 else under).append(name)
            factor = factor / sizes[name] if ratio == 2 else factor * sizes[name]
        text = _term(factor, tuple(over))
        return None if text is None else text + "".join(f"/{name}" for name in under)

    def _sum(
        self, place: Any, names: list[str], inverse: tuple[str, ...], sizes: dict[str, int], fixed: dict[str, Any],
        known: dict[tuple[str, ...], Built | None],
    ) -> str | None:  # fmt: skip
        seen: dict[tuple[str, ...], int] = {}
        for count in range(len(names) + 1):
            for chosen in itertools.combinations(names, count):
                key = tuple("/" + name if name in inverse else name for name in chosen)
                if key not in known:
                    if self.builds > MOST_BUILDS:
                        return None
                    changes = {n: sizes[n] // 2 if n in inverse else 2 * sizes[n] for n in chosen}
                    known[key] = self.shapes({**fixed, **changes})
                built = known[key]
                if built is None or place not in built.widths:
                    return None
                seen[chosen] = built.widths[place]
        # doubling a field adds its part once more: differences give every part together with the parts that contain it
        together = {
            chosen: sum(
                (-1) ** (len(chosen) - count) * seen[part]
                for count in range(len(chosen) + 1)
                for part in itertools.combinations(chosen, count)
            )
            for chosen in seen
        }
        terms = []
        for chosen in seen:
            alone = sum(
                (-1) ** (len(wider) - len(chosen)) * size
                for wider, size in together.items()
                if set(chosen) <= set(wider)
            )
            if alone:
                over = tuple(name for name in chosen if name not in inverse)
                under = tuple(name for name in chosen if name in inverse)
                factor = Fraction(alone) / _ratio([sizes[n] for n in over]) * _ratio([sizes[n] for n in under])
                text = _term(factor, over)
                if text is None:
                    return None
                terms.append(text + "".join(f"/{name}" for name in under))
        return "+".join(terms)

    def disproved(
        self, expressions: dict[Any, str], sizes: dict[str, int], fixed: dict[str, Any], base: Built
    ) -> set[Any]:
        """Widths whose expression fails on configs with several fields changed at random."""
        used = sorted({name for text in expressions.values() for name in names_in(text)})
        draw = random.Random(0)
        wrong: set[Any] = set()
        passed = 0
        for _ in range(12 * CHECKS):
            if passed >= CHECKS:
                return wrong
            changed = {name: draw.choice((1, 2, 4)) * sizes[name] for name in used if draw.random() < 0.6}
            built = self.shapes({**fixed, **changed})
            if built is None or built.shapes.keys() != base.shapes.keys():
                continue
            passed += 1
            values = {**sizes, **changed}
            wrong |= {p for p, text in expressions.items() if value_of(text, values) != built.widths[p]}
        return wrong if passed else set(expressions) if used else wrong

    def stacks(self) -> dict[str, Any]:
        """Of every stack: the field that counts its layers, and the rule by which a layer gets its kind."""
        full = self.shapes({}, small=False)
        if full is None:
            return {}
        found: dict[str, Any] = {}
        for stack, kinds in full.kinds.items():
            count = self.count_of(stack, len(kinds))
            rules = self.rules_of(kinds)
            found[stack] = {"count": count, "rules": rules} if count is not None and rules else None
        return found

    def count_of(self, stack: str, layers: int) -> str | None:
        """The field that holds this stack's number of layers: changing it alone changes the stack's length."""
        candidates = [
            prefix + name
            for prefix, part in _parts(self.full_document)
            for name, value in part.items()
            if value == layers and type(value) is int and name not in self.aliases
        ]
        named = [name for name in candidates if name.rpartition(".")[2] in shrink.COUNTS]
        for name in named or candidates:
            for change in ({name: 1}, {name: layers + 1}):
                built = self.shapes({**change, **self._lists(name, layers, change[name])}, small=False)
                if built is not None and len(built.kinds.get(stack, [])) == change[name]:
                    return name
        return None

    def _lists(self, name: str, layers: int, wanted: int) -> dict[str, Any]:
        """Lists with an entry a layer, made as long as the layers are to be."""
        prefix = name.rpartition(".")[0]
        part = dict(_parts(self.full_document))[prefix + "." if prefix else ""]
        return {
            (prefix + "." if prefix else "") + key: (value * 2)[:wanted]
            for key, value in part.items()
            if isinstance(value, list) and len(value) == layers
        }

    def rules_of(self, kinds: list[str]) -> list[list[Any]]:
        """How the kind of a layer follows from the config, every way that explains this one: all alike, by lists with
        an entry a layer, the first ones, every n-th. A reader takes the first whose fields the config has."""
        different = sorted(set(kinds))
        if len(different) == 1:
            return [["uniform", different[0]]]
        if len(different) > 2 and len(set(kinds[1:-1])) != 1:
            return self._by_lists(kinds)
        rules = self._by_lists(kinds)
        for prefix, part in _parts(self.full_document):
            for name, value in part.items():
                if (
                    type(value) is not int
                    or not 0 < value < len(kinds)
                    or name in self.aliases
                    or NOT_SIZES.search(name)
                ):
                    continue
                if len(set(kinds[:value])) == 1 and len(set(kinds[value:])) == 1:
                    rules += self._checked(["first", prefix + name, kinds[0], kinds[-1]])
                for offset in (0, 1):
                    every = {kind for i, kind in enumerate(kinds) if (i + offset) % value == 0}
                    others = {kind for i, kind in enumerate(kinds) if (i + offset) % value}
                    if len(every) == 1 and len(others) == 1:
                        rules += self._checked(["every", prefix + name, offset, every.pop(), others.pop()])
        if not rules and len(set(kinds[1:])) == 1:
            rules.append(["first", "1", kinds[0], kinds[-1]])
        return rules

    def _checked(self, rule: list[Any]) -> list[list[Any]]:
        """The rule, if layers also follow it when its field has another value and no list says otherwise."""
        name = rule[1]
        value = _get(self.full, name)
        try:
            config = self._constructed({name: value + 1})
            built = Built(table.table(table.build(config, self.task)))
        except Slow:
            raise
        except Exception:  # a value that the class refuses proves nothing
            return []
        longest = max(built.kinds.values(), key=len, default=[])
        wanted = [kind_by(rule, index, value + 1) for index in range(len(longest))]
        partition = [wanted.index(kind) for kind in wanted]
        return [rule] if partition == [longest.index(kind) for kind in longest] else []

    def _by_lists(self, kinds: list[str]) -> list[list[Any]]:
        for prefix, part in _parts(self.full_document):
            lists = {
                key: value
                for key, value in part.items()
                if isinstance(value, list)
                and len(value) == len(kinds)
                and len(set(map(str, value))) <= MOST_LAYER_KINDS
            }
            for count in (1, 2):
                for chosen in itertools.combinations(sorted(lists), count):
                    mapping: dict[str, str] = {}
                    entries = [json.dumps([lists[name][i] for name in chosen], default=str) for i in range(len(kinds))]
                    if all(mapping.setdefault(entry, kind) == kind for entry, kind in zip(entries, kinds, strict=True)):
                        return [["lists", [prefix + name for name in chosen], mapping]]
        return []

    def described(self, built: Built, expressions: dict[Any, str]) -> dict[str, Any]:
        """Module template (with its layer kind) -> [kind, class, {parameter: [expressions]}]; unfitted ones left
        out."""
        rows: dict[str, Any] = {}
        for name, (kind, cls, shapes) in built.modules.items():
            texts = {
                leaf: [expressions.get((name, leaf, axis)) for axis in range(len(shape))]
                for leaf, shape in shapes.items()
            }
            if all(text is not None for dims in texts.values() for text in dims):
                rows[name] = [kind, cls, texts, *(["depthwise"] if name in built.depthwise else [])]
        return rows

    def fields(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Default of every field that a formula, a rule or a flag reads: a value, or {"is": formula} when it
        follows."""
        texts = [text for _, _, shapes, *_ in entry["modules"].values() for dims in shapes.values() for text in dims]
        for patch in entry["patches"].values():
            texts += [text for _, _, shapes, *_ in patch["set"].values() for dims in shapes.values() for text in dims]
        used = {name for text in texts for name in names_in(text)}
        used |= {rule["count"] for rule in entry["stacks"].values() if rule}
        used |= {flag.partition("=")[0] for flag in entry["patches"]}
        for stack in entry["stacks"].values():
            for rule in stack["rules"] if stack else []:
                used |= set(rule[1]) if rule[0] == "lists" else {rule[1]} if rule[0] in ("first", "every") else set()
        used.discard("1")
        return {name: self.default_of(name, used) for name in sorted(used)}

    def default_of(self, name: str, used: set[str]) -> Any:
        """The default, and what the class makes of null; {"is": formula} when the default follows other fields."""
        if name in self.nulls:
            return {"is": self.nulls[name]}
        try:
            value = _get(self.full, name)
        except AttributeError:
            return None
        if type(value) is not int:
            return value if isinstance(value, bool | str | None | list) else None
        follows = []
        for other in sorted(used - {name}):
            if other in self.nulls:
                continue
            changed = _get(self.full, other)
            if type(changed) is not int:
                continue
            try:
                made = _get(self._constructed({other: 2 * changed}), name)
            except Slow:
                raise
            except Exception:  # a constructor that refuses this value says nothing about the default
                continue
            if made != value:
                follows.append((other, Fraction(made, value)))
        if not follows:
            return value
        text = _term(
            Fraction(value)
            / _ratio([_get(self.full, n) for n, r in follows if r == 2])
            * _ratio([_get(self.full, n) for n, r in follows if r == Fraction(1, 2)]),
            tuple(n for n, r in follows if r == 2),
        )
        if text is None or any(ratio not in (2, Fraction(1, 2)) for _, ratio in follows):
            return value
        return {"is": text + "".join(f"/{n}" for n, ratio in follows if ratio != 2)}

    def _constructed(self, values: dict[str, Any]) -> Any:
        nested: dict[str, Any] = dict(self.needed)
        for name, value in values.items():
            prefix, _, leaf = name.rpartition(".")
            if prefix:
                nested.setdefault(prefix, {})[leaf] = value
            else:
                nested[leaf] = value
        return self.kind(**nested)


class Built:
    """A table with its layers taken out of the names: templates by layer kind, shapes and widths."""

    def __init__(self, document: dict[str, Any]) -> None:
        layers: dict[str, dict[int, list[Any]]] = {}
        self.modules: dict[str, tuple[str, str, dict[str, tuple[int, ...]]]] = {}
        self.kinds: dict[str, list[str]] = {}
        self.depthwise: set[str] = set()
        for name, kind, inputs, outputs, parameters, cls in document["modules"]:
            row = (kind, cls, {leaf: tuple(shape) for leaf, shape in parameters.items()})
            numbered = re.match(r"^(.*?)\.(\d+)(?:\.(.+))?$", name)
            if numbered is None:
                self.modules[name] = row
                self.depthwise |= {name} if _is_depthwise(kind, inputs, outputs, parameters) else set()
            else:
                stack, index, rest = numbered.group(1), int(numbered.group(2)), numbered.group(3) or ""
                alone = _is_depthwise(kind, inputs, outputs, parameters)
                layers.setdefault(stack, {}).setdefault(index, []).append((rest, row, alone))
        for stack, by_index in layers.items():
            labels: dict[tuple[str, ...], str] = {}
            for index in sorted(by_index):
                inner = tuple(sorted(f"{rest}:{row[0]}" for rest, row, _ in by_index[index]))
                label = labels.setdefault(inner, str(len(labels)))
                self.kinds.setdefault(stack, []).append(label)
                for rest, row, alone in by_index[index]:
                    self.modules.setdefault(f"{stack}|{label}|{rest}", row)
                    self.depthwise |= {f"{stack}|{label}|{rest}"} if alone else set()
        self.shapes = {name: tuple(row[2]) for name, row in self.modules.items()}
        self.widths = {
            (name, leaf, axis): width
            for name, (_, _, shapes) in self.modules.items()
            for leaf, shape in shapes.items()
            for axis, width in enumerate(shape)
        }
        self.tied = {_template(k): _template(v) for k, v in document["tied"].items()}
        self.containers = sorted({_template(name) for name in document["containers"]})


def _is_depthwise(kind: str, inputs: int, outputs: int, parameters: dict[str, list[int]]) -> bool:
    """A convolution with one filter a channel, which its weight's shape alone does not tell."""
    return kind == "conv" and inputs == outputs > 1 and parameters["weight"][1] == 1


def _template(name: str) -> str:
    return re.sub(r"^(.*?)\.(\d+)(?=\.|$)", r"\1.{}", name)


def kind_by(rule: list[Any], index: int, value: int) -> str:
    """The kind of layer `index` by a "first" or "every" rule whose field has this value."""
    if rule[0] == "first":
        return str(rule[2] if index < value else rule[3])
    return str(rule[3] if (index + rule[2]) % value == 0 else rule[4])


def _term(factor: Fraction, names: tuple[str, ...]) -> str | None:
    """`2*heads*head_dim`, `hidden/16`: None for a factor that no model designer would choose."""
    if factor < 0 or factor.denominator > 64 or (abs(factor.numerator) > 512 and names):
        return None
    text = "*".join(([str(factor.numerator)] if factor.numerator != 1 or not names else []) + list(names))
    return text + (f"/{factor.denominator}" if factor.denominator != 1 else "")


def names_in(text: str) -> set[str]:
    return {part for part in re.split(r"[+*/]", text) if not re.fullmatch(r"-?\d+", part)}


def value_of(text: str, values: dict[str, int]) -> Fraction:
    total = Fraction(0)
    for term in text.split("+"):
        value = Fraction(1)
        for operator, part in re.findall(r"(^|[*/])([^*/]+)", term):
            number = Fraction(int(part)) if re.fullmatch(r"-?\d+", part) else Fraction(values[part])
            value = value / number if operator == "/" else value * number
        total += value
    return total


def _prefixed(formula: str, prefix: str) -> str:
    return re.sub(r"[A-Za-z_]\w*", lambda found: prefix + found.group(0), formula)


def _ratio(numbers: list[int]) -> Fraction:
    product = Fraction(1)
    for number in numbers:
        product *= number
    return product


def _parts(document: dict[str, Any], prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
    """The document and the configs inside it, with the prefix of their fields."""
    found = [(prefix, document)]
    for name, value in document.items():
        if isinstance(value, dict) and "model_type" in value:
            found += _parts(value, f"{prefix}{name}.")
    return found


def _place(document: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    *path, leaf = name.split(".")
    for part in path:
        document = document[part]
    return document, leaf


def _get(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def too_slow(*_: Any) -> None:
    raise Slow(f"more than {SECONDS_A_TYPE} s")


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {entry["key"]: entry for entry in map(json.loads, lines)}


def _write(path: Path, done: dict[str, Any]) -> None:
    lines = [json.dumps(done[key], separators=(",", ":"), sort_keys=False) for key in sorted(done)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
