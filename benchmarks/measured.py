"""How a row of the published-measurements table is read as a training job.

Knows: the names that publishers give to methods, quantisers, optimisers and kernels, what is nearest to those without a
formula of their own (docs/memory.md), and the one default for what a row leaves out.
Does not know: a row's id, source, path or published value (READ lists the columns that are looked at), or how memory is
estimated.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from peftsmith.errors import PeftsmithError
from peftsmith.model import anatomy, memory, methods, speed

GIB = 1 << 30
READ = (
    "model_id", "method", "r", "target_modules", "n_trainable", "quant", "weight_dtype", "optimizer",
    "per_device_batch", "grad_accum", "seq_len", "grad_ckpt", "attention_impl", "loss_impl", "gpu", "framework", "note",
    "longest_batch_tokens", "autocast", "kbit_prepared", "adapter_dtype", "lora_dropout",
)  # fmt: skip
# A longest batch that is not stated is a full one; dropout as PEFT's default; the optimiser that transformers took by
# default before version 5; k-bit preparation off; adapters in PEFT's own default format.
DEFAULTS: dict[str, Any] = {
    "optimizer": "adamw_torch", "rank": 8, "attention": "sdpa", "loss": "stock", "gradient_checkpointing": False,
    "autocast": False, "kbit_prepared": False, "adapter_bytes": 4, "precision": "bf16",
}  # fmt: skip
# Classes whose loss transformers 4 worked out in the model's own number format (modeling_<type>.py of 4.48). With
# adapters and no autocast the loss is taken as the row states it.
NARROW_LOSS = ("gpt_bigcode", "gpt2", "gpt_neox", "falcon", "bloom", "opt", "mpt")
# Other names of PEFT's types, letters and digits only.
ALIASES = {
    "ia3": "ia3", "prompt": "prompt_tuning", "ptuning": "p_tuning", "ptuningv2": "prefix_tuning",
    "prefix": "prefix_tuning", "llamaadapter": "adaption_prompt", "llamaadapterv2": "adaption_prompt",
    "bone": "miss", "lntuning": "ln_tuning", "layernorm": "ln_tuning",
}  # fmt: skip
# Low-rank adapters under other names, which change values or the optimiser but no shape; and what is nearest to LoRA: a
# frozen base of which a small part trains (frozen layers, added blocks, bottleneck adapters).
LIKE_LORA = (
    "lora", "qlora", "dora", "qdora", "rslora", "loftq", "pissa", "olora", "eva", "corda", "milora", "loraplus",
    "lorafa", "longlora", "qalora", "freeze", "frozen", "llamapro", "adapter", "houlsby", "bottleneck",
)  # fmt: skip
# Optimisers without a formula of their own: those that keep one number for a weight, and those that keep far less
# (factored or low-rank states). Any other is taken for AdamW.
ONE_STATE = ("lion", "muon", "adagrad", "rmsprop", "adam_mini", "adammini", "adamw_mini")
FEW_STATES = ("adafactor", "galore", "apollo", "came", "sm3", "lomo")


def request_of(row: Mapping[str, str], body: anatomy.Anatomy) -> memory.Request:
    """The training job that a row describes for the model in it. Raises ValueError for one that cannot be told."""
    row = {name: (row.get(name) or "").strip() for name in READ}
    options = {key: value for key, value in in_braces(row["note"]).items() if key != "init_weights"}
    method, told = _method(row["method"], ranked=bool(row["r"]))
    options = {**_usual(method, body), **told, **options}
    quantization = _quantization(row["quant"])
    if "qlora" in row["method"].lower() or "qdora" in row["method"].lower():
        quantization = "nf4_double" if quantization == "none" else quantization
    if method == "full" and quantization == "fp8":
        quantization = "none"  # products in 8 bits, weights that train in 16
    autocast = _autocast(row)
    narrow = body.model_type in NARROW_LOSS and (method == "full" or autocast)
    request = memory.Request(
        method=method,
        rank=_whole(options.get("init_r") or row["r"], DEFAULTS["rank"]) or DEFAULTS["rank"],
        targets=_targets(row["target_modules"], body),
        batch_size=_whole(row["per_device_batch"]),
        sequence_length=_whole(row["longest_batch_tokens"] or row["seq_len"]),
        precision=_precision(f"{row['weight_dtype']} {row['method']} {row['quant']}"),
        gradient_checkpointing=_flag(row["grad_ckpt"], "gradient_checkpointing"),
        optimizer=_optimizer(f"{row['optimizer']} {row['method']}"),
        loss=_loss(row["loss_impl"], row["framework"], narrow=narrow),
        quantization=quantization,
        options=options,
        autocast=autocast,
        adapter_bytes=_adapter_bytes(row["adapter_dtype"]),
        kbit_prepared=_flag(row["kbit_prepared"], "kbit_prepared", "prepare_model_for_kbit" in row["weight_dtype"]),
        dropout=_number(row["lora_dropout"]) > 0,
        attention=_attention(row["attention_impl"]),
        accumulates=_whole(row["grad_accum"], 1) > 1,
        device_bytes=_device_bytes(row["gpu"]),
    )
    request = told_by_trainable(body, request, _whole(row["n_trainable"], 0), ranked=bool(row["r"]))
    return _priced(body, request)


def _priced(body: anatomy.Anatomy, request: memory.Request) -> memory.Request:
    """The request, without options that have no formula or that PEFT would refuse: the method as it is usually set.

    Raises PeftsmithError where that cannot be estimated either."""
    try:
        memory.estimate(body, request)
    except PeftsmithError:
        request = replace(request, options=_usual(request.method, body))
        memory.estimate(body, request)
    return request


def contradicts_itself(row: Mapping[str, str], body: anatomy.Anatomy) -> bool:
    """Whether a row states adapters, a loss in float32 and no autocast for a class whose loss is in the model's own
    format: only autocast makes it float32 there."""
    stated = "upcast" in row["loss_impl"] and "transformers 4" in row["framework"] and not _autocast(row)
    return stated and body.model_type in NARROW_LOSS and _method(row["method"], ranked=True)[0] != "full"


def told_by_trainable(
    body: anatomy.Anatomy, request: memory.Request, trainable: int, *, ranked: bool
) -> memory.Request:
    """The request with what its stated number of trainable parameters tells of options that the row does not give: the
    rank of LoRA, the number of tokens, DEFT without its second factor, the rank that OSF trains."""
    if request.method == "lora" and trainable and not ranked:
        of_one = memory.estimate(body, replace(request, rank=1)).trainable
        return replace(request, rank=trainable // of_one) if trainable % of_one == 0 else request
    if request.method == "trainable_tokens" and trainable and "token_indices" not in request.options:
        tokens = list(range(trainable // body.hidden))
        return replace(request, options={**request.options, "token_indices": tokens})
    if request.method == "deft":
        without = replace(request, options={**request.options, "para": True})
        return without if memory.estimate(body, without).trainable == trainable else request
    if request.method == "osf" and trainable:
        modules = memory.adapted_modules(body, request)
        rank = trainable // sum(m.inputs + m.outputs + 1 for m in modules.values())
        kept = {m.leaf: min(m.inputs, m.outputs) - rank for m in modules.values()}
        return replace(request, options={**request.options, "rank_pattern": kept})
    return request


def _usual(method: str, body: anatomy.Anatomy) -> dict[str, Any]:
    """Options without which PEFT would not build a method, as its examples set them, for rows that state none."""
    if method in ("prompt_tuning", "p_tuning", "prefix_tuning", "multitask_prompt_tuning", "cpt", "cartridge"):
        return {"num_virtual_tokens": 20}
    return {"adapter_len": 10, "adapter_layers": body.layers} if method == "adaption_prompt" else {}


def _method(text: str, *, ranked: bool) -> tuple[str, dict[str, Any]]:
    """(method, options of it) for any of a method's names; of several words the first that is known counts. An unknown
    word with a rank beside it is taken for LoRA.

    Raises ValueError for a method that nothing is known of."""
    known = {_plain(name): name.lower() for name in methods.METHODS} | ALIASES
    plain = _plain(text)
    if plain in known:
        return known[plain], {}
    words = [_plain(word) for word in re.split(r"[^A-Za-z0-9]+", text)]
    if any(word.startswith("full") or word in ("fft", "ft", "finetuning") for word in words):
        return "full", {}
    if any(word in LIKE_LORA for word in (*words, plain)) or "lora" in plain:
        options = {f"use_{name}": True for name in ("dora", "rslora") if name in plain}
        return "lora", options
    for word in words:
        if word in known:
            return known[word], {}
    if ranked:
        return "lora", {}
    raise ValueError(f"unknown method {text!r}")


def _optimizer(text: str) -> str:
    name = text.lower()
    eight = re.search(r"8.?bit|4.?bit|int8|fp8", name) is not None
    if "paged" in name:
        return "paged_adamw_8bit" if eight else "paged_adamw_32bit"
    if re.search(r"lora.?fa\b", name):
        return "lora_fa"
    if any(each in name for each in FEW_STATES):
        return "adafactor"
    if any(each in name for each in ONE_STATE):
        return "lion_8bit" if eight else "lion_32bit"
    if eight:
        return "adamw_8bit"
    if "sgd" in name:
        return "sgd"
    return "adamw_torch_fused" if "fused" in name else DEFAULTS["optimizer"]


def _targets(text: str, body: anatomy.Anatomy) -> str | list[str]:
    """A preset or module names. Names that this model has not (q_proj of one that fuses query, key and value) mean the
    modules of that kind."""
    plain = text.lower().strip("[]\"' ")
    if plain in ("", "all", "all linear", "all-linear", "all_linear", "linear"):
        return "all-linear"
    names = [name for name in re.split(r"[^A-Za-z0-9_.]+", text) if name]
    short = {"q", "k", "v", "o", "gate", "up", "down"}
    if set(names) <= short:
        names = [f"{name}_proj" for name in names]
    modules = body.skeleton.modules if body.skeleton else ()
    if not modules or any(f".{module.name}".endswith(f".{name}") for module in modules for name in names):
        return names
    inner = {"query", "value"} & {_plain(name) for name in names}
    if inner:
        return "query-value"
    feed_forward = any(re.search(r"gate|up|down|fc|mlp|w[123]|4h", name) for name in names)
    attention = any(re.search(r"^[qkvo]_|attn|attention|query|key|value|qkv|dense|out", name.lower()) for name in names)
    return "all-linear" if feed_forward == attention else "mlp" if feed_forward else "attention"


def _precision(text: str) -> str:
    """The format of the weights; AMP without another word keeps them in float32, as torch's own recipe does."""
    start = text.lower().replace("torch.", "").strip()
    if re.match(r"(float32|fp32|32)", start) or re.search(r"\b32-?bit\b|\bfull amp\b", start):
        return "fp32"
    return "fp16" if re.match(r"(float16|fp16)", start) else DEFAULTS["precision"]


