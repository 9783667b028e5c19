"""Runs in the training environment: what PEFT's adapters really hold, keep and use, as one JSON document on stdout.

python with_methods.py: a JSON document on stdin with "defaults", "modules", "sums", "models" and "sizes"; each
module case wraps one module and is measured, model cases count and sum over a tiny Llama.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import json
import sys
import warnings
from pathlib import Path
from types import ModuleType

import torch
from peft import PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS
from peft.tuners import miss, psoft, randlora
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

FORMATS = {"half": (2, 4, False), "autocast": (2, 4, True), "cast": (2, 2, False), "full": (4, 4, False)}


def fused_dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """F.dropout as on CUDA, where the mask is boolean; the CPU's own keeps it in the input's format."""
    return torch.native_dropout(x, p, True)[0] if training and p else x


def compute_as_on_a_gpu(*layers: ModuleType) -> None:
    """On a CPU some methods of PEFT compute half-precision adapters in float32; this takes those branches out."""
    for layer in layers:
        changed = dict(vars(layer))
        exec(Path(layer.__file__).read_text(encoding="utf-8").replace('type == "cpu"', 'type == "none"'), changed)
        for name, owner in list(vars(layer).items()):
            for method, function in list(vars(owner).items()) if isinstance(owner, type) else ():
                if inspect.isfunction(function) and "cpu" in function.__code__.co_consts:
                    setattr(owner, method, vars(changed[name])[method])


class Experts(nn.Module):
    """Fused experts as transformers keeps them: (experts, out, in)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, outputs, inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.bmm(x.reshape(2, -1, x.shape[-1]), self.weight.transpose(1, 2))


class Holder(nn.Module):
    """A model of one module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.proj = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


MODULES = {
    "linear": lambda i, o, bias: nn.Linear(i, o, bias=bias),
    "conv1d": lambda i, o, bias: Conv1D(o, i),
    "embedding": lambda i, o, bias: nn.Embedding(i, o),
    "conv": lambda i, o, bias: nn.Conv2d(i, o, 3, bias=bias),
    "norm": lambda i, o, bias: LlamaRMSNorm(i),
    "layernorm": lambda i, o, bias: nn.LayerNorm(i),
    "experts": lambda i, o, bias: Experts(i, o),
}


def storages(tensor: torch.Tensor) -> list[torch.UntypedStorage]:
    if tensor.is_sparse:
        return [tensor._indices().untyped_storage(), tensor._values().untyped_storage()]
    return [tensor.untyped_storage()]


class Alive(TorchDispatchMode):
    """After each operation, the bytes of all storages made since the start and still alive, by serial number."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.live, self.moments, self.count = known, {}, [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        for tensor in tree_leaves(result):
            for storage in storages(tensor) if isinstance(tensor, torch.Tensor) else ():
                if storage._cdata not in self.known and storage._cdata not in self.live:
                    self.count += 1
                    self.live[storage._cdata] = (StorageWeakRef(storage), self.count, storage.nbytes())
        self.moments.append({serial: size for _, serial, size in self.live.values()})
        return result

    def peak(self, without: set[int]) -> int:
        """The largest sum over time of what is alive and not `without` (keys of storages alive now)."""
        serials = {self.live[key][1] for key in without if key in self.live}
        sums = (sum(size for serial, size in moment.items() if serial not in serials) for moment in self.moments)
        return max(sums, default=0)


def adapted(case: dict) -> nn.Module:
    wide, adapter, _ = FORMATS[case["format"]]
    dtype = torch.bfloat16 if wide == 2 else torch.float32
    torch.manual_seed(0)
    base = Holder(MODULES[case["kind"]](case["inputs"], case["outputs"], case["bias"])).to(dtype)
    targets = {} if "target_parameters" in case["options"] else {"target_modules": ["proj"]}
    options = {name: value for name, value in case["options"].items() if name != "frozen_a"}
    config = CONFIGS[PeftType(case["method"])](**targets, **options)
    with contextlib.redirect_stderr(io.StringIO()):
        model = get_peft_model(base, config, autocast_adapter_dtype=adapter == 4)
    if adapter == 2:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
    if "frozen_a" in case["options"]:  # as peft/optimizers/lorafa.py does
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and "lora_A" not in name)
    return model.train()


def measured(case: dict) -> dict:
    """A norm keeps a lot when frozen too; of it only what tuning adds is reported."""
    found = traced(case, adapted(case))
    if case["tokens"] and "norm" in case["kind"]:
        frozen = adapted(case)
        frozen.base_model.disable_adapter_layers()
        found["saved"] -= traced(case, frozen.requires_grad_(False))["saved"]
        found["shared"] = 0
    return found


