"""Methods that build or change a whole weight matrix from few numbers: parameters of one module.

Knows: the shapes of what is trained and held (PEFT 0.21.2, the files named in each function).
Does not know: bytes (methods_table.py); rotations are in methods_rotation.py.
"""

from __future__ import annotations

from math import isqrt

from peftsmith.errors import PeftsmithError
from peftsmith.model.methods_base import Adapter, CostUnknown, Options, divide, only, widths
from peftsmith.model.modules import Module


def loha(module: Module, options: Options) -> Adapter:
    """tuners/loha/layer.py: two pairs of factors (out, r), (r, in)."""
    only(options, module, "linear", "conv")
    _refuse_effective(options)
    inputs, outputs = widths(module)
    rank = options.rank(module)
    return Adapter(2 * rank * (inputs + outputs), "LOHA", {"i": inputs, "r": rank})


def lokr(module: Module, options: Options) -> Adapter:
    """tuners/lokr/layer.py: the Kronecker product of w1 (s, t) and w2 (p, q), either whole or as two factors."""
    only(options, module, "linear", "conv")
    _refuse_effective(options)
    rank, factor = options.rank(module), int(options["decompose_factor"])
    kernel = widths(module)[0] // module.inputs
    t, q = factorise(module.inputs, factor)
    s, p = factorise(module.outputs, factor)
    whole1 = not (options["decompose_both"] and rank < max(s, t) / 2)
    whole2 = rank >= max(p, q) / 2
    q *= kernel
    trainable = (s * t if whole1 else rank * (s + t)) + (p * q if whole2 else rank * (p + q))
    row = "LOKR+w2" if whole2 else "LOKR" if whole1 else "LOKR+both"
    return Adapter(trainable, row, {"i": module.inputs * kernel, "r": rank, "s": s, "t": t, "p": p, "q": q})


def factorise(width: int, factor: int = -1) -> tuple[int, int]:
    """tuners/lokr/layer.py factorization: two factors of `width`, the smaller first: `factor` itself if it divides,
    else those with the smallest sum whose first does not exceed it (-1: no limit)."""
    if factor > 0 and width % factor == 0:
        return factor, width // factor
    limit = width if factor == -1 else factor
    small = max(number for number in range(1, isqrt(width) + 1) if width % number == 0 and number <= max(limit, 1))
    return small, width // small


def fourierft(module: Module, options: Options) -> Adapter:
    """tuners/fourierft/layer.py: f = n_frequency numbers and int64 indices of their two coordinates."""
    only(options, module, "linear", "conv1d")
    return _spectrum(module, options)


def waveft(module: Module, options: Options) -> Adapter:
    """tuners/waveft/layer.py: as FourierFT in a wavelet basis (the table has db1's, without padding)."""
    only(options, module, "linear", "conv1d")
    if options["proportional_parameters"]:
        raise CostUnknown(
            "WAVEFT with proportional_parameters depends on all targets together and has no cost for one module",
            next_step="Set proportional_parameters to false for an estimate; the total is the same but for rounding.",
        )
    return _spectrum(module, options)


def _spectrum(module: Module, options: Options) -> Adapter:
    count = int(options.of("n_frequency", "n_frequency_pattern", module))
    if not 0 < count <= module.inputs * module.outputs:
        raise PeftsmithError(
            f"{options.method} needs 1 to {module.inputs * module.outputs} frequencies for this module",
            value=count,
            next_step="Change n_frequency.",
        )
    return Adapter(count + options.bias(module), options.method, {"f": count}, 2 * count, 16 * count)


def c3a(module: Module, options: Options) -> Adapter:
    """tuners/c3a/layer.py: one circulant kernel for each pair of blocks, c = in out / block size numbers."""
    only(options, module, "linear")
    size = int(options.of("block_size", "block_size_pattern", module))
    kernels = divide("C3A", "inputs", module.inputs, size) * divide("C3A", "outputs", module.outputs, size)
    return Adapter(kernels * size + options.bias(module), "C3A", {"b": size, "c": kernels * size})


def shira(module: Module, options: Options) -> Adapter:
    """tuners/shira/layer.py: f = r (in + out) entries of the weight and int32 indices of their two coordinates."""
    only(options, module, "linear")
    count = options.rank(module) * (module.inputs + module.outputs)
    if count > module.inputs * module.outputs:
        raise PeftsmithError(
            "SHIRA's rank gives more entries than the module's weight has", value=count, next_step="Lower r."
        )
    return Adapter(count, "SHIRA", {"f": count}, 2 * count, 8 * count)


def supertuning(module: Module, options: Options) -> Adapter:
    """tuners/supertuning/layer.py: f = in out (1 - sparsity) entries with int32 indices; with r a LoRA branch too."""
    only(options, module, "linear")
    count = int(module.inputs * module.outputs * (1 - float(options["sparsity"])))
    if options["r"] is None:
        return Adapter(count, "SUPERTUNING", {"f": count}, count, 4 * count)
    rank = options.rank(module)
    trainable = count + rank * (module.inputs + module.outputs)
    return Adapter(trainable, "SUPERTUNING+lora", {"f": count, "r": rank}, count, 4 * count)


def hira(module: Module, options: Options) -> Adapter:
    """tuners/hira/layer.py: A (r, in), B (out, r); their product multiplies the base weight."""
    only(options, module, "linear", "conv1d", "embedding", "conv")
    rank = options.rank(module)
    inputs, outputs = widths(module)
    row = "HIRA+embedding" if module.kind == "embedding" else "HIRA"
    return Adapter(rank * (inputs + outputs), row, {"i": inputs, "r": rank})


