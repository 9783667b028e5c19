"""Base models without weights, of realistic sizes, for tests of advice.

Knows: a few config.json files, and the tiny tokenizer and template beside them.
Does not know: what is asked of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny import write_tiny_model

LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}  # fmt: skip
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 2048, "intermediate_size": 4096,
    "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128,
    "vocab_size": 32000, "max_position_embeddings": 8192, "tie_word_embeddings": False, "num_local_experts": 8,
    "num_experts_per_tok": 2,
}  # fmt: skip
GEMMA = {
    "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384,
    "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256,
    "vocab_size": 256000, "max_position_embeddings": 8192,
}  # fmt: skip
BERT = {
    "architectures": ["BertForMaskedLM"], "model_type": "bert", "hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": 30522,
    "max_position_embeddings": 512, "type_vocab_size": 2,
}  # fmt: skip
T5 = {
    "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 512, "d_ff": 1024, "d_kv": 64,
    "num_heads": 6, "num_layers": 8, "num_decoder_layers": 8, "vocab_size": 32128, "is_encoder_decoder": True,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "hidden_size": 512, "num_hidden_layers": 8,
    "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 64,
}  # fmt: skip

GPT2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA_8B, "mixtral": MIXTRAL, "gemma": GEMMA, "bert": BERT, "t5": T5, "gpt2": GPT2,
}  # fmt: skip


def write(folder: Path, config: dict[str, Any], *, template: bool = True) -> Path:
    """A model folder without weights."""
    write_tiny_model(folder, **config)
    (folder / "model.safetensors").unlink()
    if not template:
        (folder / "chat_template.jinja").unlink()
    return folder
