"""Whether the sources of a skeleton agree: config.json, stored tensors, and the real classes.

Knows: how two descriptions of one model are compared, and what a difference means to a user.
Does not know: how any of them is made (layouts.py, stored.py, skeleton.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from peftsmith import files
from peftsmith.finding import Finding, finding
from peftsmith.model.headers import Tensor
from peftsmith.model.modules import Skeleton

_FAULTS_SHOWN = 5
_COMPARED_AT_ONCE = 8 << 20


def with_classes(implied: Skeleton | None, real: Skeleton) -> list[Finding]:
    """What config.json implies against what the installed classes build from it; the classes are right."""
    if implied is None:
        return [finding("model.modules.from_classes", model_type=real.model_type)]
    ours, theirs = _shapes(implied), _shapes(real)
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if not differing:
        return []
    return [finding("model.modules.disagree", examples=differing[:_FAULTS_SHOWN], count=len(differing))]


def _shapes(skeleton: Skeleton) -> dict[str, tuple[int, ...]]:
    return {f"{m.name}.{leaf}": tuple(shape) for m in skeleton.modules for leaf, shape in m.parameters.items()}


def contradictions(
    have: dict[str, tuple[int, ...]], want: dict[str, tuple[int, ...]], tied: Mapping[str, str]
) -> list[Finding]:
    """Stored shapes against those that config.json implies. Of two tied ends either may be stored, or both."""
    for name, target in tied.items():
        if name in want and target in want:
            if name in have and target not in have:
                del want[target]
            elif name not in have:
                del want[name]
    missing = [name for name in want if name not in have]
    unknown = [name for name in have if name not in want]
    other = [name for name in want if name in have and have[name] != want[name]]
    if not (missing or unknown or other):
        return []
    shown = [f"{name}: stored {list(have[name])}, config.json implies {list(want[name])}" for name in other]
    shown += [f"{name}: not stored" for name in missing] + [
        f"{files.clean(n, 200)}: not in config.json" for n in unknown
    ]
    return [
        finding(
            "model.tensors.contradict",
            f"config.json and the weight files contradict each other in {len(shown)} tensors, such as {shown[0]}.",
            examples=shown[:_FAULTS_SHOWN],
            wrong_shape=len(other),
            missing=len(missing),
            unknown=len(unknown),
        )
    ]


def really_tied(folder: Path, embedding: Tensor, head: Tensor) -> tuple[bool, list[Finding]]:
    """transformers 5 ties two stored tensors only when they are equal (modeling_utils.tie_weights)."""
    if (embedding.dtype, embedding.shape) != (head.dtype, head.shape):
        return False, [finding("model.embeddings.not_tied")]
    paths = folder / embedding.file, folder / head.file
    if not all(path.is_file() for path in paths):
        return True, [finding("model.embeddings.tie_unchecked")]
    with paths[0].open("rb") as first, paths[1].open("rb") as second:
        first.seek(embedding.start)
        second.seek(head.start)
        left = embedding.size
        while left:
            step = min(left, _COMPARED_AT_ONCE)
            if first.read(step) != second.read(step):
                return False, [finding("model.embeddings.not_tied")]
            left -= step
    return True, []
