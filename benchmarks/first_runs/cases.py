"""The cases of the benchmark of first runs: which plans must be proven, and which must be refused with what.

Knows: how to combine model types, tasks, methods and quantisations (cases.toml) into plans, the same ones every time.
Does not know: plans of other people (plans.py), or how a case is tried (trying.py).
"""

from __future__ import annotations

import itertools
import json
import random
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from peftsmith import plan
from peftsmith.errors import PeftsmithError
from peftsmith.knowledge import methods
from peftsmith.project import fitness

GENERATING = ("chat", "completion", "text", "continued_pretraining", "classification")
LABELS = ["billing", "delivery"]
MODEL = "base"  # stands in a plan for the folder that project.py makes


@dataclass(frozen=True)
class Case:
    """A plan (plain data) with a config.json for its base.

    `refused` is None for a plan that must be proven, the id of the finding that must stop it ("plan": it is not a valid
    plan at all), or True where any refusal is right. `source` is the folder of the file that the plan comes from;
    `untried` says why a case cannot be tried.
    """

    name: str
    plan: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    refused: str | bool | None = None
    source: Path | None = None
    untried: str | None = None


@cache
def facts() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("cases.toml").read_text(encoding="utf-8"))


@cache
def kinds() -> dict[str, str]:
    """Model type to what it is: decoder, experts, hybrid, encoder or encoder-decoder."""
    return {name: kind for kind, types in facts()["types"].items() for name in types}


def sizes(model_type: str) -> dict[str, Any]:
    """What the type's default config lacks."""
    known: dict[str, dict[str, Any]] = facts()["types"].get(kinds().get(model_type, ""), facts()["others"])
    return known.get(model_type, {})


def combination(
    model_type: str,
    task: str,
    method: Mapping[str, Any],
    training: Mapping[str, Any] | None = None,
    refused: str | bool | None = None,
    config: Mapping[str, Any] | None = None,
) -> Case:
    """A case of ours: small batches, no checkpointing and float32 unless `training` says otherwise."""
    document = {
        "schema_version": plan.SCHEMA_VERSION,
        "name": "first-run",
        "task": task,
        "base": {"model": MODEL},
        "data": {
            "train": "data/train.jsonl",
            "eval": "data/eval.jsonl" if training and {"eval_steps", "patience"} & set(training) else None,
            "test": "data/test.jsonl",
            "format": plan.TASK_FORMATS[task][0],
            "labels": LABELS if task in plan.LABELLED else [],
            "system_prompt": "route the ticket to one queue" if task == "classification" else None,
        },
        "method": dict(method),
        "training": {
            "precision": "fp32",
            "batch_size": 2,
            "max_length": 64,
            "learning_rate": 0.01,
            "gradient_checkpointing": False,
            "optimizer": "adamw_torch",
            **(training or {}),
        },
    }
    if _by_task(method):
        of = {split: document["data"].pop(split) for split in ("train", "eval", "test")}
        parts = {name: {split: file and f"{name}/{file}" for split, file in of.items()} for name in LABELS}
        document["mixture"] = parts
    whole = {"model_type": model_type, **sizes(model_type), **(config or {})}
    return Case(_name(model_type, task, method, training or {}, config or {}), document, whole, refused)


def _by_task(method: Mapping[str, Any]) -> bool:
    """Does the method tell tasks apart, so that its rows come in several files?"""
    name = str(method.get("peft_type", "LORA"))
    return name in methods.names() and methods.method(name).by_task is not None


def _name(model_type: str, task: str, *parts: Mapping[str, Any]) -> str:
    method, training, config = map(dict, parts)
    quantization = method.pop("quantization", None)
    words = [model_type, task, method.pop("peft_type", "LORA")]
    words += [json.dumps(each, sort_keys=True) for each in (method, quantization, training, config) if each]
    return " ".join(words)


