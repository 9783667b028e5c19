"""Stored tensors as modules: what safetensors headers say of a model, in the names that its class will have.

Knows: fused experts and renamed prefixes of transformers 5, how a tensor's name and shape tell what its module is.
Does not know: config.json (layouts.py), or how headers are read (headers.py). What a name leaves open is not guessed:
`unclear` names it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftsmith.model.headers import Tensor
from peftsmith.model.modules import Kind, Module, Skeleton

# transformers' Conv1D stores (in, out): the only types that use it (modeling_gpt2.py and its copies).
CONV1D_TYPES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_EMBEDDING = re.compile(
    r"embed|wte$|wpe$|^shared$|\.shared$|relative_attention_bias$|word_emb|embeddings$", re.IGNORECASE
)
_PACKED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_packed|weight_scale\w*|weight_zero_point|input_scale|absmax|quant_map"
    r"|nested_absmax|nested_quant_map|quant_state\..*|SCB|weight_format|weight_shape|\w+_blocks|\w+_scales|codebooks|codes)$"
)
_EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.(w1|w2|w3|gate_proj|up_proj|down_proj)\.weight$")
_GATE_UP = {"w1": 0, "gate_proj": 0, "w3": 1, "up_proj": 1}
_RENAMED = ((".block_sparse_moe.", ".mlp."),)


@dataclass(frozen=True)
class Stored:
    """The modules of a header; `unclear` names 2-D weights that may be a linear layer or an embedding."""

    skeleton: Skeleton
    unclear: tuple[str, ...]


def is_packed(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the tensors are those of a quantiser, whose shapes say little about the modules."""
    return any(_PACKED.search(name) for name in tensors)


def parameters(tensors: Mapping[str, Tensor], *, fuse: bool) -> dict[str, tuple[int, ...]]:
    """Shapes by the class's own parameter names; experts that are stored one by one become one 3-D parameter."""
    found: dict[str, tuple[int, ...]] = {}
    experts: dict[str, dict[tuple[int, str], tuple[int, ...]]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if name.endswith("rotary_emb.inv_freq"):
            continue
        single = _EXPERT.match(name) if fuse else None
        if single:
            experts[_renamed(single.group(1))][int(single.group(2)), single.group(3)] = tensor.shape
        else:
            found[_renamed(name) if fuse else name] = tensor.shape
    for path, parts in experts.items():
        count = 1 + max(number for number, _ in parts)
        up = next((shape for (_, leaf), shape in parts.items() if leaf in _GATE_UP), None)
        down = next((shape for (_, leaf), shape in parts.items() if leaf not in _GATE_UP), None)
        if up and len(up) == 2:
            found[f"{path}.gate_up_proj"] = (count, 2 * up[0], up[1])
        if down and len(down) == 2:
            found[f"{path}.down_proj"] = (count, *down)
    return found


def skeleton(
    shapes: Mapping[str, tuple[int, ...]], *, model_type: str, architecture: str, known: Mapping[str, Kind]
) -> Stored:
    """Modules from parameter names and shapes. `known` gives the kind of modules that the catalogue has, by their path
    with layer numbers left out (template)."""
    grouped: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        grouped[path][leaf] = shape
    rows, unclear = [], []
    for path, own in grouped.items():
        kind = known.get(template(path)) or _kind(path, own, model_type)
        if kind is None:
            unclear.append(path)
            kind = "other"
        rows.append(Module(path, kind, *_ends(kind, own.get("weight", ())), own))
    found = Skeleton(architecture, model_type, "header", tuple(rows), _containers(grouped))
    return Stored(found, tuple(unclear))


def template(path: str) -> str:
    """A module path with its first layer number replaced by {}."""
    return re.sub(r"^(.*?)\.\d+(?=\.|$)", r"\1.{}", path)


def _kind(path: str, own: Mapping[str, tuple[int, ...]], model_type: str) -> Kind | None:
    weight = own.get("weight")
    leaf = path.rpartition(".")[2]
    if weight is None:
        return "experts" if "expert" in path and any(len(shape) == 3 for shape in own.values()) else "other"
    if len(weight) == 1:
        return "norm"
    if len(weight) > 2:
        return "conv"
    if _EMBEDDING.search(path):
        return "embedding" if "bias" not in own else None
    if re.search(r"norm|^ln", leaf, re.IGNORECASE):
        return None
    if model_type in CONV1D_TYPES and "lm_head" not in path:
        return "conv1d"
    return "linear" if len(weight) == 2 else None


def _ends(kind: Kind, weight: tuple[int, ...]) -> tuple[int, int]:
    if len(weight) < 2 or kind not in ("linear", "conv1d", "embedding", "conv"):
        return 0, 0
    return (weight[1], weight[0]) if kind in ("linear", "conv") else (weight[0], weight[1])


def _containers(grouped: Mapping[str, Any]) -> tuple[str, ...]:
    found = set()
    for path in grouped:
        parts = path.split(".")
        found |= {".".join(parts[:count]) for count in range(1, len(parts))}
    return tuple(sorted(found - set(grouped)))


def _renamed(name: str) -> str:
    for old, new in _RENAMED:
        name = name.replace(old, new)
    return name
