"""Which modules an adapter reaches: PEFT's own matching, presets as exact values, counts and shares.

Knows: how PEFT matches target_modules, exclude_modules, layers_to_transform and target_parameters, and what each preset
means for a model, by the roles of its modules.
Does not know: what is wrong with a choice (target_findings.py), what other methods than LoRA add (methods.py), or
bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding
from peftsmith.model import methods, serving
from peftsmith.model.anatomy import Anatomy
from peftsmith.model.modules import Module, Skeleton
from peftsmith.model.roles import ATTENTION, MLP, Role, role

Value = list[str] | str
PRESETS = ("query-value", "attention", "mlp", "all-linear", "experts", "everything")
LARGEST_RANK = 4096
_LONGEST_PATTERN = 20_000
_ADAPTABLE = ("linear", "conv1d", "embedding", "conv")
_LINEAR = ("linear", "conv1d")
_LAYER = re.compile(r"^(?:.*?\.)?(\d+)\.")
_HEADS_OF_CLASSIFIERS = ("score", "classifier")  # peft.utils.other.SEQ_CLS_HEAD_NAMES
_NAMES_SHOWN = 8
# PEFT refuses these in models with Mamba blocks, whose kernels read their weights (tuners_utils.py, _check_lora_target_
# modules_mamba).
MAMBA_TYPES = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
_READ_BY_KERNELS = ("out_proj", "conv1d")
# PEFT 0.21 rewrites target_modules of these types (utils/transformers_weight_conversion.py): any value that names an
# MLP projection or the router, a regular expression or "all-linear" is turned into target_parameters of the experts,
# and shared experts and dense layers are lost. Named as parameters themselves they stay what they are.
CONVERTED_TYPES = (
    "mixtral", "minimax", "minimax_m2", "qwen2_moe", "afmoe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1",
    "ernie4_5_moe", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "glm4v_moe", "longcat_flash", "solar_open", "mellum",
    "qwen3_moe", "beam", "qwen3_omni_moe", "qwen3_omni_moe_thinker", "qwen3_omni_moe_text", "qwen3_next",
    "hunyuan_v1_moe", "flex_olmo", "olmoe", "exaone_moe", "cohere2_moe",
)  # fmt: skip
_CONVERTED_NAMES = ("gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj")


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


def selection(anatomy: Anatomy, preset: str, include: Sequence[Role] = ()) -> Selection | None:
    """The exact PEFT values of a preset; None when the model has nothing of that kind."""
    skeleton = _known(anatomy)
    wanted = [module.name for module in skeleton.modules if _is_wanted(module, preset, include)]
    if anatomy.model_type in MAMBA_TYPES:
        wanted = [name for name in wanted if name.rpartition(".")[2] not in _READ_BY_KERNELS]
    parameters = _fused(skeleton) if preset in ("experts", "everything") else ()
    if not wanted and not parameters:
        return None
    if anatomy.model_type in CONVERTED_TYPES:
        as_parameters = [name for name in wanted if name.rpartition(".")[2] in _CONVERTED_NAMES]
        parameters = (*dict.fromkeys(f"{_after_number(name)}.weight" for name in as_parameters), *parameters)
        wanted = [name for name in wanted if name not in as_parameters]
        leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in wanted))
        exact = set(match(anatomy, leaves)) == set(wanted) if wanted else True
        return Selection(leaves if exact else list(wanted), parameters, _classifier(skeleton))
    if wanted and set(wanted) == set(_all_linear(skeleton)) and _head_is_plain(skeleton):
        value: Value = "all-linear"
    else:
        value = _shortest(anatomy, wanted)
    return Selection(value, parameters, _classifier(skeleton))


def _is_wanted(module: Module, preset: str, include: Sequence[Role]) -> bool:
    if module.kind not in _LINEAR:
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


def _all_linear(skeleton: Skeleton) -> list[str]:
    """What PEFT makes of "all-linear": every Linear and Conv1D but the output embeddings, or else the classifier's head
    (tuners_utils._maybe_include_all_linear_layers)."""
    names = [module.name for module in skeleton.modules if module.kind in _LINEAR]
    head = _output_embedding(skeleton) or next((name for name in _HEADS_OF_CLASSIFIERS if name in names), None)
    return [name for name in names if name != head]


def _output_embedding(skeleton: Skeleton) -> str | None:
    """The module that get_output_embeddings returns: a head as wide as the vocabulary."""
    embedding = max((m.inputs for m in skeleton.modules if m.kind == "embedding"), default=0)
    heads = [m for m in skeleton.modules if m.kind in _LINEAR and role(m.name) == "head"]
    return next((m.name for m in reversed(heads) if m.outputs == embedding), None)


def _head_is_plain(skeleton: Skeleton) -> bool:
    """Whether get_output_embeddings surely returns the head: some old classes return their input embedding."""
    heads = [m.leaf for m in skeleton.modules if m.kind in _LINEAR and role(m.name) == "head"]
    return "output_projection" not in heads


def _classifier(skeleton: Skeleton) -> tuple[str, ...]:
    """The head that a classifier must train beside its adapter, since it starts at random."""
    if not skeleton.architecture.endswith(("ForSequenceClassification", "ForTokenClassification")):
        return ()
    return tuple(name for name in _HEADS_OF_CLASSIFIERS if any(m.name.split(".")[0] == name for m in skeleton.modules))


def _fused(skeleton: Skeleton) -> tuple[str, ...]:
    """Fused expert weights as PEFT's target_parameters names them: the path after the layer's number."""
    found: dict[str, None] = {}
    for module in skeleton.modules:
        if module.kind == "experts" and role(module.name) != "tower":
            short = _after_number(module.name)
            found.update({f"{short}.{leaf}": None for leaf, shape in module.parameters.items() if len(shape) == 3})
    return tuple(found)


def _after_number(name: str) -> str:
    """The part of a path behind its first layer number, which is the same in every layer."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[-1]


