"""Rules about what a trainer is given: each gives findings with the line, or nothing.

Knows: the pairs of docs/findings.md's failure table that meet in a trainer (rows 1, 21, 22, 27-29, 32, 34).
Does not know: packing (attention.py), loads, adapters and merges by themselves (rules_calls.py), security (dangers.py),
names (signatures.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from peftsmith.finding import Finding, finding
from peftsmith.knowledge import methods
from peftsmith.project.foreign import attention, facts, objects, targets, values
from peftsmith.project.foreign.facts import Facts, Loop
from peftsmith.project.foreign.values import Site

CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")
CHECKPOINTING_KWARGS = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
# Architectures whose activations leave float16's range (field reports; transformers loads them in bfloat16).
_OVERFLOWS = re.compile(r"gemma|qwen3[-_.]?(moe|\d+b-a\d+b)|glm-?4\.\d.*(moe|air)", re.IGNORECASE)


def judge(known: Facts) -> Iterator[Finding]:
    """All rules over all trainers."""
    for loop in known.loops:
        yield from _precision(loop)
        yield from _quantised_full(loop)
        yield from _adapter_twice(loop)
        yield from _learning_rate(loop)
        yield from attention.judge(loop, known)
        yield from targets.judge(loop, known)
        yield from _prefix(loop)
        yield from _padding(loop)
        yield from _evaluation(loop)
        yield from _distributed(loop, known)
        yield from _input_gradients(loop, known)
        yield from _unfollowed(loop)


def _precision(loop: Loop) -> Iterator[Finding]:
    if not values.possibly(loop.argument("fp16"), True):
        return
    for model in loop.model:
        load = facts.load_of(model)
        if load is None:
            continue
        cast = [site for each in model.chain() for site in each.later if site.name.endswith(".half")]
        after = [site for site in cast if site.receiver is not None and facts.adapters_of(site.receiver)]
        uncast = [site for site in loop.adapters if values.surely(site.get("autocast_adapter_dtype"), False)]
        if (facts.half(load) and (loop.full or uncast)) or (cast and loop.full) or (after and not loop.full):
            why = "the weights that are trained are float16, and fp16=True scales their gradients as well"
            yield facts.at(loop.site, "script.precision.fp16_trainables", why)
        name = facts.base_name(load)
        if name and _OVERFLOWS.search(name):
            yield facts.at(loop.site, "script.precision.fp16_overflow", f"fp16=True with {name}", base=name)


def _quantised_full(loop: Loop) -> Iterator[Finding]:
    for model in loop.model:
        load = facts.load_of(model)
        if load is not None and loop.full and facts.bits(load) & {4, 8, "gptq", "awq"}:
            held = f"a base that {load.where()} loads quantised"
            yield facts.at(loop.site, "script.quantised.full_tuning", f"{held} is trained without an adapter")


def _adapter_twice(loop: Loop) -> Iterator[Finding]:
    if loop.peft and loop.adapters:
        first = loop.adapters[0].where()
        yield facts.at(
            loop.site, "script.adapter.config_again", f"peft_config= for a model that has an adapter ({first})"
        )


def _learning_rate(loop: Loop) -> Iterator[Finding]:
    kind = loop.site.name.rpartition(".")[2]
    if kind not in ("SFTTrainer", "Trainer", "Seq2SeqTrainer"):
        return  # preference and reward trainers have rates of their own
    known = {methods.FULL} if loop.full else facts.types_of(loop)
    if loop.full is None or (not known and loop.full is not False):
        return
    rate = loop.argument("learning_rate")
    default = next((facts.DEFAULT_RATES[each.kind] for each in loop.args if each.kind in facts.DEFAULT_RATES), None)
    if not loop.args and (loop.args_value is None or values.surely(loop.args_value, None)) and kind == "SFTTrainer":
        default = facts.DEFAULT_RATES["trl.SFTConfig"]
    if rate is None and default is not None:
        rate = values.Known(default)
    for each in values.options(rate):
        value = values.plain(each)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        for name in sorted(known):
            low, high = facts.band(name)
            if not low <= value <= high:
                said = "set" if loop.argument("learning_rate") is not None else "the default"
                message = f"learning rate {value:g} ({said}) for {name}, whose range is {low:g} to {high:g}"
                yield facts.at(loop.site, "script.learning_rate.outside", message, value=value, range=[low, high])


def _prefix(loop: Loop) -> Iterator[Finding]:
    if "PREFIX_TUNING" not in facts.types_of(loop):
        return
    value = loop.argument(*CHECKPOINTING)
    by_default = value is None and any(each.kind == "trl.SFTConfig" for each in loop.args)
    by_method = any(_enables(site) for model in loop.model for each in model.chain() for site in each.later)
    if by_default or by_method or values.possibly(value, True):
        how = "SFTConfig turns checkpointing on by default" if by_default else "checkpointing is on"
        yield facts.at(loop.site, "script.prefix.checkpointing", f"prefix tuning, and {how}")


def _enables(site: Site) -> bool:
    return site.name.endswith((".gradient_checkpointing_enable", ".activation_checkpointing_enable"))


def _padding(loop: Loop) -> Iterator[Finding]:
    """transformers' collator for language models masks every label that equals the pad token."""
    for collator in values.things(loop.site.get("data_collator", 2)):
        if collator.kind != "transformers.DataCollatorForLanguageModeling" or not values.surely(
            collator.site.get("mlm", 1), False
        ):
            continue
        for tokenizer in values.things(collator.site.get("tokenizer", 0)):
            for name in ("pad_token", "pad_token_id"):
                value = tokenizer.state.get(name)
                end = [
                    each
                    for each in values.options(value)
                    if isinstance(each, values.Field) and each.name.startswith("eos_token")
                ]
                if end:
                    message = f"{name} is the end-of-sequence token, whose labels this collator masks"
                    yield facts.at(collator.site, "script.pad.masks_end", message)
                    break


