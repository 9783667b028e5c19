"""Which modules an adapter reaches: presets as exact values for PEFT, counts and shares.

Knows: what each preset means for a model, by the roles of its modules, and how many parameters a config trains.
Does not know: PEFT's matching (reach.py), what is wrong with a choice (target_findings.py), what other methods than
LoRA add (methods.py), or bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding
from peftsmith.model import conversion, methods, reach, serving
from peftsmith.model.anatomy import Anatomy
from peftsmith.model.modules import Module, Skeleton
from peftsmith.model.reach import Reach, Value
from peftsmith.model.roles import ATTENTION, MLP, Role, role

PRESETS = ("query-value", "attention", "mlp", "all-linear", "experts", "everything")
LARGEST_RANK = 4096
_LAYER = re.compile(r"^(?:.*?\.)?(\d+)\.")
_NAMES_SHOWN = 8
Fields = Mapping[str, Any]
# Fields of a config that say where adapters go; all others are options of the method.
_PLACES = (
    "target_modules", "target_parameters", "exclude_modules", "modules_to_save", "layers_to_transform",
    "layers_pattern", "task_type",
)  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """What goes into a PEFT config to reach the wanted modules, by PEFT's own field names; empty ones stay out."""

    target_modules: Value = field(default_factory=list)
    target_parameters: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    exclude_modules: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"target_modules": self.target_modules}
        for name in ("target_parameters", "modules_to_save", "exclude_modules"):
            if getattr(self, name):
                found[name] = list(getattr(self, name))
        return found


@dataclass(frozen=True)
class Choice:
    """One way to set the targets. `share` is trainable / (all parameters, adapter included)."""

    preset: str
    rank: int
    value: Value
    config: dict[str, Any]
    modules: int
    layers_matched: int
    layers_present: int
    trainable: int
    share: float
    serving: dict[str, str]
    findings: list[Finding]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "findings": [each.id for each in self.findings]}


def find(
    anatomy: Anatomy,
    *,
    rank: int,
    preset: str | None = None,
    include: Sequence[Role] = (),
    method: str = "LORA",
    rank_pattern: Mapping[str, int] | None = None,
) -> list[Choice]:
    """The presets (or one of them) for this model at this rank; empty when its modules are not known. A preset that
    means nothing here (experts of a dense model) is left out.

    `include` lets a preset reach "router", "head" or "tower" modules too. Raises PeftsmithError for an impossible rank
    or an unknown preset.
    """
    check_rank(rank)
    if preset is not None and preset not in PRESETS:
        raise PeftsmithError("There is no such preset", value=preset, next_step=f"Use one of {', '.join(PRESETS)}.")
    if not anatomy.supported:
        return []
    found = (
        _choice(anatomy, name, rank, include, method, rank_pattern or {}) for name in PRESETS if preset in (None, name)
    )
    return [choice for choice in found if choice is not None]


def selection(anatomy: Anatomy, preset: str, include: Sequence[Role] = (), method: str = "LORA") -> Selection | None:
    """The exact PEFT values of a preset; None when the model has nothing of that kind that the method can adapt."""
    skeleton = known(anatomy)
    wanted = [module.name for module in skeleton.modules if _is_wanted(module, preset, include)]
    if reach.guards_kernels(skeleton, method):
        wanted = [name for name in wanted if name.rpartition(".")[2] not in reach.READ_BY_KERNELS]
    parameters = _fused(skeleton, preset, include) if method == "LORA" else ()
    if not wanted and not parameters:
        return None
    renamed = conversion.names_of(skeleton.model_type) if method == "LORA" else {}
    if renamed:  # named as parameters, these modules stay what they are
        moved = [name for name in wanted if name.rpartition(".")[2] in renamed]
        parameters = (*(f"{name}.weight" for name in moved), *parameters)
        wanted = [name for name in wanted if name not in moved]
    if wanted and not renamed and set(wanted) == set(reach.all_linear(skeleton)) and _head_is_plain(skeleton):
        value: Value = "all-linear"
    else:
        value = _shortest(skeleton, wanted, patterns=not renamed)
    return Selection(value, _short(skeleton, parameters), _classifier(skeleton))


