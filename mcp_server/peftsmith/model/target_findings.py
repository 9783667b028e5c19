"""What is wrong with a choice of target modules, before anything is trained.

Knows: targets that match nothing, miss layers or experts, or reach heads, routers and towers; shares and ranks.
Does not know: how matching works (targets.py), or which servers take the result (serving.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftsmith.finding import Finding, finding
from peftsmith.model import reach, targets
from peftsmith.model.anatomy import Anatomy
from peftsmith.model.modules import Skeleton
from peftsmith.model.roles import role

SHARE_ERROR = 0.10
SHARE_WARNING = 0.01
# PEFT then puts the whole base embeddings into the adapter (peft/utils/constants.py EMBEDDING_LAYER_NAMES).
_SAVED_WITH_BASE = ("embed_tokens", "lm_head")
_SHOWN = 8


def judge(
    anatomy: Anatomy,
    target_modules: reach.Value | Sequence[str] | Mapping[str, Any],
    rank: int,
    *,
    method: str = "LORA",
) -> list[Finding]:
    """Findings for target_modules, or a whole set of PEFT fields, at this rank. Raises PeftsmithError as match does."""
    targets.check_rank(rank)
    fields = target_modules if isinstance(target_modules, Mapping) else {"target_modules": target_modules}
    value = fields.get("target_modules") or []
    skeleton = targets.known(anatomy)
    adapted = reach.reach(skeleton, targets.fields_of(anatomy, fields, method), rank, method)
    reached = adapted.names
    refused = [finding("model.targets.refused", f"PEFT will stop: {why}.") for why in adapted.refused]
    if not reached:
        return [*refused, finding("model.targets.no_match", target_modules=targets.shown(value))]
    found = refused + (_names(anatomy, value) if value else [])
    found += _layers(anatomy, reached)
    found += _ends(anatomy, skeleton, reached, ties_both=fields.get("ensure_weight_tying") is True)
    found += _experts(anatomy, reached)
    for kind, id_ in (("router", "model.targets.router"), ("tower", "model.targets.tower")):
        names = sorted(name for name in reached if role(name) == kind)
        if names:
            found.append(finding(id_, modules=names[:_SHOWN], count=len(names)))
    found += _rank(anatomy, reached, rank)
    return found + share_findings(anatomy, targets.trainable(anatomy, fields, rank, method=method))


def _names(anatomy: Anatomy, value: reach.Value | Sequence[str]) -> list[Finding]:
    found = []
    lost = targets.unmatched(anatomy, value)
    if lost:
        names = targets.shown(lost)
        message = f"These names match nothing in the model: {', '.join(map(repr, names))}."
        found.append(finding("model.targets.unmatched", message, names=names))
    if not (isinstance(value, str) and value.lower() == "all-linear"):
        wrong = reach.matching(anatomy.other_modules, value)
        if wrong:
            found.append(finding("model.targets.not_adaptable", modules=wrong[:_SHOWN], count=len(wrong)))
    return found


def _layers(anatomy: Anatomy, reached: set[str]) -> list[Finding]:
    layers = targets.layers_of(reached)
    if not 0 < len(layers) < anatomy.layers:
        return []
    message = f"{len(layers)} of {anatomy.layers} layers are adapted."
    return [finding("model.targets.layers_partial", message, matched=len(layers), present=anatomy.layers)]


def _ends(anatomy: Anatomy, skeleton: Skeleton, reached: set[str], *, ties_both: bool) -> list[Finding]:
    tied = {name.rpartition(".")[0] for pair in skeleton.tied.items() for name in pair}
    vocabulary = {m.name for m in skeleton.modules if m.kind == "embedding" and m.inputs == anatomy.vocab} | tied
    ends = sorted(
        (name for name in reached if role(name) == "head" or name in vocabulary), key=lambda name: role(name) != "head"
    )
    if not ends:
        return []
    found = [finding("model.targets.head", modules=ends[:_SHOWN])]
    saved = [m for m in skeleton.modules if m.name in reached and m.leaf in _SAVED_WITH_BASE]
    if saved:
        size = 2 * anatomy.vocab * anatomy.hidden
        message = f"PEFT saves the base's embeddings with the adapter: at least {size / 2**20:,.0f} MiB in 16 bits."
        found.append(finding("model.targets.embeddings_saved", message, modules=[m.name for m in saved], bytes=size))
    if anatomy.tied_embeddings and not ties_both and any(name in tied for name in ends):
        found.append(finding("model.targets.tied_head", modules=ends[:_SHOWN]))
    return found


def _experts(anatomy: Anatomy, reached: set[str]) -> list[Finding]:
    """Fused experts are parameters, not modules: target_modules never reaches them."""
    assert anatomy.skeleton is not None
    experts = [m.name for m in anatomy.skeleton.modules if m.kind == "experts" and role(m.name) != "tower"]
    left = [name for name in experts if name not in reached]
    if not left:
        return []
    message = (
        f"The experts of {len(left)} layers stay frozen: they are fused parameters, which target_modules cannot reach."
    )
    return [finding("model.targets.experts_frozen", message, modules=left[:_SHOWN], count=len(left))]


def _rank(anatomy: Anatomy, reached: set[str], rank: int) -> list[Finding]:
    sizes = targets.adaptable(anatomy)
    smallest = min((min(sizes[name]) for name in reached if name in sizes), default=rank)
    if rank <= smallest:
        return []
    message = f"Rank {rank} exceeds the smallest dimension of an adapted module, {smallest}."
    return [finding("model.targets.rank_too_high", message, rank=rank, smallest=smallest)]


def share_findings(anatomy: Anatomy, trainable: int) -> list[Finding]:
    """A share above 10 % is an error, above 1 % a warning."""
    part = targets.share(anatomy, trainable)
    for limit, id_ in ((SHARE_ERROR, "model.targets.share_too_high"), (SHARE_WARNING, "model.targets.share_high")):
        if part > limit:
            message = f"{trainable:,} of {anatomy.parameters + trainable:,} parameters would be trained ({part:.2%})."
            return [finding(id_, message, trainable=trainable, share=part)]
    return []
