"""What a script does, in the words of the rules: trainers with model, arguments and adapter, how a base is loaded.

Knows: how to read quantisation, precision and learning rates out of calls, and to mark what is not known.
Does not know: which of it goes together (rules.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from peftsmith.advise import rules as advice
from peftsmith.finding import Finding, finding
from peftsmith.knowledge import methods
from peftsmith.project.foreign import objects
from peftsmith.project.foreign.evaluate import Trace
from peftsmith.project.foreign.values import (
    NOTHING,
    Known,
    Record,
    Site,
    Thing,
    Unknown,
    Value,
    options,
    plain,
    possibly,
    surely,
    things,
    unclear,
)

# Learning rates that argument classes start from: trl 1.16 trainer/sft_config.py, transformers 5.23 training_args.py.
DEFAULT_RATES = {"trl.SFTConfig": 2e-5, "transformers.TrainingArguments": 5e-5}
_QUANTISED_NAME = re.compile(r"bnb-4bit|-4bit\b|gptq|awq", re.IGNORECASE)
_TARGET_DTYPES = {"torch.float16": "fp16", "torch.half": "fp16", "float16": "fp16", "fp16": "fp16"}


@dataclass(frozen=True)
class Loop:
    """One trainer: `args` is what it is configured by, `adapters` the calls that put adapters around its model."""

    site: Site
    model: list[Thing]
    model_value: Value | None
    args: list[Thing]
    args_value: Value | None
    peft: list[Thing]
    peft_value: Value | None

    def argument(self, *names: str) -> Value | None:
        """The value of a training argument under one of its names; Unknown when the arguments were not followed."""
        for each in self.args:
            for name in names:
                found = each.state.get(name) or each.site.get(name)
                if found is not None:
                    return found
        if not self.args and self.args_value is not None:
            return Unknown("training arguments that were not followed")
        return None

    @property
    def adapters(self) -> list[Site]:
        return [each for model in self.model for each in adapters_of(model)]

    @property
    def full(self) -> bool | None:
        """All weights are trained; None when it cannot be said."""
        if self.adapters or things(self.peft_value):
            return False
        named = options(self.model_value)
        if unclear(self.peft_value) or not named or any(unclear(each) for each in named):
            return None
        models = [each for each in named if isinstance(each, Thing)]
        if any(load_of(each) is None for each in models):
            return None
        return not any(site.name.endswith((".add_adapter", ".load_adapter")) for each in models for site in each.later)


@dataclass(frozen=True)
class Facts:
    """Everything that rules ask for. `sites` has every line once; `multi` says what shows several processes; `folder`
    is where the script lies; `versions` are those that it pins, else those it was compared with."""

    trace: Trace
    sites: list[Site]
    loops: list[Loop]
    multi: list[str]
    pins: dict[str, str] = field(default_factory=dict)
    versions: Mapping[str, str | None] = field(default_factory=dict)
    folder: Path | None = None


def gather(
    trace: Trace, pins: dict[str, str], versions: Mapping[str, str | None] | None = None, folder: Path | None = None
) -> Facts:
    """The facts of a walked script; `pins` are versions that it installs itself, `versions` those of the libraries."""
    loops = [_loop(site) for site in trace.sites if is_trainer(site)]
    return Facts(trace, trace.sites, loops, _multi(trace), pins, {**(versions or {}), **pins}, folder)


def at(site: Site, id_: str, message: str, **evidence: Any) -> Finding:
    """A finding about a call, with its place."""
    return finding(id_, f"{site.where()}: {message}", **site.source.place(site.line), **evidence)


def is_trainer(site: Site) -> bool:
    library = site.name.split(".")[0]
    return library in ("transformers", "trl") and site.receiver is None and site.name.endswith("Trainer")


def load_of(model: Thing) -> Site | None:
    """The call that loaded the base under a model."""
    return next((each.site for each in model.chain() if objects.is_load(each.site)), None)


def adapters_of(model: Thing) -> list[Site]:
    """The calls that put adapters around a model, the last first; a merge ends them."""
    found = []
    for each in model.chain():
        if each.site.name.endswith((".merge_and_unload", ".unload")):
            break
        if objects.is_wrap(each.site) or objects.is_adapter_load(each.site):
            found.append(each.site)
    return found


def bits(load: Site) -> set[Any]:
    """How the base may be held: 4, 8, "gptq", "awq", None for not quantised, "unknown"."""
    found: set[Any] = set()
    for keyword, size in (("load_in_4bit", 4), ("load_in_8bit", 8)):
        value = load.get(keyword)
        if possibly(value, True):
            found.add(size)
        elif unclear(value):
            found.add("unknown")
    if load.name.startswith("unsloth.") and load.get("load_in_4bit") is None:
        full = any(possibly(load.get(name), True) for name in ("load_in_8bit", "load_in_16bit", "full_finetuning"))
        found |= set() if full else {4}  # Unsloth loads in 4 bits unless told otherwise
    config = load.get("quantization_config")
    for each in options(config):
        if isinstance(each, Thing):
            found |= _of_config(each)
        elif not isinstance(each, Known):
            found.add("unknown")
    named = plain(load.get("model_name", 0) if load.name.startswith("unsloth.") else load.get("", 0))
    match = _QUANTISED_NAME.search(named) if isinstance(named, str) else None
    if match:
        kind = match[0].lower()
        found.add(kind if kind in ("gptq", "awq") else 4)
    return found or {None}


def _of_config(config: Thing) -> set[Any]:
    kind = config.kind.rpartition(".")[2]
    if kind == "GPTQConfig":
        return {"gptq"}
    if kind == "AwqConfig":
        return {"awq"}
    if kind != "BitsAndBytesConfig":
        return {"unknown"}
    found: set[Any] = set()
    for keyword, size in (("load_in_4bit", 4), ("load_in_8bit", 8)):
        value = config.state.get(keyword) or config.site.get(keyword)
        found |= {size} if possibly(value, True) else {"unknown"} if unclear(value) else set()
    return found or {None}


def half(load: Site) -> bool:
    """Are the weights surely loaded as float16?"""
    value = load.get("dtype") or load.get("torch_dtype")
    return bool(options(value)) and all(_TARGET_DTYPES.get(str(plain(each))) == "fp16" for each in options(value))


def base_name(load: Site) -> str | None:
    """The id or path of the base, where it is plain text."""
    value = load.get("model_name") if load.name.startswith("unsloth.") else load.get("pretrained_model_name_or_path")
    found = plain(value if value is not None else (load.args[0] if load.args else None))
    return found if isinstance(found, str) else None


@cache
def _peft_types() -> dict[str, str]:
    """PEFT's config classes with their type."""
    return {methods.method(name).config: name for name in methods.names()}