def _is_wanted(module: Module, preset: str, include: Sequence[Role]) -> bool:
    if module.kind not in reach.LINEAR:
        return False
    kind = role(module.name)
    if kind in ("router", "head", "tower", "embedding"):
        return kind in include
    if preset == "experts":
        return kind == "expert"
    if preset == "query-value":
        return kind in ("query", "value", "qkv") or module.leaf in ("kv_b_proj", "kv_proj", "to_kv")
    if preset == "attention":
        return kind in ATTENTION
    if preset == "mlp":
        return kind in (*MLP, "expert")
    return True


def _head_is_plain(skeleton: Skeleton) -> bool:
    """Whether get_output_embeddings surely returns the head: some old classes return their input embedding, ChatGLM's
    returns nothing."""
    heads = [m.leaf for m in skeleton.modules if m.kind in reach.LINEAR and role(m.name) == "head"]
    return not {"output_projection", "output_layer"} & set(heads)


def _classifier(skeleton: Skeleton) -> tuple[str, ...]:
    """The head that a classifier must train beside its adapter, since it starts at random."""
    if not reach.is_classifier(skeleton):
        return ()
    tops = {module.name.split(".")[0] for module in skeleton.modules}
    return tuple(name for name in reach.HEADS_OF_CLASSIFIERS if name in tops)


def _fused(skeleton: Skeleton, preset: str, include: Sequence[Role]) -> tuple[str, ...]:
    """Full paths of the parameters that a preset takes: fused experts, and routers that are no linear modules."""
    found = []
    for module in skeleton.modules:
        kind = role(module.name)
        if module.kind == "experts" and preset in ("experts", "everything") and (kind != "tower" or "tower" in include):
            found += [f"{module.name}.{leaf}" for leaf, shape in module.parameters.items() if len(shape) == 3]
        elif kind == "router" and "router" in include and module.kind == "other":
            found += [f"{module.name}.{leaf}" for leaf, shape in module.parameters.items() if len(shape) == 2]
    return tuple(found)


def _short(skeleton: Skeleton, paths: Sequence[str]) -> tuple[str, ...]:
    """Parameters as target_parameters names them: by what follows the layer's number, where that names no others."""
    short = tuple(dict.fromkeys(re.split(r"\.\d+\.", path, maxsplit=1)[-1] for path in paths))
    return short if {m.name for m in reach.parameters(skeleton, short)} == set(paths) else tuple(paths)


def _shortest(skeleton: Skeleton, wanted: Sequence[str], *, patterns: bool) -> Value:
    """Leaf names where they reach exactly `wanted`, else a regular expression that does, or else the full paths."""
    every = skeleton.names
    leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in wanted))
    if set(reach.matching(every, leaves)) == set(wanted) and not any(map(str.isdigit, leaves)):
        return leaves
    groups: dict[str, dict[str, None]] = {}
    for name in wanted:
        parent, _, leaf = name.rpartition(".")
        groups.setdefault(re.sub(r"\d+", "#", parent), {})[leaf] = None
    parts = []
    for parent, names in groups.items():
        stem = re.escape(parent).replace(r"\#", r"\d+")
        inner = "|".join(map(re.escape, names))
        parts.append((stem + r"\." if stem else "") + (f"({inner})" if len(names) > 1 else inner))
    pattern = "|".join(parts)
    return pattern if patterns and set(reach.matching(every, pattern)) == set(wanted) else list(wanted)


def fields_of(anatomy: Anatomy, value: Value | Mapping[str, Any] | Sequence[str], method: str = "LORA") -> Fields:
    """The PEFT fields that a preset's name, a value for target_modules or a set of fields stands for."""
    if isinstance(value, str) and value in PRESETS and value != "all-linear":
        chosen = selection(anatomy, value, method=method)
        return chosen.to_json() if chosen else {"target_modules": []}
    return value if isinstance(value, Mapping) else {"target_modules": value}


