"""Numbers that code asks of tensors on the meta device, which have none, while shapes are all that a trace needs.

Knows: what set-ups of PEFT methods work out from weights and the shapes of it; which operations meta lacks.
Does not know: which model asks, or what a trace records. Where a shape depends on numbers, the rule is said below.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

aten = torch.ops.aten
_FEW = 64  # whole numbers in a tensor of at most this many are sizes that code reads, not indices


class SetUp(TorchDispatchMode):
    """Around a method's set-up: a copy of meta weights to the processor is a blank that takes no memory, a
    decomposition has its shapes only, a question about a value is answered with 0; `asked` counts those. Random numbers
    are not drawn: tensors stay as they are, and a permutation is in order."""

    COPIES = (aten._to_copy.default,)
    PERMUTATIONS = (aten.randperm.default, aten.randperm.generator)
    # Products of shapes alone; on real weights of a large model they would take minutes.
    DECOMPOSITIONS = ("_linalg_svd", "linalg_qr", "_linalg_eigh", "linalg_inv_ex", "_linalg_solve_ex", "linalg_lstsq")

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and first.device.type == "meta":
            if function is aten._local_scalar_dense.default:
                self.asked += 1
                return 0
            target = kwargs.get("device")
            if function in self.COPIES and target is not None and torch.device(target).type != "meta":
                self.asked += 1
                return blank(first.shape, kwargs.get("dtype") or first.dtype)
        elif _leaves_as_is(function, args):
            return first
        elif function in self.PERMUTATIONS and first is not None:
            return torch.arange(first)
        elif function._schema.name.removeprefix("aten::") in self.DECOMPOSITIONS:
            self.asked += 1
            result = function(*tree_map(_on_meta, args), **kwargs)
            return tree_map(
                lambda each: blank(each.shape, each.dtype) if isinstance(each, torch.Tensor) else each, result
            )
        return function(*args, **kwargs)


def blank(shape: Any, dtype: torch.dtype) -> torch.Tensor:
    """Zeros of this shape on the processor, one element in memory."""
    return torch.zeros((), dtype=dtype).expand(tuple(shape))


FILLS = (aten.uniform_.default, aten.normal_.default, aten.zero_.default)


def _leaves_as_is(function: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operation only fills a tensor with numbers that nobody reads."""
    if function in FILLS:
        return bool(args[0].is_floating_point())
    return function is aten.copy_.default and _is_blank(args[1])


def _is_blank(tensor: torch.Tensor) -> bool:
    return tensor.numel() > 1 and tensor.is_floating_point() and not any(tensor.stride())


def _on_meta(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, torch.Tensor) else value


@contextmanager
def set_up() -> Iterator[SetUp]:
    """The mode, and stand-ins for functions of PEFT that work out numbers, where the installed PEFT has them."""
    replaced: list[tuple[Any, str, Any]] = []
    for path, name, stand_in in STAND_INS:
        try:
            owner: Any = importlib.import_module(path.partition(":")[0])
        except ModuleNotFoundError:
            continue
        for part in filter(None, path.partition(":")[2].split(".")):
            owner = getattr(owner, part, None)
        if owner is not None and hasattr(owner, name):
            replaced.append((owner, name, owner.__dict__[name]))
            setattr(owner, name, stand_in)
    try:
        with SetUp() as mode:
            yield mode
    finally:
        for owner, name, original in replaced:
            setattr(owner, name, original)


def _random_mask(base_layer: nn.Module, r: int, random_seed: int | None = None, **_: Any) -> torch.Tensor:
    """SHiRA's mask: as many ones, at the front instead of anywhere (tuners/shira/mask_functions.py random_mask)."""
    rows, columns = base_layer.weight.shape
    mask = torch.zeros(rows * columns, dtype=torch.bool)
    mask[: r * (rows + columns)] = True
    return mask.view(rows, columns)


def _slice_pca(tensor: torch.Tensor, r: int, device: Any, dtype: Any = torch.float32, random_seed: int = 0) -> Any:
    """AdaMSS's two factors (tuners/adamss/utils.py slice_pca)."""
    batch, channels, height, width = tensor.shape
    rank = min(r, height, width)
    right = torch.empty((batch, channels, rank, width), dtype=dtype, device=device)
    return right, torch.empty((batch, channels, height, rank), dtype=dtype, device=device)


def _clusters(rows: torch.Tensor, num_subspaces: int, _: int) -> tuple[torch.Tensor, int]:
    """AdaMSS's clusters of rows (clustering_Z). Real ones differ in size; here they are equal, which leaves the sum of
    their rows, and so trained parameters at a fixed rank, as they are."""
    count = min(num_subspaces, rows.shape[0])
    return torch.arange(rows.shape[0]) % count, count


def _projection(matrices: list[torch.Tensor], _: float) -> torch.Tensor:
    """FRoD's joint basis of a kind of module, inputs x inputs (tuners/frod/model.py _projection_from_weights)."""
    return blank((matrices[0].shape[1], matrices[0].shape[1]), matrices[0].dtype)


