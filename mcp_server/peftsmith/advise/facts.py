"""What rules may ask about: a model, its rows, the device and the user's intent as plain named facts.

Knows: every fact by name, and how those of the rank follow from widths, shares and tokens.
Does not know: which value follows from which fact (knowledge/rules.toml), or memory (fit.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from peftsmith.advise import updates
from peftsmith.errors import PeftsmithError
from peftsmith.knowledge import method_options, methods, packing
from peftsmith.plan import ANSWER_TOKENS, TASK_TYPES, ServingTarget, Task
from peftsmith.project import fitness_base

if TYPE_CHECKING:
    from peftsmith.model.anatomy import Anatomy

RANKS = (8, 16, 32, 64, 128, 256)
USUAL_RANK, STYLE_RANK = 16, 32
LARGEST_SHARE = 0.10  # of all parameters, as model/target_findings.py judges it
BLOCK, USUAL_LENGTH, LENGTH_STEP = 2048, 1024, 64
SHORTEST_PACK = 512  # tokens: products with fewer do not fill a processor, and rows fit badly
EVEN = 0.7  # mean length / longest, above which packing gains little
# Attention over a flattened batch of n tokens costs n / (6 x hidden) of the layers' products: a third at most.
TOKENS_AT_ONCE = 2  # x hidden size
# bfloat16 models whose activations leave fp16's range (unsloth-zoo PR 866; LLaMA-Factory issue 8088).
OVERFLOW_FP16 = ("gemma", "qwen3_moe", "glm4_moe")
# What PEFT cannot do without and the planner can choose; the values are those of PEFT's examples.
USUAL_CONFIG: Mapping[str, Mapping[str, Any]] = {
    "PROMPT_TUNING": {"num_virtual_tokens": 20},
    "PREFIX_TUNING": {"num_virtual_tokens": 20},
    "P_TUNING": {"num_virtual_tokens": 20},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 20},
    "CARTRIDGE": {"num_virtual_tokens": 64},
}
Goal = Literal["style", "knowledge", "changing_facts"]
Forgetting = Literal["little", "any"]


@dataclass(frozen=True)
class Device:
    """The training device: `memory_gib` usable, `capability` of a CUDA GPU as (major, minor), None for others."""

    kind: Literal["cuda", "cpu"]
    memory_gib: float
    capability: tuple[int, int] | None = None

    @property
    def has_bf16(self) -> bool:
        return self.kind == "cuda" and (self.capability is None or self.capability >= (8, 0))


@dataclass(frozen=True)
class Rows:
    """What values depend on. Token numbers are None when no tokenizer was there; `target` is the longest text that an
    encoder-decoder has to write, or the longest answer in a context. `unanswered`: some questions have no answer.
    `held_out`: there are rows to evaluate on the way."""

    count: int
    longest: int | None
    loss_tokens: int | None
    total_tokens: int | None = None
    target: int | None = None
    unanswered: bool = False
    held_out: bool = False

    @property
    def mean(self) -> float | None:
        """Tokens of a row, on average."""
        return self.total_tokens / self.count if self.total_tokens and self.count else None


@dataclass(frozen=True)
class Intent:
    """What the user said. `method` is lora, qlora, full or any PEFT type; None, as everywhere: not said.

    `config` are fields of PEFT's config that the user sets, `labels` how many classes there are, `adapters` how many
    of them one server is to hold at a time, `datasets` the names of several tasks for one base
    (`mix`: for one adapter), `reason` why all weights must train.
    """

    task: Task = "chat"
    method: str | None = None
    serving: ServingTarget = "transformers"
    goal: Goal | None = None
    forgetting: Forgetting | None = None
    adapters: int | None = None
    reason: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    labels: int = 2
    datasets: tuple[str, ...] = ()
    mix: bool = False

    @property
    def peft_type(self) -> str | None:
        """PEFT's own name of the method that was asked for."""
        name = self.method.upper().replace("-", "_") if self.method else None
        return "LORA" if name == "QLORA" else name