def adapted(anatomy: Anatomy, value: Value | Mapping[str, Any] | Sequence[str], *, method: str = "LORA") -> set[str]:
    """Full paths of the modules that a preset's name, a value for target_modules or a whole set of PEFT fields adapts;
    modules with fused experts among them."""
    return reach.reach(known(anatomy), fields_of(anatomy, value, method), method=method).names


def count(anatomy: Anatomy, target_modules: Value | Sequence[str], rank: int) -> int:
    """Trainable parameters of plain LoRA at `rank` on what `target_modules` matches, exactly as PEFT would add."""
    return trainable(anatomy, {"target_modules": target_modules}, rank)


def trainable(
    anatomy: Anatomy,
    fields: Fields,
    rank: int,
    *,
    method: str = "LORA",
    rank_pattern: Mapping[str, int] | None = None,
) -> int:
    """Trainable parameters that PEFT adds for these config fields; copies of modules_to_save count as well.

    `rank_pattern` maps the end of a path, or a regular expression for it, to a rank, as in LoraConfig. Fields that do
    not say where adapters go (use_dora, bias, feedforward_modules) are options of the method.
    """
    check_rank(rank)
    skeleton = known(anatomy)
    given = {**fields, "rank_pattern": {**(fields.get("rank_pattern") or {}), **(rank_pattern or {})}}
    found = reach.reach(skeleton, given, rank, method)
    options = {key: value for key, value in given.items() if key not in _PLACES}
    every_bias = options.get("bias") == "all"
    if every_bias:
        options["bias"] = "none"
    options |= {"r": rank, "rank_pattern": dict(found.rank_pattern)}
    modules = [*found.modules, *found.parameters]
    if method == "LORA":
        modules = [reach.as_matrix(module) for module in modules]
    total = methods.trainable(method, sizes(anatomy), options, modules)
    total += sum(module.elements for module in found.copies)
    return total + (_biases(skeleton, found) if every_bias else 0)


def _biases(skeleton: Skeleton, found: Reach) -> int:
    """What bias="all" trains besides: every parameter with "bias" in its path that is not copied anyway."""
    copied = {module.name for module in found.copies}
    return sum(
        prod(shape)
        for module in skeleton.modules
        for leaf, shape in module.parameters.items()
        if module.name not in copied
        and "bias" in f"{module.name}.{leaf}"
        and f"{module.name}.{leaf}" not in skeleton.tied
    )


def sizes(anatomy: Anatomy) -> methods.Sizes:
    """The widths that whole-model methods need."""
    return methods.Sizes(
        anatomy.hidden, anatomy.layers, anatomy.heads, anatomy.kv_heads, anatomy.head_dim, anatomy.vocab,
        anatomy.intermediate,
    )  # fmt: skip


def share(anatomy: Anatomy, trainable: int) -> float:
    """Of all parameters of base and adapter together, as PEFT prints it (0 to 1)."""
    return trainable / (anatomy.parameters + trainable) if anatomy.parameters else 0.0


def smallest(anatomy: Anatomy, *, rank: int, most_share: float, method: str = "LORA") -> Choice | None:
    """The preset that adapts most while at most `most_share` (0 to 1) of all parameters train. Where none does at this
    rank, the rank is halved until one does; None when none does at rank 1."""
    check_rank(rank)
    while rank:
        fitting = [choice for choice in find(anatomy, rank=rank, method=method) if choice.share <= most_share]
        if fitting:
            return max(fitting, key=lambda choice: (choice.layers_matched, choice.trainable))
        rank //= 2
    return None


