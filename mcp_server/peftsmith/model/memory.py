"""How much memory a training step takes: terms, three numbers with ranges, and the assumptions behind them.

Knows: how a request becomes a job, number formats, and what the allocator, the CUDA context or the CPU's heap add.
Does not know: the parts (weights.py, activations.py, methods.py, losses.py, peak.py), the machine, or what fits
(fits.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding
from peftsmith.model import activations, assumptions, blocks, geometry, methods, peak, reach, targets, traits, weights
from peftsmith.model.anatomy import Anatomy
from peftsmith.model.modules import Module, Skeleton
from peftsmith.model.request import PRECISION_BYTES, Request, check
from peftsmith.model.roles import role

__all__ = ["Estimate", "Range", "Request", "estimate", "numbers_of"]

GIB = 1 << 30
MIB = 1 << 20
CUBLAS_WORKSPACE = 2 * 8320 * 1024
# What the allocator reserves beyond what is allocated, as a share of what comes and goes in a step (weights, adapter
# and optimiser stay where they are). Blocks that are recomputed break up the freed space. With logits in float32 the
# large blocks of a step are all of one size, and each takes the place of another; 16-bit logits beside their float32
# copies split them. Published pairs at fixed shapes run from 0.03 to 0.06 without checkpointing, from 0.08 to 0.16 with
# it and float32 logits, from 0.25 to 0.38 with 16-bit logits (PEFT's benchmark, canifinetune, fms-acceleration); for
# losses that hold no logits there is none, and what lies between is taken.
RESERVED = {
    "kept": (0.0, 0.045, 0.16), "alike": (0.0, 0.12, 0.3), "mixed": (0.0, 0.3, 0.44), "no logits": (0.0, 0.24, 0.42),
}  # fmt: skip
# Formulas of attention, MLP and norms were compared with measurements for some families only.
ALLOCATED = {True: (0.95, 1.0, 1.05), False: (0.75, 1.0, 1.3)}
CUDA_CONTEXT = (int(0.4 * GIB), int(0.55 * GIB), int(0.8 * GIB))
# Resident set of Python 3.11 after importing torch 2.13 (CPU), transformers 5.23, peft 0.21, trl 1.16 and datasets 5.2:
# 515 MiB in VmRSS of /proc/self/status.
PYTHON_ON_CPU = 515 * MIB
# On the CPU the heap keeps what was freed: the backward pass runs in a thread of its own, with an arena of its own.
# Peak RSS of two TRL steps on SmolLM2-135M, rank 16, fp32, two threads. All-linear: 2 x 64 tokens 1584 MiB, 8 x 64
# 2849, with checkpointing 2151 (1.36 is within 7 % of all three); q and v only: 2 x 256 2292 (14 % below it).
CPU_HEAP = (0.95, 1.36, 1.8)
# Methods that PEFT puts on modules of one kind unless told otherwise (utils/constants.py, TRANSFORMERS_MODELS_TO_
# LNTUNING_TARGET_MODULES_MAPPING; tuners/trainable_tokens/config.py), and not on linear ones, as presets do.
_OF_ONE_KIND = {"LN_TUNING": "norm", "TRAINABLE_TOKENS": "embedding"}


@dataclass(frozen=True)
class Range:
    """Bytes: certainly more than `low`, most likely `likely`, plan with `high`."""

    low: int
    likely: int
    high: int

    def to_json(self) -> dict[str, Any]:
        gib = {f"{name}_gib": round(value / GIB, 3) for name, value in vars(self).items()}
        return {**vars(self), **gib}


@dataclass(frozen=True)
class Estimate:
    """`terms` (bytes) add up to the likely `allocated`, at the `moment` of the step that is highest; `moments` has the
    sums of all. On the CPU `reserved` and `device` are the resident set."""

    terms: dict[str, int]
    moment: str
    moments: dict[str, int]
    allocated: Range
    reserved: Range
    device: Range
    assumptions: list[str]
    findings: list[Finding]
    trainable: int

    def to_json(self) -> dict[str, Any]:
        return {
            "terms": self.terms,
            "terms_gib": {name: round(value / GIB, 4) for name, value in self.terms.items()},
            "moment": self.moment,
            "moments_gib": {name: round(value / GIB, 4) for name, value in self.moments.items()},
            "allocated": self.allocated.to_json(),
            "reserved": self.reserved.to_json(),
            "device": self.device.to_json(),
            "trainable": self.trainable,
            "assumptions": self.assumptions,
        }


def estimate(anatomy: Anatomy, request: Request) -> Estimate:
    """The peak memory of a training step. Raises PeftsmithError for an impossible request and for unknown models."""
    check(anatomy, request)
    request = request.laid_out()
    job = job_of(anatomy, request)
    trainable, held = _held(job)
    found = peak.moments(job, held, _residual(request, job.numbers))
    moment, terms = peak.highest(found)
    if request.device == "cuda":
        terms["workspace"] = CUBLAS_WORKSPACE
    total = sum(terms.values())
    allocated = Range(*(int(total * factor) for factor in ALLOCATED[assumptions.verified(job)]))
    reserved, device = _beyond(job, held, found, terms, allocated)
    return Estimate(
        terms,
        moment,
        {name: sum(each.values()) for name, each in found.items()},
        allocated,
        reserved,
        device,
        assumptions.of(job),
        assumptions.doubts(job),
        trainable,
    )


def job_of(anatomy: Anatomy, request: Request) -> peak.Job:
    """Everything of the model that the request touches, looked up once."""
    skeleton = anatomy.skeleton
    assert skeleton is not None
    numbers = numbers_of(anatomy, request)
    asked = (request.peft_type, repr(request.targets))
    adapted = anatomy.once(asked, lambda: adapted_modules(anatomy, request))
    of_methods = methods.Numbers(
        2 if numbers.autocast else numbers.wide, numbers.adapter, numbers.autocast, numbers.dropout
    )
    options = {**request.method_options, "frozen_a": request.optimizer == "lora_fa"}
    costs, whole, trainable, frozen = anatomy.once(
        (*asked, repr(options), of_methods), lambda: _costs(anatomy, request.peft_type, options, of_methods, adapted)
    )
    if request.peft_type == "TRAINABLE_TOKENS":
        whole = replace(whole, saved=whole.saved + _merged_head(skeleton, adapted, numbers.wide))
    bodies = anatomy.once(
        "bodies", lambda: tuple(body for body in blocks.blocks(skeleton) if role(f"{body.stack}.0") != "tower")
    )
    ways = anatomy.once((*asked, "ways"), lambda: tuple(peak.ways_of(body, costs) for body in bodies))
    return peak.Job(
        anatomy, request, numbers, geometry_of(anatomy), bodies, ways, adapted, costs, whole, trainable, frozen
    )


def geometry_of(anatomy: Anatomy) -> geometry.Geometry:
    return anatomy.once(
        "geometry",
        lambda: geometry.geometry(
            anatomy.config, heads=anatomy.heads, kv_heads=anatomy.kv_heads, head_dim=anatomy.head_dim
        ),
    )


def _costs(
    anatomy: Anatomy,
    kind: str | None,
    options: Mapping[str, Any],
    numbers: methods.Numbers,
    adapted: Mapping[str, Module],
) -> tuple[dict[str, methods.Cost], methods.ModelCost, int, int]:
    """What the method adds to each adapted module by its full path, to the model as a whole, and in all: trainable
    parameters and frozen bytes."""
    if kind is None:
        return {}, methods.ModelCost(), 0, 0
    costs = {} if kind in methods.WHOLE_MODEL else methods.costs(kind, adapted, options, numbers)
    whole = methods.whole_model(kind, targets.sizes(anatomy), options, numbers, list(adapted.values()))
    trainable = sum(cost.trainable for cost in costs.values()) + whole.trainable
    return costs, whole, trainable, sum(cost.frozen_bytes for cost in costs.values()) + whole.frozen_bytes


def _merged_head(skeleton: Skeleton, adapted: Mapping[str, Module], wide: int) -> int:
    """Bytes of the head that is tied to an embedding whose tokens train: it is wrapped as well, works with a copy of
    the whole weight, and autograd keeps that (peft/tuners/trainable_tokens/model.py inject_adapter, layer.py
    forward_adapters). The embedding's own copy goes at once."""
    tied = {target.rpartition(".")[0] for target in skeleton.tied.values()}
    return sum(wide * module.inputs * module.outputs for name, module in adapted.items() if name in tied)