def of(anatomy: Anatomy, rows: Rows, device: Device, intent: Intent) -> dict[str, Any]:
    """The facts that stand before anything is decided."""
    wished = intent.peft_type
    if wished is not None and wished != methods.FULL:
        methods.method(wished)
    if wished == methods.FULL and not intent.reason:
        raise PeftsmithError(
            "Full fine-tuning needs a reason: why an adapter is not enough",
            next_step="Give `reason`, such as continued pre-training on another language; or leave method out.",
        )
    return {
        "task": intent.task,
        "task_type": TASK_TYPES[intent.task],
        "goal": intent.goal or "unknown",
        "forgetting": intent.forgetting or "unknown",
        "serving": intent.serving,
        "is_wished": wished is not None,
        "wished": wished,
        "wished_quantised": _wished_quantised(intent.method),
        "model_type": anatomy.model_type,
        "parameters": anatomy.parameters,
        "billions": f"{anatomy.parameters / 1e9:.3g}",
        "fused_experts": bool(anatomy.skeleton and any(m.kind == "experts" for m in anatomy.skeleton.modules)),
        "overflows_fp16": anatomy.model_type.startswith(OVERFLOW_FP16),
        "device": device.kind,
        "memory_gib": round(device.memory_gib, 1),
        "has_bf16": device.has_bf16,
        "capability_text": _capability(device),
        "rows": rows.count,
        "datasets": len(intent.datasets),
        "mix": intent.mix,
        "dataset_names": ", ".join(intent.datasets),
        "loss_tokens": rows.loss_tokens,
        "loss_known": rows.loss_tokens is not None,
        "unanswered": rows.unanswered,
        "nothing": None,
        **_lengths(anatomy, rows),
    }


def of_method(anatomy: Anatomy, intent: Intent, peft_type: str) -> dict[str, Any]:
    """What a method adds to the facts: whether it adapts linear layers and may be quantised."""
    if peft_type == methods.FULL:
        none = {"peft_type": peft_type, "adapts_linear": False, "quantisable": False}
        return {**none, **_of_step(anatomy, intent, None), "goes_back": True}
    known = methods.method(peft_type)
    if known.unsupported:
        raise PeftsmithError(
            f"No project is generated with {peft_type}: {known.unsupported}", next_step="Take another method."
        )
    if known.by_task and not intent.mix:
        raise PeftsmithError(
            f"{peft_type} learns several tasks at once, and is told which one a row is of",
            value=peft_type,
            next_step="Give the rows of the other tasks as others, with mix; or take lora for rows of one kind.",
        )
    return {
        "peft_type": peft_type,
        "adapts_linear": known.defaults.get("target_modules") == "all-linear",
        "quantisable": 4 in known.quantised and not anatomy.quantization,
        "goes_back": methods.resumes(known, intent.config),
        **_of_step(anatomy, intent, known),
    }


def _of_step(anatomy: Anatomy, intent: Intent, known: methods.Method | None) -> dict[str, Any]:
    """Whether rows may share sequences, and whether the loss may be worked out at learnt positions alone."""
    language = TASK_TYPES[intent.task] == "CAUSAL_LM"
    obstacle = _obstacle(anatomy.model_type, intent, known) if language else "Rows of this task do not share sequences."
    hides = known is not None and packing.method_hides_labels(known)
    return {
        "may_pack": obstacle is None,
        "obstacle": obstacle or "Rows are of like length, or could not be counted.",
        "may_label": language and packing.labelled(anatomy.model_type) is True and not hides,
    }


def _obstacle(model_type: str, intent: Intent, known: methods.Method | None) -> str | None:
    """Why rows must not share a sequence."""
    apart = packing.keeps_apart(model_type)
    if apart is None:
        return f"Whether {model_type} models keep packed rows apart has not been tried."
    if apart is not True:
        return f"{model_type} models do not keep packed rows apart{' without a further kernel' if apart else ''}."
    mixes = packing.method_mixes(known, intent.config) if known else None
    return f"{known.name} mixes packed rows: {mixes}." if known and mixes else None


