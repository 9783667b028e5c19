"""What is wrong with an adapter's tensors: names, values and ranks against its config.

Knows: which tensors a LoRA adapter must and must not have, and what training has to have done to lora_B.
Does not know: what lies beside the file, or which server takes it (inspect.py, portable.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftsmith import files
from peftsmith.adapter import weights
from peftsmith.adapter.naming import Kind, kind_of, module_of, saved_modules
from peftsmith.finding import Finding, finding
from peftsmith.model.headers import Tensor

Config = Mapping[str, Any]
Tensors = Mapping[str, Tensor]


def judge_names(tensors: Tensors, config: Config, method: str) -> list[Finding]:
    found = []
    saved = saved_modules(config)
    kinds = {name: kind_of(name, saved) for name in tensors}
    total = sum(tensor.size for tensor in tensors.values())
    embeddings = [name for name, kind in kinds.items() if kind is Kind.EMBEDDING]
    if embeddings:
        size = sum(tensors[name].size for name in embeddings)
        message = (
            f"Embeddings take {size} of the {total} bytes: {', '.join(files.clean(n, 200) for n in embeddings[:3])}."
        )
        found.append(finding("adapter.embeddings.saved", message, bytes=size, total=total))
    foreign = [files.clean(name, 200) for name, kind in kinds.items() if kind is Kind.FOREIGN]
    if foreign and method == "LORA":
        message = f"{len(foreign)} of {len(tensors)} tensors are not the adapter's: {', '.join(foreign[:3])}."
        found.append(finding("adapter.base_weights.inside", message, names=foreign[:5]))
    pairs = {kind: {module_of(n) for n in kinds if kinds[n] is kind} for kind in (Kind.A, Kind.B)}
    single = sorted(pairs[Kind.A] ^ pairs[Kind.B])
    if single:
        shown = [files.clean(name, 200) for name in single[:5]]
        message = f"{len(single)} modules have only one of lora_A and lora_B: {', '.join(shown[:3])}."
        found.append(finding("adapter.tensors.unpaired", message, names=shown))
    targets = config.get("target_modules")
    modules = pairs[Kind.A] | pairs[Kind.B]
    if method == "LORA" and isinstance(targets, list):
        present = {part for module in modules for part in (module.rpartition(".")[2], module)}
        absent = [str(t) for t in targets if t not in present and not any(m.endswith("." + str(t)) for m in modules)]
        if absent:
            shown = sorted(files.clean(name, 100) for name in absent)[:10]
            message = f"adapter_config.json names targets without a tensor: {', '.join(shown)}."
            found.append(finding("adapter.targets.without_weights", message, names=shown))
    return found


def judge_values(folder: Path, tensors: Tensors) -> list[Finding]:
    found = []
    zero, broken, unread = [], [], []
    number_of_b = 0
    for name, tensor in tensors.items():
        content = weights.look(folder, tensor)
        shown = files.clean(name, 200)
        if content.not_finite:
            broken.append((shown, content.not_finite))
        if content.not_finite is None:
            unread.append(f"{shown} ({tensor.dtype})")
        if kind_of(name) is Kind.B and tensor.elements:
            number_of_b += 1
            zero += [shown] if content.zero else []
    if zero and len(zero) == number_of_b:
        message = f"All {number_of_b} lora_B tensors are zero: the adapter changes nothing."
        found.append(finding("adapter.lora_b.zero", message, zero=len(zero), tensors=number_of_b))
    elif zero:
        message = f"{len(zero)} of {number_of_b} lora_B tensors are zero, among them {', '.join(zero[:3])}."
        found.append(
            finding("adapter.lora_b.partly_zero", message, zero=len(zero), tensors=number_of_b, names=zero[:5])
        )
    if broken:
        message = f"{len(broken)} of {len(tensors)} tensors hold NaN or infinite values, among them {broken[0][0]}."
        found.append(finding("adapter.values.not_finite", message, elements=dict(broken[:5])))
    if unread:
        found.append(finding("adapter.values.unchecked", tensors=unread[:5]))
    return found


def judge_ranks(tensors: Tensors, config: Config) -> list[Finding]:
    """The tensors' ranks against r and rank_pattern (its keys are patterns: only its values are compared)."""
    named = [config.get("r"), *pattern_values(config.get("rank_pattern"))]
    allowed = {rank for rank in named if isinstance(rank, int) and rank > 0}
    fused = bool(config.get("target_parameters"))  # one tensor holds the ranks of all experts
    wrong = []
    for name, tensor in tensors.items():
        kind = kind_of(name)
        if kind not in (Kind.A, Kind.B) or len(tensor.shape) < 2 or not tensor.elements:
            continue
        rank = tensor.shape[0] if kind is Kind.A else tensor.shape[1]
        if rank not in allowed and not (fused and any(rank % each == 0 for each in allowed)):
            wrong.append((files.clean(name, 200), rank))
    if not wrong:
        return []
    message = (
        f"{len(wrong)} tensors have a rank that adapter_config.json does not name: {wrong[0][0]} has {wrong[0][1]}."
    )
    return [finding("adapter.rank.mismatch", message, config=sorted(allowed), tensors=dict(wrong[:5]))]


def pattern_values(pattern: object) -> list[Any]:
    """The values of rank_pattern or alpha_pattern; none for what is not a table."""
    return list(pattern.values()) if isinstance(pattern, dict) else []
