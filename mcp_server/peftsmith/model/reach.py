"""What a PEFT config adapts in a model, and what PEFT refuses: PEFT's own rules, without PEFT.

Knows: how PEFT 0.21 reads target_modules, exclude_modules, layers_to_transform, layers_pattern, target_parameters and
modules_to_save (tuners/tuners_utils.py, utils/other.py, tuners/lora/).
Does not know: presets and counts (targets.py), or whether a choice is wise (target_findings.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from peftsmith.errors import PeftsmithError
from peftsmith.model import conversion
from peftsmith.model.modules import Kind, Module, Skeleton
from peftsmith.model.roles import role

Value = list[str] | str
ADAPTABLE = ("linear", "conv1d", "embedding", "conv")
LINEAR = ("linear", "conv1d")
HEADS_OF_CLASSIFIERS = ("classifier", "score")  # peft_model.py, PeftModelForSequenceClassification
# PEFT refuses these in models with Mamba blocks, whose kernels read their weights (tuners_utils.py, _check_lora_target_
# modules_mamba).
_MAMBA_TYPES = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
_MAMBA_METHODS = ("LORA", "ADALORA", "XLORA", "RANDLORA")
READ_BY_KERNELS = ("out_proj", "conv1d")
_LONGEST_PATTERN = 20_000
_ANY_LAYER = r".*?\.[^.]*\.(?P<idx>\d+)\."


@dataclass(frozen=True)
class Reach:
    """What PEFT would wrap. `parameters` are those that target_parameters names, each as a module of its own by its
    full path; `copies` are trained whole (modules_to_save); `unsupported` are matched modules that LoRA cannot adapt;
    `refused` says why else PEFT would stop."""

    modules: tuple[Module, ...]
    parameters: tuple[Module, ...] = ()
    copies: tuple[Module, ...] = ()
    unsupported: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    converted: tuple[str, ...] = ()

    @property
    def names(self) -> set[str]:
        """Full paths of all modules with an adapter, fused experts among them."""
        return {m.name for m in self.modules} | {m.name.rpartition(".")[0] for m in self.parameters}


def reach(skeleton: Skeleton, fields: Mapping[str, Any], rank: int = 1, method: str = "LORA") -> Reach:
    """What PEFT makes of these config fields. Raises PeftsmithError for fields that no config takes."""
    if fields.get("target_modules") is None and not fields.get("target_parameters"):
        raise PeftsmithError(
            "target_modules is not set: PEFT would choose by its own table of model types",
            next_step="Name the target modules; an empty list with target_parameters alone.",
        )
    fields = _with_heads(skeleton, fields)
    refused = _refused_fields(fields, method)
    becomes = conversion.Conversion(fields)
    if method == "LORA":
        becomes = conversion.converted(skeleton, fields, rank, all_linear, matched)
        fields = becomes.fields
    modules, unsupported = _modules(skeleton, fields)
    named = parameters(skeleton, fields.get("target_parameters") or ()) if method == "LORA" else ()
    saved = tuple(fields.get("modules_to_save") or ())
    copies = tuple(module for module in skeleton.modules if _is_saved(module.name, saved))
    found = Reach(
        modules, named, copies, unsupported, (), fields.get("rank_pattern") or {}, becomes.names,
    )  # fmt: skip
    refused += [becomes.refused] if becomes.refused else []
    refused += _refused_modules(skeleton, fields, found, rank, method)
    return Reach(**{**vars(found), "refused": tuple(refused)})


def _with_heads(skeleton: Skeleton, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """PEFT trains the head of a classifier as well, unless the config names another task."""
    if not is_classifier(skeleton) or fields.get("task_type", "SEQ_CLS") not in ("SEQ_CLS", "TOKEN_CLS"):
        return fields
    return {**fields, "modules_to_save": [*(fields.get("modules_to_save") or ()), *HEADS_OF_CLASSIFIERS]}


def is_classifier(skeleton: Skeleton) -> bool:
    return skeleton.architecture.endswith(("ForSequenceClassification", "ForTokenClassification"))


def _modules(skeleton: Skeleton, fields: Mapping[str, Any]) -> tuple[tuple[Module, ...], tuple[str, ...]]:
    value = fields.get("target_modules") or []
    if isinstance(value, str) and value.lower() == "all-linear":
        fields = {**fields, "target_modules": all_linear(skeleton)}
    by_name = {module.name: module for module in skeleton.modules}
    names = matched(skeleton.names, fields)
    modules = tuple(by_name[name] for name in names if name in by_name and by_name[name].kind in ADAPTABLE)
    good = {module.name for module in modules}
    return modules, tuple(name for name in names if name not in good)


def all_linear(skeleton: Skeleton) -> list[str]:
    """What PEFT makes of "all-linear": every Linear and Conv1D but the output embeddings, or else the classifier's head
    (tuners_utils._maybe_include_all_linear_layers)."""
    names = [module.name for module in skeleton.modules if module.kind in LINEAR]
    head = output_embedding(skeleton) or next((name for name in ("score", "classifier") if name in names), None)
    return [name for name in names if name != head]


def output_embedding(skeleton: Skeleton) -> str | None:
    """The module that get_output_embeddings returns: a head as wide as the vocabulary (or any embedding: a small
    vocabulary has fewer rows than a table of positions)."""
    rows = {m.inputs for m in skeleton.modules if m.kind == "embedding"}
    heads = [m for m in skeleton.modules if m.kind in LINEAR and role(m.name) == "head"]
    return next((m.name for m in reversed(heads) if m.outputs in rows), None)


def matched(names: Sequence[str], fields: Mapping[str, Any]) -> list[str]:
    """Those of `names` that a config's fields reach (tuners_utils.check_target_module_exists)."""
    value = fields.get("target_modules") or []
    found = matching(names, value)
    excluded = fields.get("exclude_modules")
    if excluded:
        lost = set(matching(found, excluded))
        found = [name for name in found if name not in lost]
    for saved in fields.get("modules_to_save") or ():
        inside = compiled(rf"(^|.*\.){saved}($|\..*)")
        found = [name for name in found if not inside.match(name)]
    layers = fields.get("layers_to_transform")
    if isinstance(value, str) or layers is None or layers == []:
        return found
    exact = set(value)
    return [name for name in found if name in exact or _in_layers(name, layers, fields.get("layers_pattern") or ())]


