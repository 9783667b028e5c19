"""The moments of a training step at which memory peaks, term by term.

Knows: what is alive while the loss is worked out, while a block runs backward, and at the optimiser's step.
Does not know: formulas of single parts (activations, losses, methods, weights), or what the allocator adds (memory.py).
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from peftsmith.model import activations, losses, methods, weights
from peftsmith.model.activations import Numbers
from peftsmith.model.anatomy import Anatomy
from peftsmith.model.blocks import Block
from peftsmith.model.geometry import Geometry
from peftsmith.model.modules import Module, Skeleton
from peftsmith.model.request import Request
from peftsmith.model.roles import ATTENTION, MLP, role

Terms = dict[str, int]
Ways = Mapping[tuple[str, ...], list[int]]
_INPUT_GROUPS = {"query": "attention", "key": "attention", "value": "attention", "qkv": "attention", "gate": "mlp",
                 "up": "mlp", "gate_up": "mlp"}  # fmt: skip
_DECODER = ("decoder",)


@dataclass(frozen=True)
class Job:
    """A request with everything about the model looked up. `ways` sorts the blocks of each body by what of them is
    adapted. `costs` maps adapted modules (full path) to their cost; `trainable` parameters and `frozen_bytes` besides
    are what the method adds in all, 0 for full fine-tuning."""

    anatomy: Anatomy
    request: Request
    numbers: Numbers
    geometry: Geometry
    bodies: tuple[Block, ...]
    ways: tuple[Ways, ...]
    adapted: Mapping[str, Module]
    costs: Mapping[str, methods.Cost]
    whole: methods.ModelCost
    trainable: int
    frozen_bytes: int


@dataclass(frozen=True)
class Pass:
    """One kind of block in a step: `kept` bytes for the backward pass, `temporary` bytes while it runs, how often."""

    count: int
    tokens: int
    hidden: int
    kept: int
    temporary: int


def tokens_of(request: Request, whole: methods.ModelCost, stack: str) -> int:
    """Tokens of a step in one stack: padding and virtual tokens included, both answers of a preference pair."""
    length = request.sequence_length
    if request.target_length is not None and any(name in stack for name in _DECODER):
        length = request.target_length
    if request.task == "grpo":
        length += request.completion_length
    rows = request.batch_size * (2 if request.task == "dpo" else 1)
    return rows * (length + whole.tokens)


def ways_of(body: Block, adapted: Container[str]) -> Ways:
    """The blocks of one kind by which of their modules are among the `adapted` (full paths)."""
    names = [module.name for module in body.modules]
    ways: dict[tuple[str, ...], list[int]] = {}
    for number in body.numbers:
        prefix = f"{body.stack}.{number}."
        ways.setdefault(tuple(name for name in names if prefix + name in adapted), []).append(number)
    return ways


def passes(job: Job) -> list[Pass]:
    """Every kind of block that keeps something for the backward pass."""
    found = []
    for body, ways in zip(job.bodies, job.ways, strict=True):
        tokens = tokens_of(job.request, job.whole, body.stack)
        length = tokens // job.request.batch_size // (2 if job.request.task == "dpo" else 1)
        plain = activations.block(body, job.geometry, length, job.numbers)
        for adapted, numbers in ways.items():
            costs = {name: job.costs[f"{body.stack}.{numbers[0]}.{name}"] for name in adapted}
            own = sum(cost.saved_per_token - cost.shared_input_per_token for cost in costs.values())
            per_token = plain + own + _shared_inputs(costs)
            kept = int(tokens * per_token) + sum(cost.saved for cost in costs.values())
            temporary = _temporary(job, body, tokens, length, costs)
            first = _first(job, body, numbers, adapted)
            if first:  # its MLP has nothing to hand a gradient to
                less = int(tokens * activations.freed_before_attention(body, job.geometry, job.numbers))
                found.append(Pass(1, tokens, body.hidden, kept - less, temporary))
            found.append(Pass(len(numbers) - first, tokens, body.hidden, kept, temporary))
    return found


def _first(job: Job, body: Block, numbers: list[int], adapted: tuple[str, ...]) -> bool:
    """Whether the model's first block is among these, and autograd leaves its MLP out: with a frozen base its input
    wants no gradient (but with checkpointing, for which PEFT asks for one), so an MLP beside attention, and not behind
    it, keeps nothing unless it is adapted itself."""
    if job.request.gradient_checkpointing or job.numbers.trained or not job.geometry.parallel:
        return False
    return body is job.bodies[0] and 0 in numbers and not any(role(f"layers.0.{name}") in MLP for name in adapted)


def _temporary(job: Job, body: Block, tokens: int, length: int, costs: Mapping[str, methods.Cost]) -> int:
    """What a block's backward pass needs beyond what was kept: gradients of the MLP's hidden layer (of the product, and
    of each of its factors where it is gated; else of the activation's output and input; one less for a trained base,
    whose saved product is gone by then) and of the block's output, or an adapter's own work.

    What the last adapter of the MLP keeps of its own is there only while that one runs; adapters on attention run
    backward when all that the MLP kept has been freed.
    """
    wide = job.numbers.wide
    widest = max((unit.width for unit in body.feed_forward), default=body.hidden)
    freed = sum(3 * wide * unit.width for unit in body.feed_forward)
    cast = wide == 4 and job.numbers.autocast  # 16-bit copies on both sides of the activation: a third gradient
    gradients = max((3 if unit.gated or cast else 2 for unit in body.feed_forward), default=1) - job.numbers.trained
    gradients = max(gradients, activations.GRADIENTS_OF_ACTIVATION.get(job.geometry.activation, 0))
    gone = sum(cost.shared_input_per_token for name, cost in costs.items() if role(f"layers.0.{name}") == "down")
    most = int(tokens * (wide * (gradients * widest + body.hidden) - gone))
    if _unpacks(job):  # the weight that the incoming gradient is multiplied with, its product, and an adapter's, whose
        # own input is gone by then
        weight = max((m.inputs * m.outputs for m in body.modules if weights.quantised(m, "nf4")), default=0)
        most = max(most, int(tokens * (wide * (2 * widest + body.hidden) - gone)) + job.numbers.logit * weight)
    most = max(most, int(tokens * activations.experts_at_once(body, job.geometry, job.numbers)))
    scores = activations.scores_backward(body, job.geometry, length, job.numbers)
    if scores:
        scores -= activations.freed_before_attention(body, job.geometry, job.numbers)
        most = max(most, int(tokens * (scores + wide * body.hidden)))
    for name, cost in costs.items():
        kind = role(f"layers.0.{name}")
        absent = freed + gone if kind in ATTENTION else gone if kind in MLP and kind != "down" else 0
        beside = wide * widest if kind == "down" else 0  # its input, of which it keeps a copy in another format
        own = int(cost.temporaries(tokens) + tokens * (beside - absent))
        most = max(most, own + wide * tokens * body.hidden)
    return most


def _shared_inputs(costs: Mapping[str, methods.Cost]) -> float:
    """Inputs that several adapters read and that are kept once: the largest of each group. The input of the attention's
    output projection is the attention's own output, which is kept anyway."""
    groups: dict[str, float] = {}
    for name, cost in costs.items():
        kind = role(f"layers.0.{name}")
        if kind != "output":
            group = _INPUT_GROUPS.get(kind, name)
            groups[group] = max(groups.get(group, 0.0), cost.shared_input_per_token)
    return sum(groups.values())