def valid(seed: int) -> Iterator[Case]:
    """Cases without end but never one twice: every method, variant and architecture once, then by chance."""
    supported = [name for name in methods.names() if not methods.method(name).unsupported]
    draw, seen = random.Random(seed), set()
    first = (*_each_once(supported), *_tied())
    plain = [name for name in supported if not methods.method(name).by_task]
    for case in itertools.chain(first, (_drawn(draw, plain) for _ in itertools.repeat(None))):
        if case.name not in seen and not refusals(case):
            seen.add(case.name)
            yield case


def _each_once(supported: list[str]) -> Iterator[Case]:
    for name in supported:
        yield combination("llama", "chat", method(name))
    for variant in facts()["variants"]:
        targets = {"target_modules": ["q_proj", "v_proj"]} if "exclude_modules" not in variant else {}
        yield combination("llama", "chat", {**method("LORA"), **targets, "config": variant})
    rounded = {"config": {"init_lora_weights": "loftq"}, "quantization": facts()["quantizations"]["nf4"]}
    yield combination("llama", "chat", {**method("LORA"), **rounded})
    for steps in facts()["steps"]:
        yield combination("qwen2", "chat", method("LORA"), steps)
    yield combination("llama", "chat", {"peft_type": methods.FULL, "reason": "a test"})
    experts = {"target_parameters": facts()["targets"]["experts"]}
    yield combination("mixtral", "chat", {"rank": 4, "alpha": 8, "target_modules": None, "config": experts})
    yield combination("qwen3_moe", "text", {"rank": 4, "alpha": 8, "target_modules": ["q_proj"], "config": experts})
    yield from map(_found, facts()["found"])
    for place, model_type in enumerate(kinds()):
        possible = tasks(model_type)
        yield combination(model_type, possible[place % len(possible)], method("LORA", model_type))


def _found(entry: Mapping[str, Any]) -> Case:
    """`type`, `task`, `method`, and what differs from its usual `options`, `targets`, `training` and `config`."""
    full = {"peft_type": methods.FULL, "reason": "a test"}
    chosen = full if entry["method"] == methods.FULL else method(entry["method"], entry["type"])
    chosen |= {"target_modules": entry["targets"]} if "targets" in entry else {}
    chosen |= {"config": {**chosen.get("config", {}), **entry["options"]}} if "options" in entry else {}
    chosen |= {"quantization": facts()["quantizations"][entry["quantization"]]} if "quantization" in entry else {}
    return combination(entry["type"], entry["task"], chosen, entry.get("training"), config=entry.get("config"))


def _tied() -> Iterator[Case]:
    """Embeddings and head that are one matrix: the adapter must not part them."""
    tied = {"tie_word_embeddings": True}
    yield combination("llama", "text", method("LORA"), config=tied)
    tokens = {"config": {"trainable_token_indices": [5, 6, 7, 8]}}
    yield combination("qwen2", "chat", {**method("LORA"), **tokens}, config=tied)
    yield combination("llama", "chat", {"peft_type": methods.FULL, "reason": "a test"}, config=tied)


def _drawn(draw: random.Random, supported: list[str]) -> Case:
    model_type = draw.choice(list(kinds()))
    name = draw.choice((*supported, methods.FULL, "LORA", "LORA", "LORA"))
    quantizations = facts()["quantizations"]
    quantization = draw.choice((None, None, None, *quantizations))
    chosen = {"peft_type": name, "reason": "a test"} if name == methods.FULL else method(name, model_type)
    if quantization:
        chosen["quantization"] = quantizations[quantization]
    if name == "LORA":
        chosen["config"] = draw.choice(({}, *facts()["variants"][:6]))
    training = {
        "precision": draw.choice(("fp32", "fp32", "bf16")),
        "gradient_checkpointing": draw.random() < 0.3,
        "gradient_accumulation": draw.choice((1, 1, 2)),
        "optimizer": draw.choice(("adamw_torch_fused",) * 7 + ("adamw_8bit", "adamw_8bit", "paged_adamw_8bit")),
    }
    if name != methods.FULL and not methods.method(name).checkpointing:
        training["gradient_checkpointing"] = False
    return combination(model_type, draw.choice(tasks(model_type)), chosen, training)