def _in_layers(name: str, layers: int | Sequence[int], patterns: str | Sequence[str]) -> bool:
    """PEFT takes any stack without a pattern, and the first pattern that fits with several."""
    given = [patterns] if isinstance(patterns, str) else patterns
    rules = [rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\." for pattern in given] or [_ANY_LAYER]
    found = next((hit for hit in (compiled(rule).match(name) for rule in rules) if hit), None)
    return found is not None and int(found["idx"]) in ([layers] if isinstance(layers, int) else layers)


def matching(names: Iterable[str], value: Value | Sequence[str]) -> list[str]:
    """Those of `names` that a list (whole names and endings) or one regular expression matches."""
    if isinstance(value, str):
        pattern = compiled(value)
        return [name for name in names if pattern.fullmatch(name)]
    wanted = set(value)
    endings = tuple(f".{name}" for name in wanted)
    return [name for name in names if name in wanted or name.endswith(endings)]


def compiled(text: str) -> re.Pattern[str]:
    """A user's regular expression. Raises PeftsmithError when it is none or too long."""
    if len(text) > _LONGEST_PATTERN:
        raise PeftsmithError(
            f"The pattern is longer than {_LONGEST_PATTERN} characters", next_step="Give a list of names."
        )
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise PeftsmithError(
            f"target_modules is not a valid regular expression: {error}",
            value=text,
            next_step="Correct it, or give a list of names.",
        ) from error


def parameters(skeleton: Skeleton, wanted: Sequence[str]) -> tuple[Module, ...]:
    """Every parameter that target_parameters names: a whole path or its end."""
    exact = set(wanted)
    endings = tuple(f".{name}" for name in exact)
    found = []
    for module in skeleton.modules:
        for leaf, shape in module.parameters.items():
            path = f"{module.name}.{leaf}"
            if path in exact or path.endswith(endings):
                kind: Kind = "experts" if len(shape) == 3 else "linear" if len(shape) == 2 else "other"
                inputs, outputs = (shape[-1], shape[-2]) if len(shape) > 1 else (0, 0)
                found.append(Module(path, kind, inputs, outputs, {leaf: shape}, module.cls))
    return tuple(found)


def _is_saved(name: str, saved: tuple[str, ...]) -> bool:
    """Whether PEFT trains a copy of this module: it, or a module that it lies in, ends with a name of modules_to_save
    (peft/utils/other.py _set_trainable; "pre_classifier" ends with "classifier" too)."""
    if not saved:
        return False
    parts = name.split(".")
    return any(".".join(parts[:count]).endswith(saved) for count in range(1, len(parts) + 1))


def _refused_fields(fields: Mapping[str, Any], method: str) -> list[str]:
    """What LoraConfig refuses, whatever the model (tuners/lora/config.py)."""
    found = []
    by_pattern = isinstance(fields.get("target_modules"), str)
    if by_pattern and fields.get("layers_to_transform") is not None:
        found.append("layers_to_transform needs a list of target modules, not a pattern or all-linear")
    if fields.get("layers_pattern") and fields.get("layers_to_transform") is None:
        found.append("layers_pattern needs layers_to_transform")
    if isinstance(fields.get("target_parameters"), str):
        found.append("target_parameters must be a list of names")
    if fields.get("target_parameters") and method != "LORA":
        found.append(f"only LoRA takes target_parameters, {method} does not")
    return found


def _refused_modules(skeleton: Skeleton, fields: Mapping[str, Any], found: Reach, rank: int, method: str) -> list[str]:
    """What PEFT refuses while it wraps."""
    refused = []
    if guards_kernels(skeleton, method):
        kernels = [m.name for m in found.modules if m.leaf in READ_BY_KERNELS]
        refused += [f"{kernels[0]} is read by a Mamba kernel"] if kernels else []
    owners = {m.name.rpartition(".")[0]: m for m in found.parameters}
    twice = next((m.name for m in found.modules if m.name in owners), None)
    if twice:
        refused.append(f"{twice} is named by target_modules and by target_parameters")
    shapeless = next((m.name for m in found.parameters if m.kind == "other"), None)
    if shapeless:
        refused.append(f"{shapeless} is not a matrix")
    if found.parameters and fields.get("lora_dropout"):
        refused.append("adapters on parameters (fused experts) need lora_dropout 0")
    if found.parameters and (fields.get("use_dora") or fields.get("lora_bias")):
        refused.append("adapters on parameters (fused experts) take neither DoRA nor lora_bias")
    saved = tuple(fields.get("modules_to_save") or ())
    both = next((name for name in sorted(found.names) if saved and name.endswith(saved)), None)
    if both:
        refused.append(f"{both} would be adapted and trained whole: modules_to_save matches any name with that ending")
    grouped = [m for m in found.modules if m.kind == "conv" and method == "LORA" and rank % groups(m)]
    refused += [f"{m.name} is a convolution of {groups(m)} groups, which must divide the rank" for m in grouped[:1]]
    return refused


def guards_kernels(skeleton: Skeleton, method: str) -> bool:
    """Whether PEFT refuses READ_BY_KERNELS in this model."""
    return skeleton.model_type in _MAMBA_TYPES and method in _MAMBA_METHODS


def groups(module: Module) -> int:
    """Of a convolution: its weight is (outputs, inputs / groups, ...)."""
    return module.inputs // module.parameters["weight"][1]


def as_matrix(module: Module) -> Module:
    """A convolution as the linear layer for which LoRA adds as many parameters (tuners/lora/layer.py _ConvNd: A has no
    groups, B has a kernel of one and the groups of the base layer)."""
    if module.kind != "conv":
        return module
    inputs = module.inputs * prod(module.parameters["weight"][2:])
    return Module(module.name, "linear", inputs, module.outputs // groups(module), module.parameters, module.cls)
