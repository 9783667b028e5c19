"""PEFT's defaults of the options that decide what an adapter costs (PEFT 0.21.2, tuners/*/config.py).

Knows: option names and default values by PeftType; a test compares them with PEFT's own dataclasses.
Does not know: what the options do (methods_*.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PROMPT = {"num_virtual_tokens": None, "num_transformer_submodules": None}
_WHOLE = {"rank_pattern": {}, "use_effective_conv2d": False}

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ADALORA": {"init_r": 12, "bias": "none"},
    "ADAMSS": {"r": 100, "num_subspaces": 5, "subspace_rank": 1},
    "ADAPTION_PROMPT": {"adapter_len": None, "adapter_layers": None},
    "BEFT": {},
    "BOFT": {"boft_block_size": 4, "boft_block_num": 0, "bias": "none"},
    "C3A": {"block_size": 256, "block_size_pattern": {}, "bias": "none"},
    "CARTRIDGE": {**_PROMPT, "num_frozen_tokens": 1},
    "CPT": {**_PROMPT, "cpt_token_ids": None},
    "DEFT": {"r": 8, "decomposition_method": "relu", "para": False, "bias": "none"},
    "DELORA": {"r": 8, "rank_pattern": {}, "bias": "none"},
    "FOURIERFT": {"n_frequency": 1000, "n_frequency_pattern": {}, "bias": "none"},
    "FROD": {"sparse_rate": 0.01, "bias": "none"},
    "GLORA": {"r": 8, "config_A_B": "lora", "config_C": "lora", "config_D_E": "constant", "bias": "none"},
    "GRALORA": {"r": 32, "hybrid_r": 0, "gralora_k": 2, "bias": "none"},
    "HIRA": {"r": 32, "rank_pattern": {}},
    "HRA": {"r": 8, "apply_GS": False, "bias": "none"},
    "IA3": {"feedforward_modules": None},
    "LILY": {"r": 32, "stride_A": 1, "num_B": 2},
    "LN_TUNING": {},
    "LOHA": {"r": 8, **_WHOLE},
    "LOKR": {"r": 8, "decompose_both": False, "decompose_factor": -1, **_WHOLE},
    "LORA": {"r": 8, "rank_pattern": {}, "bias": "none", "use_dora": False, "lora_bias": False},
    "MISS": {"r": 64, "mini_r": 1, "init_weights": True, "bias": "none"},
    "MULTITASK_PROMPT_TUNING": {**_PROMPT, "num_ranks": 1, "num_tasks": 1},
    "OFT": {"r": 0, "oft_block_size": 32, "coft": False, "block_share": False, "use_cayley_neumann": True,
            "bias": "none"},
    "OSF": {"effective_rank": None, "rank_pattern": None},
    "PEANUT": {"r": 32, "depth": 0},
    "POLY": {"r": 8, "n_tasks": 1, "n_skills": 4, "n_splits": 1},
    "PREFIX_TUNING": {**_PROMPT, "encoder_hidden_size": None, "prefix_projection": False},
    "PROMPT_TUNING": _PROMPT,
    "PSOFT": {"r": 32, "psoft_orth": True, "psoft_mag_b": True, "psoft_mag_a": True, "use_cayley_neumann": False},
    "PVERA": {"r": 256, "bias": "none"},
    "P_TUNING": {**_PROMPT, "encoder_reparameterization_type": "MLP", "encoder_hidden_size": None,
                 "encoder_num_layers": 2},
    "RANDLORA": {"r": 32, "bias": "none"},
    "ROAD": {"variant": "road_1", "group_size": 64},
    "SHADOW": {"r": 8, "shadow_model": "mirror", "shadow_num_hidden_layers": None, "shadow_hidden_size": None,
               "shadow_num_attention_heads": None, "shadow_intermediate_size": None, "share_embeddings": True,
               "update_hidden_size": None},
    "SHIRA": {"r": 32},
    "SUPERTUNING": {"sparsity": 0.99, "r": None},
    "TINYLORA": {"r": 2, "u": 64, "weight_tying": 0.0},
    "TRAINABLE_TOKENS": {"token_indices": []},
    "UNILORA": {"r": 4, "theta_d_length": 256, "bias": "none"},
    "VBLORA": {"r": 4, "num_vectors": 256, "vector_length": 256, "topk": 2, "bias": "none"},
    "VERA": {"r": 256, "bias": "none"},
    "WAVEFT": {"n_frequency": 2592, "n_frequency_pattern": {}, "proportional_parameters": False, "bias": "none"},
    "XLORA": {"hidden_size": None, "adapters": None, "layerwise_scalings": False, "xlora_depth": 1,
              "xlora_size": 2048},
}  # fmt: skip
