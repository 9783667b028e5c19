"""Do method, options and quantisation go together with this base model? What does not is refused beforehand.

Knows: what PEFT, transformers or bitsandbytes cannot do with an architecture, from knowledge/methods.toml, the
catalogue of architectures, and the list of model types that have a class for a task.
Does not know: what a method cannot do on any base (fitness.py), or whether the scripts work (vet.py, twin.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from peftsmith.finding import Finding, finding
from peftsmith.knowledge import methods, packing
from peftsmith.model import catalogue, conversion, reach
from peftsmith.plan import FineTunePlan

# PEFT refuses out_proj and conv1d of these types (tuners_utils.py, _check_lora_target_modules_mamba) to these methods.
_STATE_SPACE = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
_CHECKED = ("LORA", "ADALORA", "RANDLORA")
# transformers 5.23: DeBERTa fills its attention mask with the lowest number of float32, whatever it computes in.
_ONLY_FLOAT32 = ("deberta",)
# Mamba multiplies with the weight of dt_proj itself, which bitsandbytes holds packed.
_NOT_QUANTISED = ("mamba",)
# Their attention gives layers four-dimensional input, which bitsandbytes 0.50 does not turn into 8 bits.
_NOT_IN_8_BITS = ("deepseek_v2", "deepseek_v3")
# Layers whose weights the model reads without calling them, or whose answer is no single tensor.
_PAST_ADAPTERS = {
    **dict.fromkeys(("mamba", "falcon_mamba", "jamba"), ("dt_proj",)),
    **dict.fromkeys(("llama4", "llama4_text", "phimoe"), ("router",)),
}
# What is called a norm and is none: PEFT 0.21.2 ends there with StopIteration.
_EMPTY_NORMS = {"modernbert": ("layers.0.attn_norm",), "falcon_h1": ("model.layers.0.mamba.norm",)}


def judge(plan: FineTunePlan, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Findings for one adapter on the base that `config`, its config.json, describes."""
    model_type = str(config.get("model_type"))
    yield from _architecture(plan, model_type)
    yield from _tied_tokens(plan, config)
    yield from _replication(plan, config)
    yield from _prefixes(plan, config)
    yield from _norms(plan, model_type)
    yield from _older_transformers(plan, config)
    yield from _step_of_architecture(plan, model_type)


def out_of_reach(model_type: str, peft_type: str) -> tuple[str, ...]:
    """Names of modules that an adapter of this type cannot be put on in models of this type."""
    refused = ("out_proj", "conv1d") if model_type in _STATE_SPACE and peft_type in _CHECKED else ()
    return (*refused, *_PAST_ADAPTERS.get(model_type, ()))


def against_parameters(plan: FineTunePlan) -> list[str]:
    """Options that LoRA does not have on experts, which are parameters and no layers."""
    config = plan.method.config
    options = [name for name in ("use_dora", "lora_bias", "alora_invocation_tokens") if config.get(name)]
    if methods.decomposes(config):
        options.append("init_lora_weights")
    return [*options, "dropout"] if plan.method.dropout else options


def _turned_into_parameters(plan: FineTunePlan, model_type: str) -> bool:
    """Does PEFT make parameters of some of LoRA's targets, since these are names inside of experts?"""
    names, targets = conversion.names_of(model_type), plan.method.target_modules
    if plan.method.peft_type != "LORA" or not names:
        return False
    named = targets if isinstance(targets, list) else []
    return targets == "all-linear" or any(each.rpartition(".")[2] in names for each in named)


def _prefixes(plan: FineTunePlan, config: Mapping[str, Any]) -> Iterator[Finding]:
    """PEFT 0.21.2 makes a prefix of heads that share the model's width, and only for the half that writes."""
    model_type = str(config.get("model_type"))
    if plan.method.peft_type != "PREFIX_TUNING" or not methods.supports("SEQ_2_SEQ_LM", model_type):
        return
    if plan.task_type == "QUESTION_ANS":
        message = f"PREFIX_TUNING does not work for answers of an encoder-decoder ({model_type})."
        yield finding("plan.method.architecture", message, method="PREFIX_TUNING", model_type=model_type)
    entry = catalogue.entry(model_type, "seq2seq")
    usual = entry["fields"] if entry else {}
    heads, width, whole = (config.get(name, usual.get(name)) for name in ("num_heads", "d_kv", "d_model"))
    if heads and width and heads * width != whole:
        message = (
            f"PREFIX_TUNING takes a head to be {whole} / {heads} wide; here it is {width} wide. Another size of "
            f"{model_type} may fit, or take LORA."
        )
        yield finding("plan.method.architecture", message, method="PREFIX_TUNING", model_type=model_type)