def _quantization(text: str) -> str:
    """The format of a quantised base; a bare number of bits is bitsandbytes' (16 and 32 are none), and quantisers
    without a formula of their own are taken for HQQ with as many bits."""
    name = text.lower()
    found = re.search(r"(?:int|uint|nf|fp|w|mxfp)?([2348])(?:[ -]?bits?\b|\b)", name.replace("_", " "))
    bits = int(found.group(1)) if found else 4
    if name in ("", "none", "no", "16-bit", "32-bit", "16bit", "32bit", "bf16", "fp16", "fp32"):
        return "none"
    for word in ("gptq", "awq", "hqq", "eetq", "aqlm", "mxfp4", "fp8", "float8"):
        if word in name:
            fixed = {"awq": "awq4", "eetq": "eetq8", "aqlm": "aqlm2", "mxfp4": "mxfp4", "fp8": "fp8", "float8": "fp8"}
            return fixed.get(word, f"{word}{bits}")
    if "nf4" in name or "fp4" in name or (bits == 4 and ("bnb" in name or "bitsandbytes" in name or name == "4-bit")):
        return "nf4_double" if "double" in name else "nf4"
    if bits == 8:
        return "int8"
    return f"hqq{bits}"


def _loss(text: str, framework: str, *, narrow: bool) -> str:
    name = f"{text} {framework}".lower()
    if re.search(r"\bliger\b|cut.cross.entropy|\bcce\b", name) and "no liger" not in name:
        return "liger"
    if "chunk" in text.lower():
        return "trl_chunked"
    kind = "fused" if "fused kernels" in name or "unsloth" in name else DEFAULTS["loss"]
    return f"{kind}_narrow" if narrow and "transformers 4" in framework else kind


