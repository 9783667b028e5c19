"""LoRA and the methods that, like it, add a low-rank branch to a module: parameters of one module.

Knows: the shapes of their factors and what else they hold (PEFT 0.21.2, the files named in each function).
Does not know: bytes (methods_table.py), what a model holds once for all its modules (methods_model.py).
"""

from __future__ import annotations

from math import ceil, prod

from peftsmith.errors import PeftsmithError
from peftsmith.model.methods_base import Adapter, CostUnknown, Options, divide, only, widths
from peftsmith.model.modules import Module

# Variants whose branch is another one (tuners/lora/variants.py); nothing here prices them.
_UNPRICED = ("monteclora_config", "kasa_config", "use_bdlora", "velora_config", "arrow_config")


def lora(module: Module, options: Options) -> Adapter:
    """tuners/lora/layer.py: A (r, in), B (out, r), with lora_bias B's bias, with DoRA a magnitude for each output.
    rsLoRA, PiSSA, OLoRA, EVA and aLoRA change values, not shapes; QALoRA shrinks A only on GPTQ layers (not priced)."""
    variant = next((name for name in _UNPRICED if options.get(name)), None)
    if variant:
        raise CostUnknown(
            "the cost of this LoRA variant is not known", value=variant, next_step="Leave it out for an estimate."
        )
    if module.kind == "experts":
        return _experts(module, options)
    only(options, module, "linear", "conv1d", "embedding", "conv")
    rank = options.rank(module)
    inputs, outputs = widths(module)
    trainable = rank * (inputs + outputs) + options.bias(module)
    if module.kind == "embedding":
        return Adapter(trainable + outputs * bool(options["use_dora"]), "LORA+embedding", {"r": rank})
    if options.get("frozen_a"):  # LoRA-FA: peft/optimizers/lorafa.py create_lorafa_optimizer freezes A
        frozen = rank * inputs
        return Adapter(
            trainable - frozen, "LORA+fa", {"i": inputs, "r": rank}, frozen, frozen * options.numbers.adapter
        )
    if options["use_dora"]:
        return Adapter(trainable + outputs, "LORA+dora", {"i": inputs, "r": rank})
    if options["lora_bias"]:
        return Adapter(trainable + outputs, "LORA+bias", {"i": inputs, "r": rank})
    return Adapter(trainable, "LORA", {"i": inputs, "r": rank})


def _experts(module: Module, options: Options) -> Adapter:
    """lora/layer.py ParamWrapper on the fused parameters (experts, out, in): A (r * experts, in), B (out, r * experts).
    W elements of the parameters, R of the factors, i their inputs (of each routed token)."""
    wanted = options.get("target_parameters") or list(module.parameters)
    shapes = [
        shape
        for leaf, shape in module.parameters.items()
        if len(shape) == 3 and any(f"{module.name}.{leaf}".endswith(name) for name in wanted)
    ]
    factors = sum(options.rank(module) * experts * (outputs + inputs) for experts, outputs, inputs in shapes)
    symbols = {"i": sum(shape[2] for shape in shapes), "W": sum(map(prod, shapes)), "R": factors}
    return Adapter(factors, "LORA+experts", symbols)


def adalora(module: Module, options: Options) -> Adapter:
    """tuners/adalora/layer.py: A (r, in), B (out, r), singular values (r), r is init_r; and a rank number, which
    becomes trainable (without ever a gradient) when PEFT casts it to a half-precision base module's format."""
    only(options, module, "linear", "conv1d", "conv")
    inputs, outputs = widths(module)
    rank = int(options["init_r"])
    recast = options.numbers.wide == 2
    trainable = rank * (inputs + outputs + 1) + recast + options.bias(module)
    frozen = int(not recast)
    return Adapter(trainable, "ADALORA", {"i": inputs, "r": rank}, frozen, frozen * options.numbers.adapter)


def vera(module: Module, options: Options) -> Adapter:
    """tuners/vera/layer.py: one number for each output and each rank; the projections are the model's."""
    only(options, module, "linear", "conv1d")
    rank = options.rank(module)
    return Adapter(module.outputs + rank + options.bias(module), "VERA", {"r": rank})


def pvera(module: Module, options: Options) -> Adapter:
    """tuners/pvera/layer.py: as VeRA with twice the ranks (means and variances)."""
    only(options, module, "linear", "conv1d")
    rank = options.rank(module)
    return Adapter(module.outputs + 2 * rank + options.bias(module), "PVERA", {"r": rank})


def randlora(module: Module, options: Options) -> Adapter:
    """tuners/randlora/layer.py: lambda (r, bases), gamma (bases, smaller width); m and M the smaller and larger width,
    n bases, k = n r. The bases themselves are the model's."""
    only(options, module, "linear", "conv1d")
    rank = options.rank(module)
    small, large = sorted((module.inputs, module.outputs))
    bases = ceil(small / rank)
    row = "RANDLORA+wide" if module.inputs <= module.outputs else "RANDLORA+tall"
    symbols = {"r": rank, "m": small, "M": large, "n": bases, "k": bases * rank}
    return Adapter(bases * (rank + small) + options.bias(module), row, symbols)