def moments(job: Job, held: weights.Held, residual: int) -> dict[str, Terms]:
    """What is alive at each moment, in bytes by term. `residual`: bytes a number of the residual stream."""
    request, numbers = job.request, job.numbers
    steps = passes(job)
    always = {"weights": held.weights, "adapter": held.adapter, "optimizer": held.states, **_copies(job)}
    hidden = job.anatomy.hidden
    last = tokens_of(request, job.whole, "decoder")
    stock = request.loss == "stock" and request.task != "classification"
    head = last * hidden * (4 + (numbers.logit if stock else 0))
    loss = _loss(job, last)
    early = {"gradients": held.gradients if request.accumulates else 0}
    unpacked = (
        job.anatomy.once(("unpacked", numbers.wide), lambda: weights.dequantised(_skeleton(job), numbers.wide))
        if _unpacks(job)
        else 0
    )
    rows = request.batch_size * (2 if request.task == "dpo" else 1)
    whole = job.whole
    extra = {"method": int(last * whole.saved_per_token + rows * whole.saved_per_row) + whole.saved}
    unpacked += whole.temporary
    if request.gradient_checkpointing:
        kept = {"activations": sum(each.count * each.tokens * residual * each.hidden for each in steps)}
        # the output of the recomputed block lives until its backward pass is over
        block = max((each.kept + each.temporary + each.tokens * residual * each.hidden for each in steps), default=0)
    else:
        kept = {"activations": sum(each.count * each.kept for each in steps)}
        block = max((each.temporary for each in steps), default=0)
    running = "recomputed_block" if request.gradient_checkpointing else "block_backward"
    found = {
        "loss": {**always, **early, **kept, **extra, "head": head, "loss": loss},
        "backward": {**always, **early, **kept, **extra, running: max(block, unpacked)},
        "step": {**always, "gradients": held.gradients, "step": held.step},
    }
    if request.gradient_checkpointing:
        first = {"activations": residual * last * hidden, running: max(block, unpacked)}
        found["last_backward"] = {**always, "gradients": held.gradients - _not_yet(job, held), **first}
    if numbers.trained:
        stream = {"activations": residual * last * hidden}
        found["embedding_backward"] = {**always, "gradients": held.gradients, **stream, "embedding": _twice(job, held)}
    if request.task == "grpo":
        found["generation"] = {**always, "cache": _cache(job), "loss": last * 4}
    if request.task == "dpo":
        found["reference"] = {
            **always,
            **early,
            "loss": losses.reference_logits(tokens=last, vocab=job.anatomy.vocab, wide=numbers.logit),
        }
    return found


