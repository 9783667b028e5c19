"""A skeleton cut into its repeated blocks, and each block into attention, feed-forward, expert, norm and state parts.

Knows: how layers are found in module paths, and which widths a part has, by the roles of its linear modules.
Does not know: bytes (activations.py), or what is adapted (targets.py).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from peftsmith.model.modules import Module, Skeleton
from peftsmith.model.roles import role

_NUMBERED = re.compile(r"^(.*?)\.(\d+)\.(.+)$")
_LINEAR = ("linear", "conv1d")
_CROSS = re.compile(r"EncDecAttention|encoder_attn|crossattention|cross_attn|encoder_decoder", re.IGNORECASE)
# Norms written out whose last product is in float32 (modeling_<type>.py of transformers 5); all others go back to the
# input's format before it. Those of Cohere subtract the mean once for the variance and once more for the result.
_WIDE_NORMS = re.compile(
    r"(Afmoe|Cohere|FlexOlmo|Gemma|Helium|NemotronH|Olmo[23]|OlmoHybrid|Qwen3Next|Qwen3_5|RecurrentGemma|T5Gemma"
    r"|VaultGemma|GptOss)\w*Norm$"
)
_OF_HEADS = re.compile(r"[qk]_?(layer)?norm")
_DOUBLE_NORMS = re.compile(r"Cohere\w*LayerNorm$")


@dataclass(frozen=True)
class Attention:
    """One attention unit, widths in elements. `fused`: query, key and value are slices of one linear output.
    `normed` counts norms on query and key, which are torch's layer_norm where `centred`."""

    query: int
    key: int
    value: int
    fused: bool
    normed: int
    cross: bool
    low_rank: int
    centred: bool = False


@dataclass(frozen=True)
class FeedForward:
    """One MLP: `width` of its hidden layer; `gated` when an activation is multiplied with a second projection."""

    width: int
    gated: bool
    fused: bool


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: `count` experts of hidden `width`, gated or not, as one 3-D parameter or as modules."""

    count: int
    width: int
    gated: bool


@dataclass(frozen=True)
class Block:
    """Blocks of one stack that are alike. Module names are relative to the block, `numbers` their places.

    Of the `norms`, `centred_norms` are torch's layer_norm, `wide_norms` multiply with their weight in float32, and
    `double_norms` subtract their mean twice.
    """

    stack: str
    numbers: tuple[int, ...]
    modules: tuple[Module, ...]
    hidden: int
    attention: tuple[Attention, ...]
    feed_forward: tuple[FeedForward, ...]
    experts: tuple[Experts, ...]
    norms: int
    centred_norms: int
    state: int
    wide_norms: int = 0
    double_norms: int = 0

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        return {m.name: (m.inputs, m.outputs) for m in self.modules if m.kind in _LINEAR}


def split(name: str) -> tuple[str, int, str] | None:
    """(stack, number, rest) of a module in a numbered stack, by the first number of its path; None outside of one."""
    found = _NUMBERED.match(name)
    return (found.group(1), int(found.group(2)), found.group(3)) if found else None


def blocks(skeleton: Skeleton) -> tuple[Block, ...]:
    """The blocks of every stack, alike ones together, in the model's order."""
    gathered: dict[tuple[str, int], list[tuple[str, Module]]] = defaultdict(list)
    for module in skeleton.modules:
        place = split(module.name)
        if place:
            stack, number, rest = place
            gathered[stack, number].append((rest, module))
    alike: dict[tuple[str, tuple[tuple[str, str, int, int], ...]], list[int]] = defaultdict(list)
    for (stack, number), modules in gathered.items():
        alike[stack, tuple((rest, m.kind, m.inputs, m.outputs) for rest, m in modules)].append(number)
    return tuple(
        _block(stack, tuple(numbers), tuple(replace(m, name=rest) for rest, m in gathered[stack, numbers[0]]))
        for (stack, _), numbers in alike.items()
    )


def is_layer_norm(module: Module) -> bool:
    """Whether a norm is torch's layer_norm: by its class where that is known (it may have no bias), else by a bias."""
    if module.cls and not module.cls.endswith("LayerNorm"):
        return False
    return module.cls == "LayerNorm" or "bias" in module.parameters


def outside(skeleton: Skeleton) -> tuple[Module, ...]:
    """The modules that stand in no numbered stack: embeddings, final norm, heads, projectors."""
    return tuple(module for module in skeleton.modules if split(module.name) is None)