def refusals(case: Case) -> list[str]:
    """The findings that stop a plan; "plan" for one that is not valid."""
    try:
        made = plan.validate(case.plan)
    except PeftsmithError:
        return ["plan"]
    return [each.id for each in fitness.judge(made, case.config) if each.severity == "error"]


def tasks(model_type: str) -> tuple[str, ...]:
    """The tasks for which transformers has a class; a decoder classifies as well."""
    understood = ("sequence_classification", "token_classification", "question_answering")
    special: dict[str, tuple[str, ...]] = {"encoder": understood, "encoder-decoder": ("seq2seq", "question_answering")}
    wanted = special.get(kinds()[model_type], (*GENERATING, *understood))
    return tuple(task for task in wanted if methods.supports(plan.TASK_TYPES[task], model_type))


def method(name: str, model_type: str = "llama") -> dict[str, Any]:
    """A plan's method with the numbers of cases.toml, and targets where the method's own do not work."""
    chosen: dict[str, Any] = {"peft_type": name}
    options, targets = dict(facts()["options"].get(name, {})), facts()["targets"]
    if name in facts()["ranks"]:
        chosen["rank"] = facts()["ranks"][name]
    if name == "LORA":
        chosen["alpha"] = 8
    if model_type in ("mamba", "falcon_h1") and methods.method(name).defaults.get("target_modules") == "all-linear":
        chosen["target_modules"] = targets[model_type]
    if name == "LN_TUNING":
        chosen["target_modules"] = targets["norms"]
    if name == "IA3":
        chosen["target_modules"], options = "all-linear", {"feedforward_modules": []}
    return {**chosen, **({"config": options} if options else {})}


def invalid() -> Iterator[Case]:
    """Combinations that do not exist, each with the finding that must say so."""
    for name in methods.names():
        yield from _invalid_of(methods.method(name))
    for model_type, wrong in facts()["classless"].items():
        for task in wrong:
            yield combination(model_type, task, method("LORA", model_type), refused="plan.task.architecture")
    for chosen in facts()["wrong"]:
        yield combination("llama", "chat", chosen, refused="plan")
    for entry in facts()["unfit"]:
        yield combination(
            entry["type"], entry["task"], entry["method"], entry.get("training"), entry["refused"], entry.get("config")
        )
    yield from _invalid_tasks()
    yield from _invalid_steps()
    yield from _invalid_targets()
    yield from _invalid_options()


def _invalid_of(known: methods.Method) -> Iterator[Case]:
    name = known.name
    if known.unsupported:
        yield combination("llama", "chat", method(name), refused="plan.method.unsupported")
        return
    for model_type in known.fails_on:
        task = "chat" if methods.supports("CAUSAL_LM", model_type) else "sequence_classification"
        if methods.supports(plan.TASK_TYPES[task], model_type):
            yield combination(model_type, task, method(name), refused="plan.method.architecture")
    if not known.quantised:
        quantised = {**method(name), "quantization": {"bits": 4}}
        yield combination("llama", "chat", quantised, refused="plan.method.quantised")
    for task, task_type in plan.TASK_TYPES.items():
        if task_type not in known.tasks and task_type != "CAUSAL_LM":
            model_type = "t5" if task_type == "SEQ_2_SEQ_LM" else "bert"
            yield combination(model_type, task, method(name), refused="plan.method.task")
    if not known.checkpointing:
        yield combination(
            "llama", "chat", method(name), {"gradient_checkpointing": True}, refused="plan.method.checkpointing"
        )
    options = facts()["options"].get(name, {})
    for needed in known.needs:
        left = {key: value for key, value in options.items() if key != needed}
        yield combination("llama", "chat", {"peft_type": name, "config": left}, refused="plan")
    ranked = {"rank": 0} if "rank" in known.names else {"config": options, "rank": 8}
    yield combination("llama", "chat", {"peft_type": name, **ranked}, refused="plan")
    yield combination("llama", "chat", {"peft_type": name, "config": {"no_such_field": 1}}, refused="plan")