def _shortest(anatomy: Anatomy, wanted: Sequence[str]) -> Value:
    """Leaf names where they reach exactly `wanted`, else a regular expression that does."""
    leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in wanted))
    containers = matching(anatomy.other_modules, leaves)  # PEFT refuses a name that also matches one of these
    if set(match(anatomy, leaves)) == set(wanted) and not containers and not any(map(str.isdigit, leaves)):
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
    return pattern if set(match(anatomy, pattern)) == set(wanted) else list(wanted)


def adapted(anatomy: Anatomy, value: Value | Mapping[str, Any] | Sequence[str]) -> set[str]:
    """Full paths of the modules that a preset's name, a value for target_modules or a whole set of PEFT fields adapts;
    modules with fused experts among them."""
    if isinstance(value, str) and value in PRESETS:
        chosen = selection(anatomy, value)
        fields: Mapping[str, Any] = chosen.to_json() if chosen else {}
    else:
        fields = value if isinstance(value, Mapping) else {"target_modules": value}
    wanted = fields.get("target_modules") or []
    found = set(match(anatomy, wanted)) if wanted else set()
    found -= set(matching(adaptable(anatomy), fields.get("exclude_modules") or []))
    saved = fields.get("modules_to_save") or ()
    found = {name for name in found if not any(re.match(rf"(^|.*\.){m}($|\..*)", name) for m in saved)}
    found = {name for name in found if _in_layers(name, fields)}
    parameters = tuple(fields.get("target_parameters") or ())
    return found | {module.name for module in _known(anatomy).modules if parameters and _leaves(module, parameters)}


def _leaves(module: Module, parameters: Sequence[str]) -> list[str]:
    """The parameters of a module that target_parameters names."""
    return [
        leaf
        for leaf in module.parameters
        if any(f"{module.name}.{leaf}" == name or f"{module.name}.{leaf}".endswith(f".{name}") for name in parameters)
    ]


def _in_layers(name: str, fields: Mapping[str, Any]) -> bool:
    """PEFT's layers_to_transform and layers_pattern (tuners_utils.check_target_module_exists)."""
    wanted = fields.get("layers_to_transform")
    if wanted is None or wanted == []:
        return True
    patterns = fields.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = re.match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", name)
        if found:
            return int(found["idx"]) in ([wanted] if isinstance(wanted, int) else wanted)
    return False


def count(anatomy: Anatomy, target_modules: Value | Sequence[str], rank: int) -> int:
    """Trainable parameters of plain LoRA at `rank` on what `target_modules` matches, exactly as PEFT would add."""
    return trainable(anatomy, {"target_modules": target_modules}, rank)


def trainable(
    anatomy: Anatomy,
    fields: Mapping[str, Any],
    rank: int,
    *,
    method: str = "LORA",
    rank_pattern: Mapping[str, int] | None = None,
) -> int:
    """Trainable parameters that PEFT adds for these config fields; copies of modules_to_save count as well.

    `rank_pattern` maps the end of a path, or a regular expression for it, to a rank, as in LoraConfig.
    """
    check_rank(rank)
    skeleton = _known(anatomy)
    reached = adapted(anatomy, fields)
    options = {
        **{key: value for key, value in fields.items() if key == "target_parameters"},
        "r": rank,
        "rank_pattern": dict(rank_pattern or {}),
    }
    modules = [module for module in skeleton.modules if module.name in reached]
    total = methods.trainable(method, sizes(anatomy), options, modules)
    saved = tuple(fields.get("modules_to_save") or ())
    copies = [module for module in skeleton.modules if _is_saved(module.name, saved)]
    return total + sum(module.elements for module in copies)


def _is_saved(name: str, saved: tuple[str, ...]) -> bool:
    """Whether PEFT trains a copy of this module: it, or a module that it lies in, ends with a name of modules_to_save
    (peft/utils/other.py _set_trainable; "pre_classifier" ends with "classifier" too)."""
    parts = name.split(".")
    return any(".".join(parts[:count]).endswith(saved) for count in range(1, len(parts) + 1))


