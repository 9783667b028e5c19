"""A training step written down as allocations and frees: every storage that a real model makes on the meta device.

Knows: how storages are born and die under a dispatch mode, and the order of a step (forward, backward, optimiser).
Does not know: how the model came about (trace_model.py), what stands in for numbers (trace_values.py), or what an
allocator makes of the log (allocator.py).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from peftsmith.worker import trace_kernels, trace_values
from peftsmith.worker.allocator import EMPTY_CACHE, Event

CUBLAS_WORKSPACE = 33 << 20  # what published runs hold beyond their tensors; taken by the first matrix product
_FLOAT32 = 4


class Log(TorchDispatchMode):
    """Writes (identity, bytes) for every new storage and (identity, 0) when it dies. `made_up` counts operations that
    the meta device cannot carry out."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.known: dict[int, Any] = {}
        self.next = 0
        self.made_up = 0

    def adopt(self, tensor: torch.Tensor) -> None:
        """Count a tensor that was made outside of the mode (weights, inputs)."""
        if tensor.layout is not torch.strided:
            for part in (tensor._indices(), tensor._values()):
                self.adopt(part)
            return
        storage = tensor.untyped_storage()
        if storage._cdata in self.known or not storage.nbytes():
            return
        identity, self.next = self.next, self.next + 1
        self.events.append((identity, storage.nbytes()))
        key = storage._cdata
        self.known[key] = weakref.finalize(storage, self._died, key, identity)

    def hold(self, size: int) -> int:
        """An allocation that no tensor stands for; `release` frees it."""
        identity, self.next = self.next, self.next + 1
        self.events.append((identity, size))
        return identity

    def release(self, identity: int) -> None:
        self.events.append((identity, 0))

    def again(self, events: list[Event]) -> None:
        """The same once more: what was born and died in `events` is born and dies under a new identity. What outlived
        them is there already."""
        dead = {identity for identity, size in events if size == 0}
        named: dict[int, int] = {}
        for identity, size in events:
            if size == 0 and identity in named:
                self.release(named[identity])
            elif size and identity in dead:
                named[identity] = self.hold(size)

    def _died(self, key: int, identity: int) -> None:
        if self.known.pop(key, None) is not None:
            self.events.append((identity, 0))

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        try:
            result = trace_values.same_shape(function, args, kwargs)
            if result is None:
                result = function(*args, **kwargs)
        except NotImplementedError:
            if not trace_values.on_meta(args, kwargs):
                raise
            result = trace_values.carried_out(function, args, kwargs)
            self.made_up += 1
        for each in (result,) if isinstance(result, torch.Tensor) else tree_iter(result):
            if isinstance(each, torch.Tensor) and each.device.type == "meta":
                self.adopt(each)
        return result


class Autocast(TorchFunctionMode):
    """CUDA's autocast, which does not see meta tensors: products in `dtype`, some functions in float32.

    Casts of trained weights are kept until the forward pass is over, as autocast's cache keeps them.
    Source: torch/amp documentation, "CUDA Ops that can autocast to float16" and "to float32".
    """

    NARROW = (F.linear, torch.matmul, torch.bmm, torch.mm, torch.addmm, torch.baddbmm, torch.Tensor.baddbmm,
              torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.bmm, torch.Tensor.mm, torch.einsum, F.conv1d,
              F.conv2d, trace_kernels.fused)  # fmt: skip
    WIDE = (F.layer_norm, F.softmax, torch.softmax, F.log_softmax, torch.log_softmax, F.cross_entropy, torch.pow,
            torch.Tensor.pow, torch.rsqrt, torch.exp, torch.Tensor.exp, torch.norm, F.nll_loss,
            F.group_norm)  # fmt: skip

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.cache: dict[int, torch.Tensor] = {}

    def __exit__(self, *about: Any) -> None:
        self.cache.clear()
        super().__exit__(*about)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        wanted = self.dtype if function in self.NARROW else torch.float32 if function in self.WIDE else None
        if wanted is not None:
            args, kwargs = tree_map(lambda each: self._cast(each, wanted), (args, kwargs))
        return function(*args, **kwargs)

    def _cast(self, value: Any, wanted: torch.dtype) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dtype == wanted:
            return value
        if value.is_leaf and value.requires_grad and value.dtype == torch.float32:
            if id(value) not in self.cache:
                self.cache[id(value)] = value.to(wanted)
            return self.cache[id(value)]
        return value.to(wanted)


class Undecided(TorchFunctionMode):
    """Answers questions about values, which meta tensors do not have, with no and 0, and counts them."""

    QUESTIONS = (torch.Tensor.__bool__, torch.Tensor.item, torch.Tensor.__int__, torch.Tensor.__float__)

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in self.QUESTIONS and isinstance(args[0], torch.Tensor) and args[0].device.type == "meta":
            self.asked += 1
            return False if function is torch.Tensor.__bool__ else 0
        return function(*args, **(kwargs or {}))


@contextmanager
def recorded() -> Iterator[Log]:
    log = Log()
    try:
        yield log
    finally:
        for finalizer in list(log.known.values()):
            finalizer.detach()


def run(
    log: Log,
    model: torch.nn.Module,
    output_of: Callable[[], Any],
    *,
    optimizer: str,
    autocast: torch.dtype | None,
    held: bool = True,
) -> int:
    """Two equal steps: forward, backward, optimiser; the second finds the optimiser's states there. Only the first is
    traced. `output_of()` makes the batch and returns the model's output. Loops written by hand hold it (`held`), and
    with it the logits, until the step is over; transformers' Trainer.compute_loss returns the loss alone. Returns how
    many questions about values had no true answer."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "meta":
            log.adopt(tensor)
    undecided = Undecided()
    log.hold(CUBLAS_WORKSPACE)
    before = len(log.events)
    with log:
        with undecided, Autocast(autocast) if autocast is not None else nullcontext():
            output = output_of()
        loss = output.loss
        if not held:
            del output
        loss.backward()
        output = loss = None
    passes = log.events[before:]
    for each in trained:
        for size in state_sizes(optimizer, each):
            log.hold(size)
    before = len(log.events)
    temporary = [log.hold(size) for each in trained for size in step_sizes(optimizer, each)]
    for identity in temporary:
        log.release(identity)
    for parameter in trained:
        parameter.grad = None
    rest = log.events[before:]
    log.events.append(EMPTY_CACHE)
    log.again(passes + rest)
    return undecided.asked


def state_sizes(optimizer: str, parameter: torch.Tensor) -> list[int]:
    """Bytes of the states that an optimiser keeps on the device for one parameter."""
    size = parameter.numel() * parameter.element_size()
    if optimizer.startswith("paged_") or optimizer == "sgd":
        return []
    if optimizer in ("adamw_8bit", "lion_8bit"):
        if parameter.numel() < 4096:  # bitsandbytes keeps small ones in float32
            return [_FLOAT32 * parameter.numel()] * (2 if optimizer == "adamw_8bit" else 1)
        one = parameter.numel() + _FLOAT32 * -(-parameter.numel() // 256)
        return [one] * (2 if optimizer == "adamw_8bit" else 1)
    if optimizer == "adafactor":
        return [_FLOAT32 * dimension for dimension in parameter.shape] or [_FLOAT32]
    return [size] if optimizer == "lion_32bit" else [size, size]


def step_sizes(optimizer: str, parameter: torch.Tensor) -> list[int]:
    """Bytes that the optimiser's step holds for a moment (torch/optim/adam.py _multi_tensor_adam: one square root)."""
    if optimizer in ("adamw_torch", "adafactor"):
        return [parameter.numel() * parameter.element_size()]
    return []