def _evaluation(loop: Loop) -> Iterator[Finding]:
    strategy = loop.argument("eval_strategy", "evaluation_strategy")
    evaluates = any(values.plain(each) in ("steps", "epoch") for each in values.options(strategy))
    rows = loop.site.get("eval_dataset")
    if evaluates and (rows is None or values.surely(rows, None)):
        yield facts.at(loop.site, "script.evaluation.no_rows", "evaluation is on, and the trainer gets no eval_dataset")
    never = strategy is None or values.surely(strategy, "no")
    saves = not values.surely(loop.argument("save_strategy"), "no")
    if never and saves and loop.args and values.possibly(loop.argument("load_best_model_at_end"), True):
        yield facts.at(loop.site, "script.evaluation.no_strategy", "load_best_model_at_end without eval_strategy")


def _distributed(loop: Loop, known: Facts) -> Iterator[Finding]:
    reentrant = [
        each.values.get("use_reentrant")
        for each in values.options(loop.argument(*CHECKPOINTING_KWARGS))
        if isinstance(each, values.Record)
    ]
    stage = facts.stage_of(loop.argument("deepspeed"))
    if stage == 3:
        if loop.full is False and any(values.possibly(each, False) for each in reentrant):
            yield facts.at(loop.site, "script.checkpointing.zero3", "ZeRO-3 with an adapter and use_reentrant=False")
    elif known.multi and any(values.possibly(each, True) for each in reentrant):
        yield facts.at(
            loop.site, "script.checkpointing.ddp", f"use_reentrant=True in several processes ({known.multi[0]})"
        )
    fsdp = loop.argument("fsdp")
    if fsdp is not None and not values.unclear(fsdp) and not any(values.surely(fsdp, off) for off in (None, False, "")):
        for load in filter(None, map(facts.load_of, loop.model)):
            yield from _storage(loop, load)