def sizes(anatomy: Anatomy) -> methods.Sizes:
    """The widths that whole-model methods need."""
    return methods.Sizes(
        anatomy.hidden, anatomy.layers, anatomy.heads, anatomy.kv_heads, anatomy.head_dim, anatomy.vocab,
        anatomy.intermediate,
    )  # fmt: skip


def share(anatomy: Anatomy, trainable: int) -> float:
    """Of all parameters of base and adapter together, as PEFT prints it (0 to 1)."""
    return trainable / (anatomy.parameters + trainable) if anatomy.parameters else 0.0


def smallest(anatomy: Anatomy, *, rank: int, most_share: float) -> Choice | None:
    """The preset that adapts most while at most `most_share` (0 to 1) of all parameters train; None when none does."""
    fitting = [choice for choice in find(anatomy, rank=rank) if choice.share <= most_share]
    return max(fitting, key=lambda choice: (choice.layers_matched, choice.trainable), default=None)


def unmatched(anatomy: Anatomy, target_modules: Value | Sequence[str]) -> list[str]:
    """The names (or the one regex) of `target_modules` that match nothing that LoRA can adapt."""
    if isinstance(target_modules, str):
        return [] if match(anatomy, target_modules) else [target_modules]
    return [name for name in target_modules if not match(anatomy, [name])]


def match(anatomy: Anatomy, target_modules: Value | Sequence[str]) -> dict[str, tuple[int, int]]:
    """The modules that PEFT would adapt, full path to (in, out). Raises PeftsmithError for an unknown architecture.

    A list matches whole names and endings after a dot, a string is "all-linear" or a regex for the whole path.
    """
    skeleton = _known(anatomy)
    candidates = adaptable(anatomy)
    if isinstance(target_modules, str) and target_modules.lower() == "all-linear":
        return {name: candidates[name] for name in _all_linear(skeleton)}
    return {name: candidates[name] for name in matching(candidates, target_modules)}


def adaptable(anatomy: Anatomy) -> dict[str, tuple[int, int]]:
    """Every module that LoRA can adapt, with its widths: linear, embedding and convolution, tied heads too."""
    return {m.name: (m.inputs, m.outputs) for m in _known(anatomy).modules if m.kind in _ADAPTABLE}


def layers_of(names: Iterable[str]) -> set[int]:
    """Numbers of the layers that these modules lie in; towers count no layers of the language model."""
    return {int(found.group(1)) for name in names if role(name) != "tower" and (found := _LAYER.match(name))}


def check_rank(rank: int) -> None:
    if type(rank) is not int or not 1 <= rank <= LARGEST_RANK:
        raise PeftsmithError(
            f"The rank must be a whole number from 1 to {LARGEST_RANK}", value=rank, next_step="Try 16."
        )


def _known(anatomy: Anatomy) -> Skeleton:
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
    from peftsmith.model import target_findings

    chosen = selection(anatomy, preset, include)
    if chosen is None:
        return None
    config = chosen.to_json()
    reached = adapted(anatomy, config)
    total = trainable(anatomy, config, rank, method=method, rank_pattern=rank_pattern)
    return Choice(
        preset=preset,
        value=chosen.target_modules,
        config=config,
        modules=len(reached),
        layers_matched=len(layers_of(reached)),
        layers_present=anatomy.layers,
        trainable=total,
        share=share(anatomy, total),
        serving=serving.verdicts(
            anatomy.model_type,
            rank,
            ends_adapted=bool(chosen.modules_to_save),
            method=method,
            experts=bool(chosen.target_parameters),
        ),
        findings=target_findings.judge(anatomy, config, rank, method=method),
    )


def matching(names: Iterable[str], target_modules: Value | Sequence[str]) -> list[str]:
    """Those of `names` that PEFT's rule for `target_modules` matches: whole names and endings, or one regex."""
    if isinstance(target_modules, str):
        if len(target_modules) > _LONGEST_PATTERN:
            raise PeftsmithError(
                f"The pattern is longer than {_LONGEST_PATTERN} characters", next_step="Give a list of names."
            )
        try:
            pattern = re.compile(target_modules)
        except (re.error, RecursionError, OverflowError) as error:
            raise PeftsmithError(
                f"target_modules is not a valid regular expression: {error}",
                value=target_modules,
                next_step="Correct it, or give a list of names.",
            ) from error
        return [name for name in names if pattern.fullmatch(name)]
    wanted = set(target_modules)
    endings = tuple(f".{name}" for name in wanted)
    return [name for name in names if name in wanted or name.endswith(endings)]


def shown(value: Value | Sequence[str]) -> list[str]:
    return [files.clean(name, 100) for name in ([value] if isinstance(value, str) else value)[:_NAMES_SHOWN]]