def _attention(text: str) -> str:
    """Kernels that hold no probabilities and need no mask in memory count as FlashAttention; xformers as SDPA."""
    name = text.lower()
    if re.search(r"flash|fa[23]|flex", name):
        return "flash"
    return "eager" if "eager" in name else DEFAULTS["attention"]


def _autocast(row: Mapping[str, str]) -> bool:
    """As stated; where the column is empty, what the weights' or the method's description says of mixed precision."""
    about = f"{row['weight_dtype']} {row['method']}".lower()
    mixed = re.search(r"autocast|mixed|\bamp\b", about) is not None and "no autocast" not in about
    return _flag(row["autocast"], "autocast", mixed)


def _flag(text: str, name: str, otherwise: bool | None = None) -> bool:
    """Yes or no in any of its spellings (a kind of checkpointing is a yes); `otherwise` or the default if empty."""
    plain = text.strip().lower()
    if plain in ("", "unknown", "?", "n/a", "nan"):
        return DEFAULTS[name] if otherwise is None else otherwise
    return plain not in ("false", "no", "none", "off", "0", "0.0", "disabled")


def _adapter_bytes(text: str) -> int:
    name = text.lower()
    if re.search(r"16|half", name):
        return 2
    return 4 if "32" in name else DEFAULTS["adapter_bytes"]