def _storage(loop: Loop, load: Site) -> Iterator[Finding]:
    """FSDP flattens tensors of one type only: 4-bit weights must be stored as the type of the others."""
    if 4 not in facts.bits(load):
        return
    stored = [
        each.state.get("bnb_4bit_quant_storage") or each.site.get("bnb_4bit_quant_storage")
        for each in values.things(load.get("quantization_config"))
    ]
    dtype = load.get("dtype") or load.get("torch_dtype")
    for value in stored:
        known = value is not None and dtype is not None and not values.unclear(value) and not values.unclear(dtype)
        if value is None or (
            known and str(values.plain(value)).split(".")[-1] != str(values.plain(dtype)).split(".")[-1]
        ):
            said = "is not set" if value is None else f"is {values.plain(value)} and dtype {values.plain(dtype)}"
            yield facts.at(
                loop.site, "script.fsdp.quant_storage", f"FSDP with 4-bit weights: bnb_4bit_quant_storage {said}"
            )


def _input_gradients(loop: Loop, known: Facts) -> Iterator[Finding]:
    """Frozen embeddings give outputs without gradients, which reentrant checkpointing cannot cross. Since version 5
    transformers' own switch sees to it (modeling_utils.activation_checkpointing_enable)."""
    on = values.possibly(loop.argument(*CHECKPOINTING), True) or any(
        _enables(site) for model in loop.model for each in model.chain() for site in each.later
    )
    if not on or loop.full is not False or loop.site.name.startswith("trl.") or not loop.adapters:
        return
    kwargs = [each for each in values.options(loop.argument(*CHECKPOINTING_KWARGS)) if isinstance(each, values.Record)]
    if any(values.surely(each.values.get("use_reentrant"), False) for each in kwargs):
        return
    chain = [each for model in loop.model for each in model.chain()]
    prepared = any(each.site.name in objects.PREPARES for each in chain)
    enabled = any(site.name.endswith(".enable_input_require_grads") for each in chain for site in each.later)
    if prepared or enabled or any(each.site.name.startswith("unsloth.") for each in chain):
        return
    old = (known.pins.get("transformers") or "5").split(".")[0]
    older = old.isdigit() and int(old) < 5
    said = (
        "nothing makes the embeddings' outputs carry gradients; transformers 5 does that by itself, older ones do not"
    )
    place = loop.site.source.place(loop.site.line)
    yield finding(
        "script.checkpointing.no_input_gradients",
        f"{loop.site.where()}: {said}",
        severity="error" if older else "info",
        **place,
    )


def _unfollowed(loop: Loop) -> Iterator[Finding]:
    """What no rule could judge, since it was not followed."""
    missing = []
    if any(isinstance(each, (values.Unknown, values.Field)) for each in values.options(loop.model_value)):
        missing.append("model")
    if any(isinstance(each, (values.Unknown, values.Field)) for each in values.options(loop.args_value)):
        missing.append("args")
    if any(isinstance(each, (values.Unknown, values.Field)) for each in values.options(loop.peft_value)):
        missing.append("peft_config")
    if loop.site.open:
        missing.append("**mapping")
    for model in loop.model:
        load = facts.load_of(model)
        if load is None:
            missing.append("how the model was loaded")
        elif "unknown" in facts.bits(load):
            missing.append("whether the base is quantised")
    for each in loop.args:
        if each.site.open:
            missing.append(f"a **mapping of {each.kind}")
        missing += [
            name for name in ("learning_rate", "fp16", "packing") if values.unclear(each.site.keywords.get(name))
        ]
    for site in loop.adapters:
        if values.unclear(site.get("peft_config", 1)) and not site.name.startswith("unsloth."):
            missing.append("the adapter's config")
    if missing:
        names = sorted(set(missing))
        yield facts.at(
            loop.site, "script.unread.value", f"not followed, so not judged: {', '.join(names)}", names=names
        )