def highest(found: Mapping[str, Terms]) -> tuple[str, Terms]:
    """The moment with the highest sum, and its terms without those that are 0."""
    name = max(found, key=lambda each: sum(found[each].values()))
    return name, {term: size for term, size in found[name].items() if size}


def _loss(job: Job, tokens: int) -> int:
    request, numbers, anatomy = job.request, job.numbers, job.anatomy
    if request.task == "classification":
        return 16 * request.labels * request.batch_size
    if request.task == "grpo":
        tokens = request.batch_size * request.completion_length
    # the tanh of capped logits is kept
    capped = numbers.logit * anatomy.vocab * tokens * (job.geometry.logit_softcap and request.loss.startswith("stock"))
    return capped + losses.held(
        request.loss,
        tokens=tokens,
        vocab=anatomy.vocab,
        hidden=anatomy.hidden,
        wide=numbers.logit,
        autocast=numbers.autocast,
        triton=request.device == "cuda",
        trained_head=numbers.trained,
    )


def _not_yet(job: Job, held: weights.Held) -> int:
    """Gradients that are missing while the first block runs backward: its own and, where a base trains, those of
    embeddings that no head shares."""
    skeleton = _skeleton(job)
    if not job.numbers.trained or not job.bodies:
        return 0
    missing = sum(module.elements for module in job.bodies[0].modules)
    tied = {target.rpartition(".")[0] for target in skeleton.tied.values()}
    missing += sum(m.elements for m in skeleton.modules if m.kind == "embedding" and m.name not in tied)
    return held.gradients * missing // max(1, skeleton.parameters)


def _twice(job: Job, held: weights.Held) -> int:
    """What an embedding that is also the head adds to its gradient: the head's waits until the embedding's is there,
    and their sum is a third tensor (torch, InputBuffer::accumulate; the profiler shows aten::add, not add_)."""
    skeleton = _skeleton(job)
    tied = {target.rpartition(".")[0] for target in skeleton.tied.values()}
    shared = sum(module.elements for module in skeleton.modules if module.name in tied)
    return 2 * held.gradients * shared // max(1, skeleton.parameters)


def _copies(job: Job) -> Terms:
    """Autocast's 16-bit copies of float32 weights: of those that train, and of a frozen float32 base, which autograd
    keeps for the gradient of its input."""
    if not job.numbers.autocast:
        return {}
    copies = 2 * job.trainable if job.numbers.adapter == 4 else 0
    if job.request.precision == "fp32" and job.request.base_format in (None, "none"):
        copies += 2 * sum(i * o for i, o in job.anatomy.linear.values())
    return {"autocast_copies": copies}


def _cache(job: Job) -> int:
    """Keys and values of a generation, in the weights' format."""
    request, anatomy = job.request, job.anatomy
    length = request.sequence_length + request.completion_length
    return (
        2 * job.numbers.attention * anatomy.layers * anatomy.kv_heads * anatomy.head_dim * length * request.batch_size
    )


def _unpacks(job: Job) -> bool:
    return job.request.base_format in weights.UNPACKED or bool(job.anatomy.quantization)


def _skeleton(job: Job) -> Skeleton:
    assert job.anatomy.skeleton is not None
    return job.anatomy.skeleton
