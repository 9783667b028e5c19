"""A tiny but complete base model, written without torch: Llama layout, real BPE tokenizer, ChatML template.

Knows: the files of a model folder, and how to write a safetensors file by hand.
Does not know: anything useful; its weights are seeded noise.
"""

from __future__ import annotations

import array
import json
import random
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
CORPUS = [
    "the parcel never came and the money was taken twice, please send it back",
    "how do I change the address of my order before it leaves the warehouse",
    "the app closes by itself when I open the settings page on my phone",
    "system user assistant route the ticket to one queue and answer with its name",
]
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, LAYERS = 64, 128, 4, 2, 2


def write_tiny_model(folder: Path, **config_changes: Any) -> Path:
    """Write config.json, model.safetensors, tokenizer files and template into `folder`; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = _write_tokenizer(folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN // HEADS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "vocab_size": vocab,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "dtype": "float32",
        **config_changes,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3})
    write_safetensors(folder / "model.safetensors", _shapes(vocab))
    return folder


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], seed: int = 0) -> None:
    """F32 tensors: norms are ones, everything else small seeded noise."""
    draw = random.Random(seed)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = array.array("f")
    for name, shape in shapes.items():
        count = 1
        for size in shape:
            count *= size
        begin = len(body) * 4
        body.extend([1.0] * count if "norm" in name else [draw.gauss(0.0, 0.02) for _ in range(count)])
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, len(body) * 4]}
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body.tobytes())


def _shapes(vocab: int) -> dict[str, tuple[int, ...]]:
    kv = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, HIDDEN)}
    for layer in range(LAYERS):
        start = f"model.layers.{layer}."
        shapes |= {
            start + "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            start + "self_attn.k_proj.weight": (kv, HIDDEN),
            start + "self_attn.v_proj.weight": (kv, HIDDEN),
            start + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            start + "mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
            start + "mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
            start + "mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
            start + "input_layernorm.weight": (HIDDEN,),
            start + "post_attention_layernorm.weight": (HIDDEN,),
        }
    return shapes | {"model.norm.weight": (HIDDEN,)}


def _write_tokenizer(folder: Path) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|pad|>",
            "unk_token": "<|endoftext|>",
            "model_max_length": 512,
            "clean_up_tokenization_spaces": False,
        },
    )
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    return int(tokenizer.get_vocab_size())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