def adapted_modules(anatomy: Anatomy, request: Request) -> dict[str, Module]:
    """The modules that the request's method adapts, by full path; none for full fine-tuning and prompt learning."""
    if request.peft_type is None or request.peft_type in methods.WHOLE_MODEL:
        return {}
    skeleton = targets.known(anatomy)
    kind = _OF_ONE_KIND.get(request.peft_type)
    if kind is not None:
        reached = reach.Reach(_named(skeleton, request.targets, kind))
    else:
        fields = targets.fields_of(anatomy, request.targets, request.peft_type)
        reached = reach.reach(skeleton, fields, method=request.peft_type)
    names = reached.names
    if not names:
        raise PeftsmithError(
            "The target modules match nothing in this model",
            value=request.targets,
            next_step=f"Use a preset ({', '.join(targets.PRESETS)}) or names that find_target_modules gives.",
        )
    matrices = {each.name.rpartition(".")[0]: each for each in reached.parameters}
    return {
        module.name: replace(matrices[module.name], name=module.name) if module.kind == "other" else module
        for module in skeleton.modules
        if module.name in names
    }


def _named(skeleton: Skeleton, wanted: str | list[str], kind: str) -> tuple[Module, ...]:
    """The modules whose path ends with a wanted name, as PEFT compares lists; for a preset, those of the text model of
    the one kind that the method is made for."""
    if isinstance(wanted, str) and wanted in targets.PRESETS:
        return tuple(m for m in skeleton.modules if m.kind == kind and role(m.name) not in ("tower", "head"))
    ends = [wanted] if isinstance(wanted, str) else wanted
    return tuple(m for m in skeleton.modules if any(m.name == end or m.name.endswith(f".{end}") for end in ends))