def _invalid_tasks() -> Iterator[Case]:
    """A method that tells tasks apart, with rows of one kind."""
    for name in ("POLY", "MULTITASK_PROMPT_TUNING"):
        several = combination("llama", "chat", method(name), refused="plan.method.tasks")
        one = {key: value for key, value in several.plan.items() if key != "mixture"}
        data = {**several.plan["data"], "train": "data/train.jsonl"}
        yield Case(f"{several.name} of one kind", {**one, "data": data}, several.config, "plan.method.tasks")


def _invalid_steps() -> Iterator[Case]:
    """Batches and losses that a task, a method or an architecture does not bear."""
    packed, labelled = {"packing": "bfd"}, {"loss_path": "labelled"}
    for model_type in ("mamba", "bloom"):
        chosen = method("LORA", model_type)
        yield combination(model_type, "text", chosen, packed, refused="plan.packing.architecture")
    for name in ("PROMPT_TUNING", "PREFIX_TUNING"):
        yield combination("llama", "chat", method(name), packed, refused="plan.packing.method")
    yield combination("llama", "chat", method("PROMPT_TUNING"), labelled, refused="plan.loss.labelled")
    yield combination("bert", "sequence_classification", method("LORA"), packed, refused="plan")
    yield combination("llama", "chat", method("LORA"), {"eval_steps": 3, "patience": 2}, refused="plan")


def _invalid_targets() -> Iterator[Case]:
    """Quantised layers, experts and state-space layers take less than other layers do."""
    eight, four = {"quantization": {"bits": 8}}, {"quantization": {"bits": 4}}
    yield combination("bart", "seq2seq", {**method("GRALORA"), **eight}, refused="plan.method.architecture")
    wide = {**method("RANDLORA"), **four}
    yield combination("gpt2", "text", wide, {"precision": "bf16"}, refused="plan.method.architecture")
    mamba = {**method("LORA", "mamba"), **eight}
    yield combination("mamba", "text", mamba, refused="plan.quantization.architecture")
    half = {"precision": "bf16"}
    yield combination("deberta", "token_classification", method("LORA"), half, refused="plan.precision.architecture")
    experts = {"target_parameters": facts()["targets"]["experts"]}
    for chosen in (
        {"config": {"use_dora": True}},
        {"config": {**experts, "use_dora": True}},
        {"config": {**experts, "lora_bias": True}},
        {"config": experts, "dropout": 0.1},
        {"config": experts, "quantization": {"bits": 4}},
    ):
        yield combination("mixtral", "chat", chosen, refused="plan.method.parameters")
    yield combination("mamba", "text", {"rank": 4}, refused="plan.method.targets")
    mixer = {"rank": 4, "target_modules": ["q_proj", "out_proj"]}
    yield combination("falcon_h1", "text", mixer, refused="plan.method.targets")


def _invalid_options() -> Iterator[Case]:
    """Options that need a preparation which the scripts do not do, that PEFT, TRL or the base cannot do."""
    for options in (
        {"init_lora_weights": "corda", "corda_config": {"cache_file": "eigens.pt"}},
        {"init_lora_weights": "pissa_niter_4", "modules_to_save": ["norm"]},
        {"use_qalora": True},
        {"layer_replication": [[0, 2], [1, 1]]},
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
    ):
        yield combination("llama", "chat", {"config": options}, refused="plan.method.option")
    head = {"rank": 4, "target_modules": ["q_proj", "lm_head"]}
    yield combination("llama", "chat", head, refused="plan.method.targets")
    tied = {"tie_word_embeddings": True}
    yield combination("qwen2", "chat", method("TRAINABLE_TOKENS"), refused="plan.method.architecture", config=tied)
    yield combination("llama", "chat", {"peft_type": "ADALORA", "rank": 8}, refused="plan.method.option")
    yield combination("t5", "seq2seq", {"peft_type": "IA3", "target_modules": ["k"]}, refused="plan.method.option")
