"""Which modules LoRA adapts: presets, PEFT's own matching, exact counts, and what is wrong with a choice.

Knows: how PEFT 0.21 matches target_modules against module names (tuners_utils.check_target_module_exists, all-linear),
and that LoRA of rank r adds r x (in + out) parameters to a module.
Does not know: which choice is best for a task (advise/), or what other PEFT methods would add.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding
from peftsmith.model import serving
from peftsmith.model.anatomy import EMBEDDING, HEAD, Anatomy

Value = list[str] | str
PRESETS: Mapping[str, Value] = {
    "query-value": ["q_proj", "v_proj"],
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "mlp": ["gate_proj", "up_proj", "down_proj"],
    "all-linear": "all-linear",
}
SHARE_ERROR = 0.10
SHARE_WARNING = 0.01
LARGEST_RANK = 4096
_LONGEST_PATTERN = 500
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_ROUTER = re.compile(r"(^|\.)(router|gate|shared_expert_gate)$")
_NAMES_SHOWN = 8


@dataclass(frozen=True)
class Choice:
    """One way to set target_modules. `share` is trainable / (all parameters, adapter included)."""

    preset: str
    value: Value
    modules: int
    layers_matched: int
    layers_present: int
    trainable: int
    share: float
    serving: dict[str, str]
    findings: list[Finding]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "findings": [each.id for each in self.findings]}


def find(anatomy: Anatomy, *, rank: int, preset: str | None = None) -> list[Choice]:
    """The presets (or one of them) for this model at this rank; empty when the modules are not known exactly.

    Raises PeftsmithError for a rank below 1 or an unknown preset.
    """
    check_rank(rank)
    if preset is not None and preset not in PRESETS:
        raise PeftsmithError("There is no such preset", value=preset, next_step=f"Use one of {', '.join(PRESETS)}.")
    if not anatomy.supported:
        return []
    return [_choice(anatomy, name, rank) for name in ([preset] if preset else PRESETS)]


def count(anatomy: Anatomy, target_modules: Value | Sequence[str], rank: int) -> int:
    """Trainable parameters of plain LoRA at `rank` on what `target_modules` matches, exactly as PEFT would add."""
    check_rank(rank)
    return sum(rank * (i + o) for i, o in match(anatomy, target_modules).values())


def share(anatomy: Anatomy, trainable: int) -> float:
    """Of all parameters of base and adapter together, as PEFT prints it (0 to 1)."""
    return trainable / (anatomy.parameters + trainable) if anatomy.parameters else 0.0


def unmatched(anatomy: Anatomy, target_modules: Value | Sequence[str]) -> list[str]:
    """The names (or the one regex) of `target_modules` that match nothing that LoRA can adapt."""
    wanted = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    alone = isinstance(target_modules, str)
    return [name for name in wanted if not match(anatomy, name if alone else [name])]


def match(anatomy: Anatomy, target_modules: Value | Sequence[str]) -> dict[str, tuple[int, int]]:
    """The modules that PEFT would adapt, full path to (in, out). Raises PeftsmithError for an unknown architecture.

    A list matches whole names and endings after a dot, a string is "all-linear" or a regex for the whole path;
    all-linear leaves the output head out (PEFT tuners_utils._maybe_include_all_linear_layers).
    """
    if not anatomy.supported:
        raise PeftsmithError(
            f"The modules of {anatomy.model_type} models are not known exactly",
            value=anatomy.id,
            next_step="Take a dense Llama-like model; inspect_model says which are covered.",
        )
    if isinstance(target_modules, str) and target_modules.lower() == "all-linear":
        return {name: sizes for name, sizes in anatomy.linear.items() if name != HEAD}
    names = set(_matching(adaptable(anatomy), target_modules))
    return {name: sizes for name, sizes in adaptable(anatomy).items() if name in names}


def adaptable(anatomy: Anatomy) -> dict[str, tuple[int, int]]:
    """Every module that LoRA can adapt: the linear ones, the embedding, and the head even where it is tied."""
    return {
        EMBEDDING: (anatomy.vocab, anatomy.hidden),
        **anatomy.linear,
        HEAD: (anatomy.hidden, anatomy.vocab),
    }


def judge(anatomy: Anatomy, target_modules: Value | Sequence[str], rank: int) -> list[Finding]:
    """What is wrong with these targets at this rank: nothing or not all matched, layers left out, head, share, rank."""
    check_rank(rank)
    matched = match(anatomy, target_modules)
    if not matched:
        return [finding("model.targets.no_match", target_modules=_shown(target_modules))]
    found = []
    lost = unmatched(anatomy, target_modules)
    if lost:
        found.append(
            finding(
                "model.targets.unmatched",
                f"These names match nothing in the model: {', '.join(map(repr, _shown(lost)))}.",
                names=_shown(lost),
            )
        )
    if not (isinstance(target_modules, str) and target_modules.lower() == "all-linear"):
        wrong = _matching(anatomy.other_modules, target_modules)
        if wrong:
            found.append(finding("model.targets.not_adaptable", modules=wrong[:_NAMES_SHOWN], count=len(wrong)))
    layers = layers_of(matched)
    if 0 < len(layers) < anatomy.layers:
        found.append(
            finding(
                "model.targets.layers_partial",
                f"{len(layers)} of {anatomy.layers} layers are adapted.",
                matched=len(layers),
                present=anatomy.layers,
            )
        )
    ends = [name for name in (HEAD, EMBEDDING) if name in matched]
    if ends:
        found.append(finding("model.targets.head", modules=ends))
    if ends and anatomy.tied_embeddings:
        found.append(finding("model.targets.tied_head", modules=ends))
    routers = [name for name in matched if _ROUTER.search(name)]
    if routers:
        found.append(finding("model.targets.router", modules=routers[:_NAMES_SHOWN]))
    smallest = min(min(sizes) for sizes in matched.values())
    if rank > smallest:
        found.append(
            finding(
                "model.targets.rank_too_high",
                f"Rank {rank} exceeds the smallest dimension of an adapted module, {smallest}.",
                rank=rank,
                smallest=smallest,
            )
        )
    return found + _share_findings(anatomy, sum(rank * (i + o) for i, o in matched.values()))


def layers_of(names: Sequence[str] | Mapping[str, Any]) -> set[int]:
    return {int(found.group(1)) for name in names if (found := _LAYER.match(name))}


def check_rank(rank: int) -> None:
    if type(rank) is not int or not 1 <= rank <= LARGEST_RANK:
        raise PeftsmithError(
            f"The rank must be a whole number from 1 to {LARGEST_RANK}", value=rank, next_step="Try 16."
        )


def _choice(anatomy: Anatomy, preset: str, rank: int) -> Choice:
    value = PRESETS[preset]
    matched = match(anatomy, value)
    trainable = sum(rank * (i + o) for i, o in matched.values())
    return Choice(
        preset=preset,
        value=value if isinstance(value, str) else list(value),
        modules=len(matched),
        layers_matched=len(layers_of(matched)),
        layers_present=anatomy.layers,
        trainable=trainable,
        share=share(anatomy, trainable),
        serving=serving.verdicts(anatomy.model_type, rank, ends_adapted=False),
        findings=judge(anatomy, value, rank),
    )


def _share_findings(anatomy: Anatomy, trainable: int) -> list[Finding]:
    part = share(anatomy, trainable)
    for limit, id_ in ((SHARE_ERROR, "model.targets.share_too_high"), (SHARE_WARNING, "model.targets.share_high")):
        if part > limit:
            message = f"{trainable:,} of {anatomy.parameters + trainable:,} parameters would be trained ({part:.2%})."
            return [finding(id_, message, trainable=trainable, share=part)]
    return []


def _matching(names: Sequence[str] | Mapping[str, Any], target_modules: Value | Sequence[str]) -> list[str]:
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


def _shown(value: Value | Sequence[str]) -> list[str]:
    return [files.clean(name, 100) for name in ([value] if isinstance(value, str) else value)[:_NAMES_SHOWN]]