def _block(stack: str, numbers: tuple[int, ...], modules: tuple[Module, ...]) -> Block:
    roles = {module.name: role(f"{stack}.0.{module.name}") for module in modules}
    by_parent: dict[str, list[Module]] = defaultdict(list)
    for module in modules:
        by_parent[_unit(module.name)].append(module)
    hidden = _hidden(modules)
    norms = [m for m in modules if m.kind == "norm" and m.inputs in (hidden, 0) and _width(m) == hidden]
    norms = [m for m in norms if not _OF_HEADS.search(m.name)]
    return Block(
        stack=stack,
        numbers=numbers,
        modules=modules,
        hidden=hidden,
        attention=tuple(unit for each in by_parent.values() if (unit := _attention(each, roles, hidden))),
        feed_forward=tuple(found for each in by_parent.values() if (found := _feed_forward(each, roles))),
        experts=_experts(modules),
        norms=len(norms),
        centred_norms=sum(is_layer_norm(norm) for norm in norms),
        state=sum(m.outputs for m in modules if m.kind in _LINEAR and roles[m.name] == "state"),
        wide_norms=sum(bool(_WIDE_NORMS.match(norm.cls)) for norm in norms),
        double_norms=sum(bool(_DOUBLE_NORMS.match(norm.cls)) for norm in norms),
    )


def _unit(name: str) -> str:
    """The path of the unit that a module belongs to: its parent, wrappers such as BERT's attention.self left out."""
    parent = name.rpartition(".")[0]
    return re.sub(r"\.(self|output|SelfOutput)$", "", parent) or parent


def _hidden(modules: Iterable[Module]) -> int:
    """Width of the residual stream: of the norms, else the commonest input of the linear modules."""
    widths: dict[int, int] = defaultdict(int)
    for module in modules:
        if module.kind == "norm" and "head" not in module.name and not _OF_HEADS.search(module.name):
            widths[_width(module)] += 1
    if not widths:
        for module in modules:
            if module.kind in _LINEAR:
                widths[module.inputs] += 1
    return max(widths, key=lambda width: (widths[width], width), default=0)


def _width(norm: Module) -> int:
    return next((shape[-1] for shape in norm.parameters.values() if shape), 0)


def _attention(modules: Iterable[Module], roles: Mapping[str, str], hidden: int) -> Attention | None:
    widths: dict[str, int] = defaultdict(int)
    leaves = {m.leaf: m for m in modules}
    for module in modules:
        if module.kind in _LINEAR:
            widths[roles[module.name]] = max(widths[roles[module.name]], module.outputs)
            if roles[module.name] == "output":
                widths["output_in"] = module.inputs
    own_norms = [m for m in modules if m.kind == "norm" and _OF_HEADS.search(m.name)]
    normed, centred = len(own_norms), any(is_layer_norm(m) for m in own_norms)
    cross = any(_CROSS.search(m.name) for m in modules)
    if "kv_b_proj" in leaves:
        value = widths["output_in"]
        query = leaves["q_b_proj"].outputs if "q_b_proj" in leaves else widths["query"]
        ranks = leaves["kv_b_proj"].inputs + (leaves["q_b_proj"].inputs if "q_b_proj" in leaves else 0)
        return Attention(query, query, value, False, 0, cross, ranks)
    if widths["qkv"]:
        query = widths["output_in"] or hidden
        key = max(0, (widths["qkv"] - query) // 2)
        return Attention(query, key, key, True, normed, cross, 0, centred)
    if not (widths["query"] and (widths["key"] or widths["value"])):
        return None
    key = widths["key"] or widths["value"]
    return Attention(widths["query"], key, widths["value"] or key, False, normed, cross, 0, centred)


def _feed_forward(modules: Iterable[Module], roles: Mapping[str, str]) -> FeedForward | None:
    widths: dict[str, int] = {}
    for module in modules:
        if module.kind in _LINEAR and roles[module.name] in ("gate", "up", "gate_up", "down"):
            widths[roles[module.name]] = module.inputs if roles[module.name] == "down" else module.outputs
    if "gate_up" in widths:
        return FeedForward(widths["gate_up"] // 2, True, True)
    if "up" not in widths or ".experts." in next(iter(modules)).name:
        return None
    return FeedForward(widths["up"], "gate" in widths, False)


def _experts(modules: Iterable[Module]) -> tuple[Experts, ...]:
    found = []
    for module in modules:
        if module.kind == "experts":
            shapes = {leaf: shape for leaf, shape in module.parameters.items() if len(shape) == 3}
            count = next(iter(shapes.values()))[0]
            gated = any("gate_up" in leaf for leaf in shapes) or len(shapes) == 3
            down = next((shape for leaf, shape in shapes.items() if "down" in leaf), None)
            widths = {n for shape in shapes.values() for n in shape[1:]}
            width = (down[2] if down and down[2] != max(widths) else min(widths)) if shapes else 0
            found.append(Experts(count, width, gated))
    single = [m for m in modules if ".experts." in m.name and m.kind in _LINEAR]
    if single:
        numbers = {m.name.split(".experts.")[1].split(".")[0] for m in single}
        first = [m for m in single if m.name.split(".experts.")[1].split(".")[0] == min(numbers)]
        widths_of_one = [m.outputs for m in first]
        found.append(Experts(len(numbers), max(set(widths_of_one), key=widths_of_one.count), len(first) > 2))
    return tuple(found)