def sequences_at_once(anatomy: Anatomy, facts: Mapping[str, Any]) -> int | None:
    """How many packed sequences one pass may flatten into a single one; None where nothing is flattened."""
    if not facts["packing"].startswith("bfd"):
        return None
    return max(1, TOKENS_AT_ONCE * anatomy.hidden // int(facts["max_length"]))


def of_targets(anatomy: Anatomy, rows: Rows, intent: Intent, facts: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """target_modules and the method's config for a preset, and the ranks that suit what it reaches."""
    config = dict(USUAL_CONFIG.get(facts["peft_type"], {}))
    text = "Plain: loadable by every server." if facts["peft_type"] == "LORA" else "What PEFT needs."
    modules: Any = None
    if preset != "none":
        modules, parameters = _places(anatomy, preset, facts)
        if parameters:
            config["target_parameters"] = parameters
            text = f"{', '.join(parameters)}."
    if facts["peft_type"] == methods.FULL:
        config, text = {}, "All weights train."
    config |= intent.config
    if intent.config:
        text += f" Yours: {', '.join(sorted(intent.config))}."
    _refuse_incomplete(facts["peft_type"], modules, config)
    found = {"target_modules": modules, "config": config, "config_text": text}
    if facts["peft_type"] == "LORA":
        found |= _ranks(anatomy, rows, {"target_modules": modules, **config})
    return found


def _refuse_incomplete(peft_type: str, modules: Any, config: Mapping[str, Any]) -> None:
    given = {"target_modules": modules} if modules and peft_type != methods.FULL else {}
    faults = method_options.faults_of(peft_type, given, config)
    if faults:
        raise PeftsmithError("; ".join(faults), value=peft_type, next_step="Give or correct these fields in `config`.")


def _places(anatomy: Anatomy, preset: str, facts: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """(target_modules, target_parameters). With another head than the config's, only PEFT knows the module's names."""
    from peftsmith.model import targets

    if facts["task_type"] != "CAUSAL_LM" or not anatomy.supported:
        return "all-linear", []
    chosen = targets.selection(anatomy, preset, method=facts["peft_type"])
    if chosen is None:
        return "all-linear", []
    never = fitness_base.out_of_reach(anatomy.model_type, facts["peft_type"])
    named = chosen.target_modules
    within = named if isinstance(named, str) else [name for name in named if name not in never]
    return within or None, list(chosen.target_parameters)


def _ranks(anatomy: Anatomy, rows: Rows, fields: Mapping[str, Any]) -> dict[str, Any]:
    per_rank, _ = _per_rank(anatomy, fields)
    highest = highest_rank(anatomy, fields)
    least = -(-(rows.loss_tokens or 0) // per_rank)
    wanted = next((rank for rank in RANKS if rank >= max(USUAL_RANK, least)), RANKS[-1])
    return {
        "per_rank": per_rank,
        "least_rank": least,
        "highest_rank": highest,
        "capacity_rank": min(wanted, highest),
        "usual_rank": min(USUAL_RANK, highest),
        "style_rank": min(wanted, STYLE_RANK, highest),
    }


def highest_rank(anatomy: Anatomy, fields: Mapping[str, Any]) -> int:
    """The highest of RANKS that is no wider than what is adapted and trains a tenth of all parameters at most."""
    per_rank, narrowest = _per_rank(anatomy, fields)
    most = LARGEST_SHARE / (1 - LARGEST_SHARE) * anatomy.parameters / per_rank
    return max((rank for rank in RANKS if rank <= min(narrowest, most)), default=RANKS[0])


def _per_rank(anatomy: Anatomy, fields: Mapping[str, Any]) -> tuple[int, int]:
    """(parameters that a rank of one adds, the narrowest width of an adapted module)."""
    plain = {name: fields[name] for name in ("target_modules", "target_parameters") if fields.get(name)}
    return anatomy.once(("advise.ranks", repr(plain)), lambda: _widths(anatomy, plain))


def _widths(anatomy: Anatomy, fields: Mapping[str, Any]) -> tuple[int, int]:
    from peftsmith.model import reach, targets

    sizes = targets.adaptable(anatomy)
    reached = reach.reach(targets.known(anatomy), fields, 1, "LORA").names
    narrowest = min((min(sizes[name]) for name in reached if name in sizes), default=RANKS[-1])
    return max(1, targets.trainable(anatomy, fields, 1)), narrowest


def _lengths(anatomy: Anatomy, rows: Rows) -> dict[str, Any]:
    limit = anatomy.max_positions or 1 << 20
    longest = rows.longest
    return {
        "longest": longest,
        "longest_known": longest is not None,
        "rounded_length": min(-(-(longest or USUAL_LENGTH) // LENGTH_STEP) * LENGTH_STEP, limit),
        "usual_length": min(USUAL_LENGTH, limit),
        "packed_length": min(max(-(-(longest or 0) // LENGTH_STEP) * LENGTH_STEP, SHORTEST_PACK), limit),
        "mean_length": round(rows.mean) if rows.mean else None,
        "uneven": bool(longest and rows.mean and rows.mean < EVEN * max(longest, SHORTEST_PACK)),
        "held_out": rows.held_out,
        "block_length": min(BLOCK, limit),
    }


def of_updates(rows: Rows, facts: Mapping[str, Any]) -> dict[str, Any]:
    """How many updates the rows make at usual batches, before it is decided whether they are packed."""
    wrapped = facts["task"] == "continued_pretraining"
    count = updates.sequences(
        rows.count, rows.total_tokens, "wrapped" if wrapped else "none", int(facts["block_length"])
    )
    return {f"updates_at_{batch}": updates.updates(count, batch, 1, facts["epochs"]) for batch in (8, 16)}


def of_packing(rows: Rows, facts: Mapping[str, Any], wanted: int) -> dict[str, Any]:
    """Whether packing would leave too few updates, or `wanted` rows each already make so few that it saves little."""
    length = int(facts["packed_length"])
    count = updates.sequences(rows.count, rows.total_tokens, "bfd", length)
    packed = updates.updates(count, in_sequences(wanted, rows, facts, "bfd", length), 1, facts["epochs"])
    single = updates.updates(rows.count, wanted, 1, facts["epochs"])
    return {
        "packed_sequences": count,
        "packed_updates": packed,
        "row_updates": single,
        "packing_starves": packed < updates.WANTED or single < updates.FEWEST_TO_PACK,
    }


def in_sequences(wanted: int, rows: Rows, facts: Mapping[str, Any], packing: str, length: int) -> int:
    """An effective batch of so many rows, as sequences that hold as many tokens; rather fewer where updates are few."""
    if packing in ("none", "wrapped") or not rows.mean:
        return wanted
    as_many = wanted * rows.mean / length
    count = updates.sequences(rows.count, rows.total_tokens, packing, length)
    nearest = max(1, round(as_many))
    enough = updates.updates(count, nearest, 1, facts["epochs"]) >= updates.WANTED
    return nearest if enough else max(1, int(as_many))


def of_answers(rows: Rows, max_length: int) -> dict[str, Any]:
    """How far windows over a context must overlap, and how long answers may be."""
    longest = rows.target or 0
    return {
        "longest_answer": longest,
        "stride": min(max(max_length // 4, longest), max_length // 2),
        "answer_tokens": max(ANSWER_TOKENS, -(-longest // 10) * 10),
    }


def _wished_quantised(method: str | None) -> bool | str:
    """Whether the user named 4 bits; "unknown" where the memory may decide."""
    name = method.upper() if method else ""
    return {"QLORA": True, "LORA": False, methods.FULL: False}.get(name, "unknown")


def _capability(device: Device) -> str:
    if device.kind == "cpu":
        return "Training runs on the CPU."
    if device.capability is None:
        return "CUDA device of unknown capability."
    return f"Compute capability {device.capability[0]}.{device.capability[1]}."