def unmatched(anatomy: Anatomy, target_modules: Value | Sequence[str]) -> list[str]:
    """The names (or the one regex) of `target_modules` that match nothing that LoRA can adapt."""
    if isinstance(target_modules, str):
        return [] if adapted(anatomy, {"target_modules": target_modules}) else [target_modules]
    skeleton = known(anatomy)
    renamed = conversion.names_of(skeleton.model_type)
    names = adaptable(anatomy)
    return [
        name for name in target_modules if not reach.matching(names, [name]) and name.rpartition(".")[2] not in renamed
    ]


def match(anatomy: Anatomy, target_modules: Value | Sequence[str]) -> dict[str, tuple[int, int]]:
    """The modules that PEFT would adapt, full path to (in, out). Raises PeftsmithError for an unknown architecture.

    A list matches whole names and endings after a dot, a string is "all-linear" or a regex for the whole path.
    """
    found = reach.reach(known(anatomy), {"target_modules": target_modules})
    return {module.name: (module.inputs, module.outputs) for module in found.modules}


def adaptable(anatomy: Anatomy) -> dict[str, tuple[int, int]]:
    """Every module that LoRA can adapt, with its widths: linear, embedding and convolution, tied heads too."""
    return {m.name: (m.inputs, m.outputs) for m in known(anatomy).modules if m.kind in reach.ADAPTABLE}


def layers_of(names: Iterable[str]) -> set[int]:
    """Numbers of the layers that these modules lie in; towers count no layers of the language model."""
    return {int(found.group(1)) for name in names if role(name) != "tower" and (found := _LAYER.match(name))}


def check_rank(rank: int) -> None:
    if type(rank) is not int or not 1 <= rank <= LARGEST_RANK:
        raise PeftsmithError(
            f"The rank must be a whole number from 1 to {LARGEST_RANK}", value=rank, next_step="Try 16."
        )


def known(anatomy: Anatomy) -> Skeleton:
    """The model's modules. Raises PeftsmithError when they are not known exactly."""
    if anatomy.skeleton is None:
        raise PeftsmithError(
            f"The modules of {anatomy.model_type} models are not known exactly",
            value=anatomy.id,
            next_step="Give the folder with the safetensors files, or a training environment (make_environment).",
        )
    return anatomy.skeleton


def _choice(
    anatomy: Anatomy, preset: str, rank: int, include: Sequence[Role], method: str, rank_pattern: Mapping[str, int]
) -> Choice | None:
    chosen = selection(anatomy, preset, include, method)
    if chosen is None:
        return None
    return own(anatomy, chosen.to_json(), rank=rank, method=method, rank_pattern=rank_pattern, name=preset)


def own(
    anatomy: Anatomy,
    config: Mapping[str, Any],
    *,
    rank: int,
    method: str = "LORA",
    rank_pattern: Mapping[str, int] | None = None,
    name: str = "yours",
) -> Choice:
    """What these fields of a PEFT config (target_modules and its kin) adapt, count, and get from servers.

    Raises PeftsmithError for an impossible rank, an unknown architecture, and fields that no config takes.
    """
    from peftsmith.model import target_findings

    check_rank(rank)
    reached = adapted(anatomy, config, method=method)
    total = trainable(anatomy, config, rank, method=method, rank_pattern=rank_pattern)
    return Choice(
        preset=name,
        rank=rank,
        value=config.get("target_modules") or [],
        config=dict(config),
        modules=len(reached),
        layers_matched=len(layers_of(reached)),
        layers_present=anatomy.layers,
        trainable=total,
        share=share(anatomy, total),
        serving=serving.verdicts(
            anatomy.model_type,
            rank,
            ends_adapted=bool(config.get("modules_to_save")),
            method=method,
            experts=bool(config.get("target_parameters")),
        ),
        findings=[
            replace(each, message=f"{name}: {each.message}")
            for each in target_findings.judge(anatomy, config, rank, method=method)
        ],
    )


def shown(value: Value | Sequence[str]) -> list[str]:
    return [files.clean(name, 100) for name in ([value] if isinstance(value, str) else value)[:_NAMES_SHOWN]]