def tinylora(module: Module, options: Options) -> Adapter:
    """tuners/tinylora/layer.py: frozen singular factors A (r, in), B (out, r) and projections P (u, r, r); what is
    trained, u numbers for a group of modules, is the model's."""
    only(options, module, "linear", "conv1d", "embedding")
    rank = min(options.rank(module), module.inputs, module.outputs)
    frozen = rank * (module.inputs + module.outputs) + int(options["u"]) * rank**2
    symbols = {"r": rank, "u": int(options["u"])}
    return Adapter(0, "TINYLORA", symbols, frozen, frozen * options.numbers.adapter)


def unilora(module: Module, options: Options) -> Adapter:
    """tuners/unilora/layer.py: int64 indices and scales shaped as LoRA's A and B; L is the model's vector length."""
    only(options, module, "linear", "conv1d")
    rank = options.rank(module)
    factors = rank * (module.inputs + module.outputs)
    symbols = {"r": rank, "L": int(options["theta_d_length"])}
    held = factors * (8 + options.numbers.adapter)
    return Adapter(options.bias(module), "UNILORA", symbols, 2 * factors, held)


def vblora(module: Module, options: Options) -> Adapter:
    """tuners/vblora/layer.py: logits over V vectors for h = r in / length and g = r out / length pieces of A and B,
    t of which are mixed; the bank of B elements is the model's."""
    only(options, module, "linear", "conv1d")
    length, vectors, rank = int(options["vector_length"]), int(options["num_vectors"]), options.rank(module)
    first = rank * divide("VBLORA", "inputs", module.inputs, length)
    second = rank * divide("VBLORA", "outputs", module.outputs, length)
    symbols = {"r": rank, "t": int(options["topk"]), "V": vectors, "B": vectors * length, "h": first, "g": second}
    return Adapter((first + second) * vectors + options.bias(module), "VBLORA", symbols)


def gralora(module: Module, options: Options) -> Adapter:
    """tuners/gralora/layer.py: k blocks of A (in / k, r) and B (r, out / k); hybrid_r (h) adds a LoRA branch."""
    only(options, module, "linear", "conv1d")
    blocks, hybrid, rank = int(options["gralora_k"]), int(options["hybrid_r"]), options.rank(module)
    divide("GRALORA", "inputs", module.inputs, blocks)
    divide("GRALORA", "outputs", module.outputs, blocks)
    trainable = (rank + hybrid) * (module.inputs + module.outputs) + options.bias(module)
    row = "GRALORA+hybrid" if hybrid else "GRALORA"
    return Adapter(trainable, row, {"r": rank, "k": blocks, "h": hybrid})


def delora(module: Module, options: Options) -> Adapter:
    """tuners/delora/layer.py: A (r, in), B (out, r), one bound; a frozen norm for each input."""
    only(options, module, "linear")
    rank = options.rank(module)
    trainable = rank * (module.inputs + module.outputs) + 1 + options.bias(module)
    held = module.inputs * options.numbers.adapter
    return Adapter(trainable, "DELORA", {"r": rank}, module.inputs, held)


def lily(module: Module, options: Options) -> Adapter:
    """tuners/lily/layer.py: a router (num_B, r) for each module; A and B are shared between layers (methods_model)."""
    only(options, module, "linear")
    experts, rank = int(options["num_B"]), options.rank(module)
    return Adapter(experts * rank, "LILY", {"r": rank, "B": experts})


def poly(module: Module, options: Options) -> Adapter:
    """tuners/poly/layer.py: A and B for each of s skills, a router (tasks, splits * skills). The mixed factors exist
    for each row of a batch; the table has them for one."""
    only(options, module, "linear")
    skills, splits, rank = int(options["n_skills"]), int(options["n_splits"]), options.rank(module)
    inputs = divide("POLY", "inputs", module.inputs, splits) * splits
    outputs = divide("POLY", "outputs", module.outputs, splits) * splits
    trainable = skills * rank * (inputs + outputs) + int(options["n_tasks"]) * splits * skills
    return Adapter(trainable, "POLY", {"r": rank, "s": skills})


def osf(module: Module, options: Options) -> Adapter:
    """tuners/osf/layer.py and model.py _resolve_rank: trained are the singular triples beyond effective_rank (half of
    them by default), r here; frozen their initial copies and, of the wider side, the leading vectors."""
    only(options, module, "linear")
    smaller = min(module.inputs, module.outputs)
    value = options.of("effective_rank", "rank_pattern", module)
    if value is None:
        high = smaller // 2
    elif isinstance(value, float) and 0 < value <= 1:
        high = int(smaller * value)
    else:
        high = int(value)
    if high < 1:
        raise PeftsmithError(
            "OSF keeps half of a module's ranks, and this one has too few",
            value=module.name,
            next_step="Leave it out of target_modules.",
        )
    high = min(high, smaller)
    low = smaller - high
    trainable = low * (module.inputs + module.outputs + 1)
    frozen = trainable + (0 if module.inputs == module.outputs else high * max(module.inputs, module.outputs))
    return Adapter(trainable, "OSF", {"r": low}, frozen, frozen * options.numbers.adapter)