def _older_transformers(plan: FineTunePlan, config: Mapping[str, Any]) -> Iterator[Finding]:
    """The library adapters needs transformers 4.57, which knows no rope_parameters: it would turn them off unsaid."""
    method = plan.method
    if method.full or methods.method(method.peft_type).library != "adapters":
        return
    if config.get("rope_parameters") and "rope_theta" not in config:
        message = f"{method.peft_type} runs on transformers 4.57, which does not read this base's rope_parameters."
        yield finding("plan.method.architecture", message, method=method.peft_type, model_type=config.get("model_type"))


def _norms(plan: FineTunePlan, model_type: str) -> Iterator[Finding]:
    targets = plan.method.target_modules
    if plan.method.peft_type != "LN_TUNING" or not targets:
        return
    empty = reach.matching(_EMPTY_NORMS.get(model_type, ()), targets)
    if empty:
        message = f"{targets!r} includes {empty[0]}, which holds no weights in {model_type} models: name others."
        yield finding("plan.method.targets", message[:400], model_type=model_type, modules=empty)


def _replication(plan: FineTunePlan, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Ranges of layers that the base has, on a type whose layers PEFT repeats."""
    ranges, model_type = plan.method.config.get("layer_replication"), str(config.get("model_type"))
    if not ranges or plan.method.full:
        return
    layers = config.get("num_hidden_layers")
    wrong = [each for each in ranges if len(each) != 2 or not 0 <= each[0] < each[1] <= (layers or each[1])]
    if model_type not in methods.method(plan.method.peft_type).replicates:
        message = f"PEFT 0.21.2 does not repeat the layers of {model_type} so that they compute as they should."
        yield finding("plan.method.option", message, option="layer_replication")
    elif wrong:
        message = f"{wrong[0]} is no range of layers: [first, behind the last] within the base's {layers or 'layers'}."
        yield finding("plan.method.option", message, option="layer_replication")


def _step_of_architecture(plan: FineTunePlan, model_type: str) -> Iterator[Finding]:
    if plan.training.packing.startswith("bfd"):
        apart = packing.keeps_apart(model_type)
        if apart is None:
            yield finding("plan.packing.untried", model_type=model_type)
        elif apart is not True:
            reason = apart or "packed rows see each other through its layers"
            message = f"{model_type}: {reason}"
            yield finding(
                "plan.packing.kernel" if apart else "plan.packing.architecture", message, model_type=model_type
            )
    if plan.training.loss_path == "labelled" and packing.labelled(model_type) is False:
        message = f"{model_type} models do not give logits at chosen positions alone, or add a loss of their own."
        yield finding("plan.loss.labelled", message, model_type=model_type)


def _architecture(plan: FineTunePlan, model_type: str) -> Iterator[Finding]:
    has = methods.supports(plan.task_type, model_type)
    if has is None and model_type != "None" and not plan.base.trust_remote_code:
        message = f"transformers {methods.versions()['transformers']} knows no model type {model_type}."
        yield finding("plan.task.architecture", message, model_type=model_type, task=plan.task)
    if has is False:
        message = f"transformers has no {model_type} model for {plan.task} ({plan.task_type})."
        yield finding("plan.task.architecture", message, model_type=model_type, task=plan.task)
    if model_type in _ONLY_FLOAT32 and plan.training.precision != "fp32":
        message = f"{model_type} models do not run in {plan.training.precision}."
        yield finding("plan.precision.architecture", message, model_type=model_type)
    if plan.method.full:
        return
    if model_type in _NOT_QUANTISED and plan.method.quantization:
        message = f"{model_type} models do not run on weights that bitsandbytes has packed."
        yield finding("plan.quantization.architecture", message, model_type=model_type)
    if model_type in _NOT_IN_8_BITS and plan.method.quantization and plan.method.quantization.bits == 8:
        message = f"{model_type} models do not run in 8 bits; take 4."
        yield finding("plan.quantization.architecture", message, model_type=model_type)
    if plan.method.config.get("init_lora_weights") == "olora" and _modules(model_type, "conv1d"):
        message = f"PEFT 0.21.2 decomposes the Conv1D layers of {model_type} the wrong way round for OLoRA; take pissa."
        yield finding("plan.method.option", message, option="init_lora_weights")
    yield from _targets(plan, model_type)
    clashes = [] if plan.method.config.get("target_parameters") else against_parameters(plan)
    if clashes and _turned_into_parameters(plan, model_type):
        message = (
            f"PEFT adapts the experts of {model_type} as parameters, which does not go with {' or '.join(clashes)}."
        )
        yield finding("plan.method.parameters", message, options=clashes)
    known = methods.method(plan.method.peft_type)
    if plan.task_type not in known.tasks:
        return  # refused already, whatever the architecture
    if model_type in known.fails_on or (known.only_on and model_type not in known.only_on):
        message = f"{known.name} does not work on {model_type} models."
        yield finding("plan.method.architecture", message, method=known.name, model_type=model_type)
    # Quantised, such layers are plain linear ones; merging goes into the base as it is published.
    transposed = known.merges or not plan.method.quantization
    if not known.takes_conv1d and transposed and _modules(model_type, "conv1d"):
        message = f"{known.name} does not adapt the Conv1D layers of {model_type} models."
        yield finding("plan.method.architecture", message, method=known.name, model_type=model_type)
    if plan.method.quantization and plan.method.quantization.bits in known.adds_in_place and _has_bias(model_type):
        message = f"{known.name} does not train on {model_type} in {plan.method.quantization.bits} bits: it has biases."
        yield finding("plan.method.architecture", message, method=known.name, model_type=model_type)
    elif _widens(plan, known) and (layers := _strict(model_type)):
        message = f"{known.name} on a quantised {model_type} model gives its {layers} float32: train in fp32."
        yield finding("plan.method.architecture", message, method=known.name, model_type=model_type)


def _widens(plan: FineTunePlan, known: methods.Method) -> bool:
    """Do the method's layers answer in float32 though the plan computes in 16 bits?"""
    quantization = plan.method.quantization
    return quantization is not None and quantization.bits in known.widens and plan.training.precision != "fp32"


def _modules(model_type: str, *kinds: str) -> list[list[Any]]:
    """[kind, class, shapes by parameter] of every such module in the layers of any of the type's classes."""
    entries = [catalogue.entry(model_type, task) for task in catalogue.tasks(model_type)]
    named = [(name, module) for entry in entries if entry for name, module in entry["modules"].items()]
    return [module for name, module in named if "|" in name and module[0] in kinds]


def _strict(model_type: str) -> str:
    """Layers that, unlike RMSNorm, take no input of another type than their weights ("" where there are none)."""
    classes = {module[1] for module in _modules(model_type, "norm", "conv")}
    return next((each for each in ("LayerNorm", "Conv1d") if each in classes), "" if classes else "layers")


def _has_bias(model_type: str) -> bool:
    """A linear layer with a bias; True where it is not known."""
    linear = _modules(model_type, "linear", "conv1d")
    return not linear or any("bias" in module[2] for module in linear)


def _tied_tokens(plan: FineTunePlan, config: Mapping[str, Any]) -> Iterator[Finding]:
    """On tied embeddings PEFT wraps the head as well, and then TRL (sft_trainer.py) does not begin."""
    if plan.method.peft_type != "TRAINABLE_TOKENS" or plan.task_type != "CAUSAL_LM":
        return
    model_type, tied = str(config.get("model_type")), config.get("tie_word_embeddings")
    if tied is None:
        entry = catalogue.entry(model_type, "causal-lm")
        tied = bool(entry and entry["tied"])
    if tied:
        message = (
            "TRL does not train TRAINABLE_TOKENS on a base whose embeddings and head are one; LORA with "
            "method.config.trainable_token_indices trains the same tokens there."
        )
        yield finding("plan.method.architecture", message, method="TRAINABLE_TOKENS", model_type=model_type)


def _targets(plan: FineTunePlan, model_type: str) -> Iterator[Finding]:
    """Modules that PEFT refuses or that the model reads past an adapter (its weights only, or as a tuple)."""
    method = plan.method
    targets, excluded = method.target_modules, method.config.get("exclude_modules") or []
    never = out_of_reach(model_type, method.peft_type)
    linear = [name for name in never if name != "conv1d"]
    named = linear if targets == "all-linear" else targets if isinstance(targets, list) else []
    wrong = [name for name in named if name in never and name not in excluded]
    if wrong:
        message = (
            f"No adapter works on {', '.join(wrong)} of {model_type} models; {targets!r} includes it. "
            "Name other targets, or leave it out with method.config.exclude_modules."
        )
        yield finding("plan.method.targets", message, model_type=model_type, modules=wrong)
