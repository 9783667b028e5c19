"""LoRA adapters written by hand, as PEFT names them: sound ones, and ones with one thing wrong.

Knows: adapter_config.json's fields, safetensors files of any type with given bytes.
Does not know: torch.
"""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

PREFIX = "base_model.model.model.layers"
RANK, HIDDEN = 4, 8
WIDTH = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "I8": 1}
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "owner/model",
    "revision": "a" * 40,
    "r": RANK,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}

Spec = tuple[str, tuple[int, ...], bytes]


def encode(values: list[float], dtype: str) -> bytes:
    """Little-endian elements; bfloat16 is float32 cut to its upper half."""
    if dtype == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{ {'F32': 'f', 'F16': 'e', 'F64': 'd', 'I8': 'b'}[dtype] }", *values)


def noise(shape: tuple[int, ...], dtype: str = "F32", seed: int = 0) -> Spec:
    draw = random.Random(seed)
    count = 1
    for size in shape:
        count *= size
    return dtype, shape, encode([draw.gauss(0, 0.1) for _ in range(count)], dtype)


def zeros(shape: tuple[int, ...], dtype: str = "F32") -> Spec:
    count = 1
    for size in shape:
        count *= size
    return dtype, shape, bytes(count * WIDTH[dtype])


def lora(rank: int = RANK, dtype: str = "F32", layers: int = 2) -> dict[str, Spec]:
    tensors: dict[str, Spec] = {}
    for layer in range(layers):
        for module in ("self_attn.q_proj", "self_attn.v_proj"):
            name = f"{PREFIX}.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = noise((rank, HIDDEN), dtype, layer)
            tensors[f"{name}.lora_B.weight"] = noise((HIDDEN, rank), dtype, layer + 100)
    return tensors


def write(folder: Path, tensors: dict[str, Spec] | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}), encoding="utf-8")
    write_safetensors(folder / "adapter_model.safetensors", lora() if tensors is None else tensors)
    return folder


def write_safetensors(path: Path, tensors: dict[str, Spec]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