def numbers_of(anatomy: Anatomy, request: Request) -> activations.Numbers:
    """Number formats and attention kernel of a request; masked when rows of a batch are padded to one length."""
    number = PRECISION_BYTES[request.precision]
    autocast = request.precision != "fp32" if request.autocast is None else request.autocast
    on_quantised = (request.base_format or "none") != "none" or bool(anatomy.quantization)
    default_adapter = 2 if on_quantised and request.precision != "fp32" else 4
    wide = 4 if request.kbit_prepared else number
    if autocast:
        wide = 4 if _float32_through(anatomy, request) else 2
    shape = geometry_of(anatomy)
    flash = request.attention == "flash" and shape.flash
    sdpa = request.attention == "sdpa" and shape.sdpa
    masked = request.batch_size > 1 if request.padded is None else request.padded
    grouped = anatomy.kv_heads != anatomy.heads
    return activations.Numbers(
        wide=wide,
        attention=2 if flash or autocast else wide,  # autocast casts what goes into SDPA
        adapter=request.adapter_bytes or default_adapter,
        autocast=autocast,
        masked=masked,
        flash=flash,
        math=wide == 4 and not autocast and grouped and not masked and sdpa and request.device == "cuda",
        dropout=request.dropout,
        eager=not (flash or sdpa),
        trained=request.peft_type is None,
        logit=2 if autocast else wide,
    )


def _float32_through(anatomy: Anatomy, request: Request) -> bool:
    """Whether bitsandbytes' layers carry float32 on under autocast: they answer in their input's format (nn/modules.py,
    Linear4bit.forward; autograd/_functions.py, MatMul8bitLt), and norms give them float32 where their weights are
    float32 (k-bit preparation) or where they are torch's layer_norm, which autocast runs in float32."""
    stored = request.base_format or weights.stored_format(anatomy.quantization) or "none"
    if stored not in weights.BITSANDBYTES:
        return False
    assert anatomy.skeleton is not None
    norms = (m for m in anatomy.skeleton.modules if m.kind == "norm" and role(m.name) != "tower")
    centred = any(blocks.is_layer_norm(norm) for norm in norms)
    return request.kbit_prepared or centred


def _residual(request: Request, numbers: activations.Numbers) -> int:
    """Bytes a number of the residual stream: embeddings in float32 keep it in float32, whatever autocast does."""
    return 4 if request.kbit_prepared or request.precision == "fp32" else numbers.wide


