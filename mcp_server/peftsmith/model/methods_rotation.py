"""Methods that rotate a module's inputs or weight, or scale and shift its outputs: parameters of one module.

Knows: the shapes of what is trained and held (PEFT 0.21.2, the files named in each function).
Does not know: bytes (methods_table.py).
"""

from __future__ import annotations

import re

from peftsmith.errors import PeftsmithError
from peftsmith.model.methods_base import Adapter, Options, divide, only, widths
from peftsmith.model.modules import Module

# peft/utils/constants.py TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING, all model types together
IA3_FEEDFORWARD = (
    "c_proj", "dense_4h_to_h", "down_proj", "fc2", "fc_out", "output.dense", "w2", "wo",
)  # fmt: skip


def oft(module: Module, options: Options) -> Adapter:
    """tuners/oft/layer.py: one rotation (b, b) for each block of b inputs, b (b - 1) / 2 numbers and two int64
    indices for each of them (indices are shared by the blocks). A block that does not divide the inputs grows."""
    only(options, module, "linear", "embedding", "conv")
    width = module.outputs if module.kind == "embedding" else widths(module)[0]
    blocks, size = int(options["r"]), int(options["oft_block_size"])
    if (blocks == 0) == (size == 0):
        raise PeftsmithError(
            "OFT takes either r or oft_block_size, the other must be 0",
            value={"r": blocks, "oft_block_size": size},
            next_step="Set one of them to 0.",
        )
    size = _adjust(width, size) if size else width // _adjust(width, blocks)
    blocks = 1 if options["block_share"] else width // size
    half = size * (size - 1) // 2
    row = "OFT" + ("+shared" if options["block_share"] else "")
    if not options["use_cayley_neumann"]:
        row += "+solve"
    elif options["coft"] and not options["block_share"]:
        row += "+coft"
    return Adapter(blocks * half + options.bias(module), row, {"i": width, "b": size}, 2 * half, 16 * half)


def _adjust(width: int, wanted: int) -> int:
    """tuners/oft/layer.py adjust_oft_parameters: the divisor of `width` nearest to `wanted`, the lower of two."""
    if wanted >= width:
        return width
    higher = next(number for number in range(wanted, width + 1) if width % number == 0)
    lower = next(number for number in range(wanted, 0, -1) if width % number == 0)
    return lower if wanted - lower <= higher - wanted else higher


def boft(module: Module, options: Options) -> Adapter:
    """tuners/boft/layer.py: rotations (blocks, b, b), a scale for each output, a frozen permutation (in, in) in
    float32. The butterfly factor counts as 1: PEFT sets it so unless its CUDA extension was compiled."""
    only(options, module, "linear", "conv")
    inputs, outputs = widths(module)
    size, blocks = int(options["boft_block_size"]), int(options["boft_block_num"])
    if (blocks == 0) == (size == 0):
        raise PeftsmithError(
            "BOFT takes either boft_block_size or boft_block_num, the other must be 0",
            value={"boft_block_size": size, "boft_block_num": blocks},
            next_step="Set one of them to 0.",
        )
    size = size or divide("BOFT", "inputs", inputs, blocks)
    blocks = divide("BOFT", "inputs", inputs, size)
    trainable = blocks * size**2 + outputs + options.bias(module)
    return Adapter(trainable, "BOFT", {"i": inputs, "b": size}, inputs**2, 4 * inputs**2)


def hra(module: Module, options: Options) -> Adapter:
    """tuners/hra/layer.py: r vectors of the inputs' width, each a Householder reflection."""
    only(options, module, "linear", "conv")
    inputs = widths(module)[0]
    rank = options.rank(module)
    row = "HRA+GS" if options["apply_GS"] else "HRA"
    return Adapter(rank * inputs + options.bias(module), row, {"i": inputs, "r": rank})


def psoft(module: Module, options: Options) -> Adapter:
    """tuners/psoft/layer.py: a rotation (r, r) between frozen float32 factors A (r, in) and B (out, r), with int64
    indices of its upper triangle, and a scale on either side."""
    only(options, module, "linear")
    rank = options.rank(module)
    if rank > min(module.inputs, module.outputs):
        raise PeftsmithError("PSOFT's rank exceeds the module's width", value=rank, next_step="Lower r.")
    half = rank * (rank - 1) // 2
    orthogonal = bool(options["psoft_orth"])
    trainable = (half if orthogonal else rank**2) + rank * (bool(options["psoft_mag_a"]) + bool(options["psoft_mag_b"]))
    factors, indices = rank * (module.inputs + module.outputs), 2 * half if orthogonal else 0
    row = "PSOFT+neumann" if options["use_cayley_neumann"] else "PSOFT"
    return Adapter(trainable, row, {"r": rank}, factors + indices, 4 * factors + 8 * indices)


def road(module: Module, options: Options) -> Adapter:
    """tuners/road/layer.py: angles and scales, half of the outputs, all of them or twice as many of each."""
    only(options, module, "linear")
    variants = {"road_1": (1, "ROAD"), "road_2": (2, "ROAD+2"), "road_4": (4, "ROAD+4")}
    if options["variant"] not in variants:
        raise PeftsmithError(
            "ROAD knows no such variant", value=options["variant"], next_step=f"Choose one of {', '.join(variants)}."
        )
    divide("ROAD", "outputs", module.outputs, int(options["group_size"]))
    halves, row = variants[options["variant"]]
    return Adapter(2 * (module.outputs // 2 * halves), row, {})


def ia3(module: Module, options: Options) -> Adapter:
    """tuners/ia3/layer.py: a factor for each output, or for each input of a feed-forward module."""
    only(options, module, "linear", "conv1d", "conv")
    names = options["feedforward_modules"]
    if isinstance(names, str):
        feedforward = bool(re.fullmatch(names, module.name))
    else:
        feedforward = module.name.endswith(tuple(IA3_FEEDFORWARD if names is None else names))
    return Adapter(module.inputs, "IA3+ff", {}) if feedforward else Adapter(module.outputs, "IA3", {})


def beft(module: Module, options: Options) -> Adapter:
    """tuners/beft/layer.py: a bias for each output."""
    only(options, module, "linear")
    return Adapter(module.outputs, "BEFT", {})


def ln_tuning(module: Module, options: Options) -> Adapter:
    """tuners/ln_tuning/layer.py: a trained copy of the whole module beside the frozen one, in its own format."""
    only(options, module, "norm", "linear", "conv1d", "embedding", "conv", "other")
    row = "LN_TUNING+whole"
    if module.kind == "norm":
        row = "LN_TUNING" if "rms" in module.cls.lower() else "LN_TUNING+layer"
    width = module.inputs or max((shape[-1] for shape in module.parameters.values()), default=0)
    return Adapter(module.elements, row, {"i": width})


def trainable_tokens(module: Module, options: Options) -> Adapter:
    """tuners/trainable_tokens/layer.py: t rows of the embedding and their frozen originals."""
    only(options, module, "embedding", "linear")
    indices = options["token_indices"]
    count = len(next(iter(indices.values())) if isinstance(indices, dict) and len(indices) == 1 else indices)
    width = module.outputs if module.kind == "embedding" else module.inputs
    rows = module.inputs if module.kind == "embedding" else module.outputs
    held = count * width * options.numbers.wide
    return Adapter(count * width, "TRAINABLE_TOKENS", {"i": rows, "o": width, "t": count}, count * width, held)