def _whole(value: Any, otherwise: int | None = None) -> int:
    """The first whole number of a cell ("16", "16.0", "r=16"). Raises ValueError where there is none and no default."""
    found = re.search(r"\d+(?:\.\d+)?(?:e\d+)?", str(value or "").replace(",", "").lower())
    if found is None:
        if otherwise is None:
            raise ValueError(f"not a number: {value!r}")
        return otherwise
    return int(float(found.group(0)))


def _number(text: str) -> float:
    found = re.search(r"\d+(?:\.\d+)?", text)
    return float(found.group(0)) if found else 0.0


def _device_bytes(gpu: str) -> int | None:
    """The memory of a GPU: stated in its name ("A100-80GB"), or the catalogue's; None when neither tells."""
    stated = re.search(r"(\d+) ?G(?:i?B)?\b", gpu)
    known = {found.memory_gib for found in speed.gpus().values() if found.name.lower() in gpu.lower()}
    gib = int(stated.group(1)) if stated else max(known, default=0)
    return int(gib * GIB) or None


def in_braces(note: str) -> dict[str, Any]:
    """The options that a note gives as a Python dictionary."""
    found = re.search(r"\{.*?\}", note)
    try:
        value = ast.literal_eval(found.group(0)) if found else {}
    except (ValueError, SyntaxError):
        return {}
    return value if isinstance(value, dict) else {}


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