def _held(job: peak.Job) -> tuple[int, weights.Held]:
    request, skeleton = job.request, job.anatomy.skeleton
    assert isinstance(skeleton, Skeleton)
    number = PRECISION_BYTES[request.precision]
    stored = request.base_format or weights.stored_format(job.anatomy.quantization) or "none"
    group = traits.group_size(job.anatomy.quantization_detail) if request.base_format in (None, stored) else None
    # k-bit preparation makes embeddings and head float32; under autocast TRL casts them back
    # (peft_module_casting_to_bf16)
    widened = request.kbit_prepared and not job.numbers.autocast
    held_as = None if stored == "none" else stored
    base = job.anatomy.once(
        ("base", held_as, number, widened, group),
        lambda: weights.base(skeleton, held_as, number, widened=widened, group=group),
    )
    if request.peft_type is None:
        trainable, size, extra = skeleton.parameters, number, 0
        trained = list(skeleton.modules)
    else:
        trainable = job.trainable
        size = job.numbers.adapter
        extra = size * trainable + job.frozen_bytes
        trained = list(job.adapted.values())
    if request.task == "dpo" and request.peft_type is None:
        base *= 2  # the reference policy is a second model
    held = weights.Held(
        weights=base,
        adapter=extra,
        gradients=size * trainable,
        states=weights.states(request.optimizer, trainable, size, trained, on_device=request.device == "cuda"
                              or not request.optimizer.startswith("paged")),
        step=int(weights.STEP_COPIES.get(request.optimizer, 0) * size * trainable),
    )  # fmt: skip
    largest = max((number * sum(m.elements for m in body.modules) for body in job.bodies), default=0)
    return trainable, weights.divided(held, request.sharding, request.gpus, request.offload, largest)


def _space(job: peak.Job) -> str:
    """The key of RESERVED for what a job does to the allocator's freed space."""
    if not job.request.gradient_checkpointing:
        return "kept"
    if not job.request.loss.startswith(("stock", "fused")):
        return "no logits"
    return "alike" if job.numbers.logit == 4 else "mixed"


def _beyond(
    job: peak.Job, held: weights.Held, found: dict[str, peak.Terms], terms: dict[str, int], allocated: Range
) -> tuple[Range, Range]:
    """(reserved, device): what is taken from the device at the moment for which most is reserved. `found`: all
    moments."""
    request = job.request
    lasting = ("weights", "adapter", "optimizer", "autocast_copies")
    if request.device == "cpu":
        stays = sum(terms.get(name, 0) for name in (*lasting, "gradients"))
        passing = allocated.likely - stays
        resident = Range(*(int(PYTHON_ON_CPU + stays + passing * factor) for factor in CPU_HEAP))
        return resident, resident
    # a fused loss passes through as much memory as the stock one, if only for a moment
    loss = request.loss.replace("fused", "stock")
    if loss != request.loss:
        reserving = replace(job, request=replace(request, loss=loss))
        found = peak.moments(reserving, held, _residual(request, job.numbers))
    sizes = []
    for name, each in found.items():
        stays = sum(each.get(term, 0) for term in lasting) + CUBLAS_WORKSPACE
        passing = sum(each.values()) + CUBLAS_WORKSPACE - stays
        space = "kept" if name == "step" else _space(job)
        sizes.append([stays + passing * (1 + share) for share in RESERVED[space]])
    # The optimiser's states are made at the end of the first step, in the space that the loss left, and stay: the next
    # step's logits, in blocks larger than any weight, find no room and are reserved anew. Unless the device is full:
    # then the allocator gives back what it caches and tries again (CUDACachingAllocator.cpp, release_cached_blocks).
    second = sum(found["step"].values()) + found["loss"]["loss"] + CUBLAS_WORKSPACE
    if request.device_bytes is None or second + CUDA_CONTEXT[2] <= request.device_bytes:
        sizes.append([0, second, second])
    spread = allocated.high / allocated.likely
    low, likely, high = (max(column) for column in zip(*sizes, strict=True))
    reserved = Range(min(int(low), allocated.low), int(likely), int(max(high, likely * spread)))
    low, likely, high = CUDA_CONTEXT
    return reserved, Range(reserved.low + low, reserved.likely + likely, reserved.high + high)
