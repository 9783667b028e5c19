"""Do method, task, base model and quantisation go together? What does not is refused before a file is written.

Knows: what a method cannot do on any base, from knowledge/methods.toml, and what the planned device cannot do.
Does not know: what it cannot do on this base (fitness_base.py), whether a plan is wise (advise/rules.py), or whether
its scripts work (vet.py, twin.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from peftsmith.finding import Finding, finding
from peftsmith.knowledge import methods, packing, starts
from peftsmith.plan import FineTunePlan
from peftsmith.plan_method import Method
from peftsmith.project import fitness_base, together

_HEADS = ("lm_head", "embed_out")
# A configuration of LoRA's that only one start reads.
_PARTS = {"loftq_config": "loftq", "eva_config": "eva", "corda_config": "corda", "lora_ga_config": "lora_ga"}
_HALF_A_STEP = 2**-9  # of bfloat16 below 1
_FIRST_WITH_BF16 = (8, 0)  # Ampere


def judge(plan: FineTunePlan, config: Mapping[str, Any] | None) -> list[Finding]:
    """Findings that stand against generating this plan's scripts; `config` is the base's config.json, if known.

    Of several adapters each is judged as if it were alone, and then whether they share a base.
    """
    model_type = str(config["model_type"]) if config and config.get("model_type") else None
    return [
        *_tasks(plan),
        *together.judge(plan, model_type),
        *together.each_alone(plan, lambda one: _judge(one, config)),
    ]


def _tasks(plan: FineTunePlan) -> Iterator[Finding]:
    """A method that tells tasks apart needs several, each with its rows."""
    known = None if plan.method.full else methods.method(plan.method.peft_type)
    if known is None or known.by_task is None:
        return
    if not plan.mixture:
        message = f"{known.name} learns several tasks at once: give the rows of each as a part of mixture."
        yield finding("plan.method.tasks", message, method=known.name)
    if known.by_task in plan.method.config:
        message = f"{known.by_task} is counted by the scripts: it is the number of data sets in mixture."
        yield finding("plan.method.option", message, option=known.by_task)


def _judge(plan: FineTunePlan, config: Mapping[str, Any] | None) -> list[Finding]:
    found = [*_method(plan), *_quantization(plan), *_precision(plan), *_step_of_method(plan)]
    if config is None:
        return [*found, *_unchecked(plan)]
    return [*found, *fitness_base.judge(plan, config)]


def on_device(plan: FineTunePlan, device: Mapping[str, Any] | None) -> list[Finding]:
    """What the device that was planned for (the lock's) cannot do; nothing where it is not known."""
    quantization = plan.method.quantization
    in_8_bits = quantization is not None and quantization.bits == 8
    if (device or {}).get("kind") == "cpu" and plan.method.config.get("use_dora") and in_8_bits:
        message = "DoRA on a base in 8 bits trains on a GPU only: on a processor PEFT 0.21.2 loses the base's scales."
        return [finding("plan.method.option", message, option="use_dora")]
    capability = (device or {}).get("capability")
    if plan.training.precision != "bf16" or not capability or tuple(capability) >= _FIRST_WITH_BF16:
        return []
    named = ".".join(map(str, capability))
    message = f"bf16 needs compute capability 8.0; the GPU that this was planned for has {named}."
    return [finding("plan.precision.device", message, capability=named)]


def _method(plan: FineTunePlan) -> Iterator[Finding]:
    method = plan.method
    if method.full:
        return
    known = methods.method(method.peft_type)
    if known.unsupported:
        message = f"No project is generated with {known.name}: {known.unsupported}."
        yield finding("plan.method.unsupported", message, method=known.name)
    if known.library == "adapters":
        yield from _bottleneck(plan)
    if plan.task_type not in known.tasks:
        message = f"{known.name} does not work for {plan.task} ({plan.task_type})."
        yield finding("plan.method.task", message, method=known.name, task=plan.task, tasks=list(known.tasks))
    for name, value in method.config.items():
        why = methods.why_refused(known, name, value)
        if why:
            yield finding("plan.method.option", f"{name}={str(value)[:40]}: {why}.", option=name)
    if starts.only_converted(known, method.config) and not plan.converts and not method.quantization:
        against = " and ".join(starts.lost(known, method.config, new_head=plan.new_head))
        message = f"{method.config['init_lora_weights']} has to be saved as plain LoRA, which would lose {against}."
        yield finding("plan.method.option", message, option="init_lora_weights")
    if method.config.get("init_lora_weights") == starts.LOFTQ:
        yield from _loftq(method)
    idle = [
        name for name in _PARTS if method.config.get(name) and method.config.get("init_lora_weights") != _PARTS[name]
    ]
    if idle:
        message = f"{idle[0]} has no effect unless init_lora_weights is {_PARTS[idle[0]]}."
        yield finding("plan.method.option", message, option=idle[0])
    files_of_corda = [name for name in ("cache_file", "covariance_file") if _part(method, "corda_config").get(name)]
    if files_of_corda:
        message = f"CorDA reads {files_of_corda[0]} with torch.load, which may run code; leave it out."
        yield finding("plan.method.option", message, option="corda_config")
    clashes = fitness_base.against_parameters(plan)
    if method.config.get("target_parameters") and clashes:
        message = f"target_parameters does not go with {' or '.join(clashes)}."
        yield finding("plan.method.parameters", message, options=clashes)
    if method.config.get("init_lora_weights") in starts.FROM_ROWS and plan.task_type != "CAUSAL_LM":
        init = method.config["init_lora_weights"]
        message = f"The scripts start {init} from the rows of a language model only."
        yield finding("plan.method.option", message, option="init_lora_weights")
    targets = method.target_modules if isinstance(method.target_modules, list) else []
    heads = [name for name in targets if name.rpartition(".")[2] in _HEADS]
    if heads and plan.task_type == "CAUSAL_LM":
        message = f"TRL computes its loss from the weights of {heads[0]} itself, past an adapter on it: leave it out."
        yield finding("plan.method.targets", message, modules=heads)
    if known.name == "ADALORA":
        start = method.rank or known.fields["init_r"]["default"]
        end = method.config.get("target_r", known.fields["target_r"]["default"])
        if start <= end:
            message = f"AdaLoRA begins with rank {start} and must end with fewer, not with target_r={end}."
            yield finding("plan.method.option", message, option="target_r")
    if known.name == "OFT" and method.rank and method.config.get("oft_block_size"):
        message = "OFT takes the rank or oft_block_size: their product is a layer's width."
        yield finding("plan.method.option", message, option="oft_block_size")
    if known.name == "IA3" and isinstance(method.target_modules, list):
        forward = method.config.get("feedforward_modules")
        if not isinstance(forward, list) or not set(forward) <= set(method.target_modules):
            message = "IA3 with target_modules needs feedforward_modules, a list of some of them (or none: [])."
            yield finding("plan.method.option", message, option="feedforward_modules")
    if known.name == "CPT":
        mask = method.config.get("cpt_tokens_type_mask") or [0]
        if len({len(method.config.get(name) or ()) for name in known.needs}) != 1 or max(mask) % 4 or not max(mask):
            message = "CPT's three lists must be of one length, and its tokens must end with a label (type 4, 8, ...)."
            yield finding("plan.method.option", message, option="cpt_tokens_type_mask")
    if plan.training.gradient_checkpointing and not known.checkpointing:
        message = f"{known.name} does not train with gradient checkpointing."
        yield finding("plan.method.checkpointing", message, method=known.name)


def _bottleneck(plan: FineTunePlan) -> Iterator[Finding]:
    """What the scripts for the library adapters do not do; its environment has no bitsandbytes."""
    known = methods.method(plan.method.peft_type)
    training = plan.training
    wrong = {
        "task": plan.task == "classification",
        "mixture": bool(plan.mixture),
        "training.packing": training.packing != "none",
        "training.optimizer": "8bit" in training.optimizer,
        "training.compile": training.compile,
        "base.trust_remote_code": plan.base.trust_remote_code,
    }
    for name in (each for each, said in wrong.items() if said):
        message = f"{known.name} comes from the library adapters, with which no project is generated for this {name}."
        yield finding("plan.method.library", message, method=known.name, field=name)


def _loftq(method: Method) -> Iterator[Finding]:
    """PEFT's own LoftQ computes on CUDA only and leaves a base in 16 bits; the scripts start from a base in 4."""
    stated = {"loftq_bits": 4, "loftq_iter": 1}
    other = [f"{name}={value}" for name, value in _part(method, "loftq_config").items() if stated.get(name) != value]
    if method.quantization is None or method.quantization.bits != 4:
        message = "LoftQ begins with what 4 bits lose of the base: it needs method.quantization with bits 4."
        yield finding("plan.method.option", message, option="init_lora_weights")
    elif other:
        message = (
            f"{other[0]}: the scripts take the rounding error of a base in 4 bits once; PEFT does more on CUDA only."
        )
        yield finding("plan.method.option", message, option="loftq_config")


def _part(method: Method, option: str) -> Mapping[str, Any]:
    """A configuration inside the method's own, empty where the plan has none."""
    value = method.config.get(option)
    return value if isinstance(value, Mapping) else {}


def _step_of_method(plan: FineTunePlan) -> Iterator[Finding]:
    """Packing, the loss at learnt positions, and early stopping, as far as the method decides."""
    method, training = plan.method, plan.training
    if method.full:
        return
    known = methods.method(method.peft_type)
    mixes = packing.method_mixes(known, method.config) if training.packing.startswith("bfd") else None
    if mixes:
        yield finding("plan.packing.method", f"{known.name} mixes packed rows: {mixes}.", method=known.name)
    if training.loss_path == "labelled" and packing.method_hides_labels(known):
        message = f"The loss of {known.name} cannot be worked out at the learnt positions alone."
        yield finding("plan.loss.labelled", message, method=known.name)
    if training.patience is not None and not methods.resumes(known, method.config):
        message = f"A checkpoint of {known.name} cannot be gone back to, so the best cannot be kept."
        yield finding("plan.patience.method", message, method=known.name)


def _precision(plan: FineTunePlan) -> Iterator[Finding]:
    """Adam's first updates are as large as the learning rate; half a step of bf16 below 1 is the least that counts."""
    method, rate = plan.method, plan.training.learning_rate
    near_one = not method.full and methods.method(method.peft_type).near_one == "base"
    if near_one and plan.training.precision == "bf16" and rate < _HALF_A_STEP:
        message = f"{method.peft_type} in bf16 changes numbers near 1 in steps of 0.004: updates of {rate:g} are lost."
        yield finding("plan.precision.lost_updates", message, method=method.peft_type, learning_rate=rate)


def _quantization(plan: FineTunePlan) -> Iterator[Finding]:
    method = plan.method
    if method.quantization is None or method.full:
        return
    known = methods.method(method.peft_type)
    bits = method.quantization.bits
    if bits not in known.quantised:
        message = f"{known.name} does not train on a base in {bits} bits."
        yield finding("plan.method.quantised", message, method=known.name, bits=bits, works=list(known.quantised))
    elif method.config.get("target_parameters"):
        yield finding(
            "plan.method.parameters", "target_parameters are not quantised and cannot be adapted in 4 or 8 bits."
        )
    init = str(method.config.get("init_lora_weights", ""))
    if init.startswith(("pissa", "mica", "corda", "lora_ga")):
        message = f"{init} decomposes a 16-bit base; it cannot start from a quantised one."
        yield finding("plan.method.option", message, option="init_lora_weights")


def _unchecked(plan: FineTunePlan) -> Iterator[Finding]:
    if plan.method.full:
        return
    known = methods.method(plan.method.peft_type)
    if known.fails_on or known.only_on:
        yield finding("plan.method.unchecked", method=known.name)