def peft_type(config: Thing) -> str | None:
    return _peft_types().get(config.site.name.rpartition(".")[2]) if config.site.name.startswith("peft.") else None


def configs(facts: Facts) -> list[Site]:
    """The calls of PEFT's config classes, and Unsloth's get_peft_model, which takes LoRA's options itself."""
    known = [site for site in facts.sites if site.name.startswith("peft.") and site.name.endswith("Config")]
    return known + [site for site in facts.sites if site.name in objects.WRAPS and site.name.startswith("unsloth.")]


def types_of(loop: Loop) -> set[str]:
    """The PEFT types that a trainer may train; empty when nothing is known."""
    found = {peft_type(each) for each in loop.peft}
    for site in loop.adapters:
        if site.name.startswith("unsloth."):
            found.add("LORA")
        found |= {peft_type(each) for each in things(site.get("peft_config", 1))}
    return {each for each in found if each is not None}


def band(kind: str) -> tuple[float, float]:
    """Lowest and highest learning rate that experience supports for a PEFT type, or for FULL."""
    if kind == methods.FULL:
        return advice.LOWEST_OF_FULL, advice.HIGHEST_OF_FULL
    return methods.method(kind).learning_rate or (advice.LOWEST_LEARNING_RATE, advice.HIGHEST_LEARNING_RATE)


def stage_of(value: Value | None) -> int | None:
    """DeepSpeed's ZeRO stage, from a settings dictionary or the name of its file."""
    for each in options(value):
        if isinstance(each, Record):
            zero = each.values.get("zero_optimization")
            stage = plain(zero.values.get("stage")) if isinstance(zero, Record) else NOTHING
            if isinstance(stage, int):
                return stage
        text = plain(each)
        match = re.search(r"(?:zero|z|stage)[-_]?([123])", text, re.IGNORECASE) if isinstance(text, str) else None
        if match:
            return int(match[1])
    return None


def _loop(site: Site) -> Loop:
    model, args, peft = site.get("model", 0), site.get("args", 1), site.get("peft_config")
    return Loop(site, things(model), model, [e for e in things(args)], args, things(peft), peft)


def _multi(trace: Trace) -> list[str]:
    """What shows that the script is meant for several processes, each with its place."""
    found = []
    for site in trace.sites:
        if site.name in ("torch.distributed.init_process_group", "torch.nn.parallel.DistributedDataParallel"):
            found.append(f"{site.where()}: {site.name}")
        name = plain(site.args[0]) if site.args else None
        if site.name in ("os.environ.get", "os.getenv") and name in ("LOCAL_RANK", "WORLD_SIZE", "RANK"):
            found.append(f"{site.where()}: reads {name}")
        if site.name.endswith(("TrainingArguments", "Config")) and site.name.split(".")[0] in ("transformers", "trl"):
            for keyword in ("deepspeed", "fsdp"):
                value = site.get(keyword)
                if value is not None and not unclear(value) and not (surely(value, None) or surely(value, False)):
                    found.append(f"{site.where()}: {keyword}=")
    for source in trace.sources:
        found += [f"{source.where(line)}: {word}" for line, word in _launchers(source.lines, source.shell)]
        for number, line in enumerate(source.lines, start=1):
            match = re.search(r"environ\[[\"'](LOCAL_RANK|WORLD_SIZE)[\"']\](?!\s*=[^=])", line)
            if match and not line.lstrip().startswith("#"):
                found.append(f"{source.where(number)}: reads {match[1]}")
    return found


def _launchers(lines: tuple[str, ...], shell: Any) -> Iterator[tuple[int, str]]:
    """Command lines, in comments and docstrings too, that start several processes."""
    started = re.compile(r"\b(torchrun|torch\.distributed\.run|accelerate launch|deepspeed)\b(?P<rest>.*)")
    several = re.compile(
        r"(?:--nproc[_-]per[_-]node|--num_processes|--num_gpus)[= ]+(?:[2-9]|\d\d|gpu|auto)|--multi_gpu"
    )
    for number, text in [*enumerate(lines, start=1), *((each.line, each.command) for each in shell)]:
        match = started.search(text)
        if match and several.search(match["rest"]):
            yield number, match[1]