def miss(module: Module, options: Options) -> Adapter:
    """tuners/miss/layer.py: a block (r, out), with "bat" (out / r, r, r), with "mini" (r, mini_r); P padded inputs."""
    only(options, module, "linear")
    rank, outputs = options.rank(module), module.outputs
    padded = -(-module.inputs // rank) * rank
    symbols = {"r": rank, "P": padded}
    if options["init_weights"] == "bat":
        divide("MISS", "inputs", module.inputs, rank)
        divide("MISS", "outputs", outputs, rank)
        return Adapter(rank * outputs + options.bias(module), "MISS+bat", symbols)
    if options["init_weights"] == "mini":
        divide("MISS", "outputs", outputs, int(options["mini_r"]))
        trainable = rank * int(options["mini_r"]) + options.bias(module)
        return Adapter(trainable, "MISS+mini", symbols)
    row = "MISS" if padded == module.inputs else "MISS+pad"
    return Adapter(rank * outputs + options.bias(module), row, symbols)


def peanut(module: Module, options: Options) -> Adapter:
    """tuners/peanut/layer.py: A (r, out), B (out, r) and d encoders and decoders (r, r) over the base weight."""
    only(options, module, "linear")
    rank, depth = options.rank(module), int(options["depth"])
    trainable = 2 * rank * module.outputs + 2 * depth * rank**2
    return Adapter(trainable, "PEANUT+depth" if depth else "PEANUT", {"r": rank, "d": depth})


def glora(module: Module, options: Options) -> Adapter:
    """tuners/glora/layer.py: A and B low-rank, vectors or constants; on a module with a bias also C, D and E.
    Paths without parameters hold zeros of their shape in the base model's format."""
    only(options, module, "linear")
    rank, inputs, outputs = options.rank(module), module.inputs, module.outputs
    rows = {"lora": "GLORA", "vector": "GLORA+vector", "constant": "GLORA+constant"}
    trainable = 2 * {"lora": rank * (inputs + outputs), "vector": outputs, "constant": 1}.get(options["config_A_B"], 0)
    frozen = 0 if options["config_A_B"] in rows else 2 * inputs * outputs
    biased = "bias" in module.parameters
    prompts = {"lora": rank * (inputs + 1), "vector": inputs}.get(options["config_C"], 0) if biased else 0
    shifts = {"vector": outputs, "constant": 1}.get(options["config_D_E"], 0) if biased else 0
    frozen += (0 if prompts else inputs) + (0 if shifts else 2 * outputs)
    trainable += prompts + 2 * shifts + options.bias(module)
    row = rows.get(options["config_A_B"], "GLORA+none")
    return Adapter(trainable, row, {"r": rank}, frozen, frozen * options.numbers.wide)


def deft(module: Module, options: Options) -> Adapter:
    """tuners/deft/layer.py: P (out, r) and, unless para, R (r, in); the rank is at most the outputs."""
    only(options, module, "linear", "conv1d")
    rank = min(options.rank(module), module.outputs)
    inject = 0 if options["para"] else rank * module.inputs
    row = "DEFT" + ("+qr" if options["decomposition_method"] == "qr" else "") + ("" if inject else "+para")
    return Adapter(rank * module.outputs + inject + options.bias(module), row, {"r": rank})


def frod(module: Module, options: Options) -> Adapter:
    """tuners/frod/layer.py and model.py: in diagonal numbers and f off-diagonal ones, U (out, in) frozen; V and the
    indices are shared by the modules of a category (methods_model.py)."""
    only(options, module, "linear", "conv1d")
    count = frod_entries(module.inputs, float(options["sparse_rate"]))
    frozen = module.inputs * module.outputs
    trainable = module.inputs + count + options.bias(module)
    return Adapter(trainable, "FROD", {"f": count}, frozen, frozen * options.numbers.wide)


def frod_entries(inputs: int, rate: float) -> int:
    """tuners/frod/model.py: off-diagonal entries trained, at least one when the rate is positive."""
    beyond = inputs * inputs - inputs
    return max(1, min(int(inputs * inputs * rate), beyond)) if rate > 0 and beyond else 0


def adamss(module: Module, options: Options) -> Adapter:
    """tuners/adamss/layer.py: for each of K subspaces A (rank, r) and B (its rows, rank); the rows of all are the
    outputs. Exact unless clustering finds fewer subspaces, use_dynamic_rank drops ranks or a subspace has fewer
    rows than subspace_rank. Frozen: the projection (r, in) in the base model's format, int64 rows."""
    only(options, module, "linear")
    inputs = module.inputs + ("bias" in module.parameters)
    rank = min(options.rank(module), inputs, module.outputs)
    spaces, each = int(options["num_subspaces"]), int(options["subspace_rank"])
    frozen = rank * inputs + module.outputs
    held = rank * inputs * options.numbers.wide + 8 * module.outputs
    return Adapter(each * (spaces * rank + module.outputs), "ADAMSS", {"r": rank, "K": spaces * each}, frozen, held)


def _refuse_effective(options: Options) -> None:
    if options["use_effective_conv2d"]:
        raise CostUnknown(
            f"the cost of {options.method} with use_effective_conv2d is not known",
            next_step="Set use_effective_conv2d to false for an estimate.",
        )