def traced(case: dict, model: nn.Module) -> dict:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = {"trainable": sum(parameter.numel() for parameter in trained)}
    if not case["tokens"]:
        return found
    wide, _, autocast = FORMATS[case["format"]]
    known = {s._cdata for tensor in [*model.parameters(), *model.buffers()] for s in storages(tensor)}
    held = [value for module in model.modules() for value in vars(module).values()]
    held += [inner for value in held if isinstance(value, dict) for inner in value.values()]
    known |= {s._cdata for value in held if isinstance(value, torch.Tensor) for s in storages(value)}
    if case["kind"] == "embedding":
        x = torch.randint(0, case["inputs"], (2, case["tokens"] // 2))
    else:
        dtype = torch.bfloat16 if wide == 2 else torch.float32
        x = torch.randn(2, case["tokens"] // 2, case["inputs"], dtype=dtype, requires_grad=True) * 1
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.update({s._cdata: s for s in storages(tensor) if s._cdata not in known})
        return tensor

    around = known | {x.untyped_storage()._cdata}
    forward = Alive(around)
    with (
        forward,
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        y = model.base_model.model(x)
    own = y.untyped_storage()
    peak = forward.peak(set(saved)) - (0 if own._cdata in saved else own.nbytes())
    kept = dict(saved)
    saved.clear()
    gradient = torch.ones_like(y)
    backward = Alive(around | set(kept) | {own._cdata, gradient.untyped_storage()._cdata})
    inputs = [x, *trained] if x.requires_grad else trained
    with backward:
        gradients = torch.autograd.grad(y, inputs, gradient, allow_unused=True)
    below = gradients[0].untyped_storage().nbytes() if x.requires_grad else 0
    theirs = gradients[1:] if x.requires_grad else gradients
    weights = {s._cdata for tensor in theirs if tensor is not None for s in storages(tensor)}
    given = kept.pop(x.untyped_storage()._cdata, None)
    found["shared"] = given.nbytes() if given is not None and x.requires_grad else 0
    found["saved"] = sum(storage.nbytes() for storage in kept.values()) + found["shared"]
    found["temporary"] = max(peak, backward.peak(weights) - below, 0)
    return found


def tiny_llama(sizes: dict) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=sizes["hidden"], intermediate_size=sizes["intermediate"], num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"], num_key_value_heads=sizes["kv_heads"], head_dim=sizes["head_dim"],
        vocab_size=sizes["vocab"],
    )  # fmt: skip
    return LlamaForCausalLM(config)


def tuned(model: nn.Module, case: dict) -> nn.Module:
    config = CONFIGS[PeftType(case["method"])](task_type="CAUSAL_LM", **case["options"])
    with contextlib.redirect_stderr(io.StringIO()):
        return get_peft_model(model, config)


def kept(model: nn.Module, hidden: int) -> int:
    """Bytes that the body of a Llama keeps for its backward pass over two rows of 24 tokens with gradients."""
    known = {s._cdata for tensor in [*model.parameters(), *model.buffers()] for s in storages(tensor)}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.update({s._cdata: s for s in storages(tensor) if s._cdata not in known})
        return tensor

    x = torch.randn(2, 24, hidden, dtype=next(model.parameters()).dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(inputs_embeds=x)
    assert output.last_hidden_state.requires_grad
    return sum(storage.nbytes() for storage in saved.values())


def added(case: dict, sizes: dict) -> int:
    """Bytes that the adapters add to what a frozen Llama keeps."""
    dtype = torch.bfloat16 if case["format"] == "half" else torch.float32
    plain = tiny_llama(sizes).to(dtype).requires_grad_(False).train()
    without = kept(plain.model, sizes["hidden"])
    return kept(tuned(plain, case).train().base_model.model.model, sizes["hidden"]) - without


def counted(case: dict, sizes: dict) -> dict:
    model = tuned(tiny_llama(sizes), case)
    return {"trainable": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)}


def defaults(options: dict[str, list[str]]) -> dict:
    """PEFT's default of each option by method, as text; MISSING for an option that PEFT does not have."""
    found = {}
    for method, names in options.items():
        fields = {field.name: field for field in dataclasses.fields(CONFIGS[PeftType(method)])}
        found[method] = {}
        for name in names:
            field = fields.get(name)
            if field is None:
                found[method][name] = "MISSING"
                continue
            value = field.default if field.default is not dataclasses.MISSING else field.default_factory()
            found[method][name] = getattr(value, "value", value)
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.nn.functional.dropout = fused_dropout
    compute_as_on_a_gpu(miss.layer, psoft.layer, randlora.layer)
    asked = json.loads(sys.stdin.read())
    answer = {
        "types": [kind.value for kind in PeftType],
        "defaults": defaults(asked["defaults"]),
        "modules": [measured(case) for case in asked["modules"]],
        "sums": [added(case, asked["sizes"]) for case in asked["sums"]],
        "models": [counted(case, asked["sizes"]) for case in asked["models"]],
    }
    print(json.dumps(answer))