def _factors(_: Any, basis: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """FRoD's (U, lambda) of a module (tuners/frod/layer.py _calculate_frod_u_and_lambda)."""
    return blank((weight.shape[0], basis.shape[0]), torch.float32), blank((basis.shape[0],), torch.float32)


def _permutation(_: Any, indices: torch.Tensor) -> torch.Tensor:
    """BOFT's permutation as a matrix (tuners/boft/layer.py perm2mat), which PEFT fills one by one."""
    return blank((len(indices), len(indices)), torch.float32)


def _expert(lora_model: Any, adapter_name: str, model_id: dict[str, Any], **_: Any) -> None:
    """X-LoRA's experts without their checkpoints (tuners/xlora/model.py _load_adapter_into_lora_model): a LoRA of the
    fields that `model_id` holds (trace_model.adapt puts them there)."""
    from peft import LoraConfig

    lora_model.peft_config[adapter_name] = LoraConfig(**model_id)
    lora_model.inject_adapter(lora_model.model, adapter_name)
    lora_model._cast_adapter_dtype(adapter_name=adapter_name, autocast_adapter_dtype=True)


STAND_INS: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("peft.tuners.shira.config", "random_mask", _random_mask),
    ("peft.tuners.adamss.layer", "slice_pca", _slice_pca),
    ("peft.tuners.adamss.layer", "clustering_Z", _clusters),
    ("peft.tuners.frod.model", "_projection_from_weights", _projection),
    ("peft.tuners.frod.layer:FrodLayer", "_calculate_frod_u_and_lambda", _factors),
    ("peft.tuners.boft.layer:BOFTLayer", "perm2mat", _permutation),
    ("peft.tuners.xlora.model", "_load_adapter_into_lora_model", _expert),
)


def to_meta(model: nn.Module) -> nn.Module:
    """Everything on the meta device but sizes: small tensors of whole numbers, which forward passes read."""
    return model._apply(lambda each: each if _is_size(each) else each.to("meta"))


def parameters_to_meta(model: nn.Module) -> nn.Module:
    """Only what PEFT itself would have put on the device: buffers that a method made on the processor stay there."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.device.type != "meta":
                module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
    return model


def _is_size(tensor: torch.Tensor) -> bool:
    return tensor.numel() <= _FEW and not tensor.is_floating_point() and tensor.device.type != "meta"


def carried_out(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation without a meta kernel: by its shapes (SHAPES), or on made-up numbers on the processor, whose results
    go back to meta. Truth values are taken as true (every index is inside)."""
    if function in SHAPES:
        return SHAPES[function](*args, **kwargs)
    originals: dict[int, torch.Tensor] = {}
    kept: list[torch.Tensor] = []

    def filled(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.device.type != "meta":
            return value
        made = torch.full(value.shape, value.dtype == torch.bool, dtype=value.dtype)
        originals[id(made)] = value
        kept.append(made)
        return made

    def back(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.device.type == "meta":
            return value
        return originals[id(value)] if id(value) in originals else torch.empty_like(value, device="meta")

    if "device" in kwargs and torch.device(kwargs["device"] or "cpu").type == "meta":
        kwargs = {**kwargs, "device": torch.device("cpu")}
    return tree_map(back, function(*tree_map(filled, args), **tree_map(filled, kwargs)))


def _sparse(indices: torch.Tensor, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    values = torch.empty(like._values().shape, dtype=dtype, device="meta")
    return torch.sparse_coo_tensor(indices, values, like.shape, is_coalesced=True, check_invariants=False)


def _coalesced(given: torch.Tensor) -> torch.Tensor:
    """All indices are taken as different."""
    return _sparse(torch.empty_like(given._indices()), given, given.dtype)


def _dense(given: torch.Tensor, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
    return torch.empty(given.shape, dtype=dtype or given.dtype, device="meta")


def _masked(given: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _sparse(torch.empty_like(mask._indices()), mask, given.dtype)


def _added(given: torch.Tensor, other: torch.Tensor, **_: Any) -> torch.Tensor:
    return given


# Sparse tensors have next to no kernels on meta.
SHAPES: dict[Any, Callable[..., Any]] = {
    aten._coalesce.default: _coalesced,
    aten._to_dense.default: _dense,
    aten.sparse_mask.default: _masked,
    aten.add_.Tensor: _added,
}


def on_meta(*values: Any) -> bool:
    """Whether any tensor among arguments is on the meta device."""
    return any(isinstance(each, torch.Tensor) and each.device.type == "meta" for each in tree_iter(values))


def same_shape(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The result of the commonest operations where it looks like one of the operands, which meta kernels in Python take
    0.4 ms to find; None for any other case."""
    if function is aten.block_diag.default and on_meta(args) and all(each.dim() == 2 for each in args[0]):
        rows, columns = (sum(each.shape[side] for each in args[0]) for side in (0, 1))
        return torch.empty((rows, columns), dtype=args[0][0].dtype, device="meta")
    if function is aten._grouped_mm.default and args[0].dtype == torch.float32 and on_meta(args):
        return _grouped(args[0], args[1], kwargs.get("offs", args[2] if len(args) > 2 else None))
    if function not in ELEMENTWISE or len(args) != 2 or not isinstance(args[0], torch.Tensor):
        return None
    one, other = args
    if isinstance(other, torch.Tensor):
        if other.dtype != one.dtype or other.device != one.device:
            return None
        if one.numel() < other.numel():
            one, other = other, one
        lead = one.dim() - other.dim()
        if lead < 0 or any(size not in (1, one.shape[lead + place]) for place, size in enumerate(other.shape)):
            return None
    elif not one.is_floating_point():
        return None
    if one.device.type != "meta" or not one.is_contiguous():
        return None
    return torch.empty(one.shape, dtype=one.dtype, device="meta")


def _grouped(one: torch.Tensor, other: torch.Tensor, ends: torch.Tensor | None) -> torch.Tensor:
    """Products of groups of rows in float32, which CUDA carries out one by one and the meta kernel refuses
    (aten/src/ATen/native/GroupedMMUtils.h): rows with a matrix for each group; for the weights' gradients, where both
    are matrices and `ends` tells the groups apart, a matrix for each group."""
    lead = [] if other.dim() == 3 or ends is None else [ends.shape[0]]
    return torch.empty((*lead, one.shape[0], other.shape[-1]), dtype=one.dtype, device="meta")


ELEMENTWISE = (aten.mul.Tensor, aten.add.Tensor)
