"""What a module is for, read from its path alone: query, up, router, head, tower and so on.

Knows: how the architectures of transformers 5, and the remote-code ones people fine-tune most, name their modules.
Does not know: widths or shapes (blocks.py decides by them where names do not).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

Role = Literal[
    "query", "key", "value", "qkv", "output", "gate", "up", "gate_up", "down", "expert", "router", "head", "tower",
    "embedding", "norm", "state", "other",
]  # fmt: skip
ATTENTION: tuple[Role, ...] = ("query", "key", "value", "qkv", "output")
MLP: tuple[Role, ...] = ("gate", "up", "gate_up", "down")

_TOWER = re.compile(
    r"(^|\.)(\w*vision\w*|visual\w*|\w*audio\w*|\w*image\w*|img_\w+|patch_\w+|\w*projector|connector|aligner|qformer"
    r"|query_tokens|resampler|speech\w*|protein\w*|language_projection|perceiver\w*|vqmodel|vision_tower|mm_\w+"
    r"|adapter|merging_layer|projection_layer|modality_projection|acoustic\w*|diarization_model|semantic_linear\w*)(\.|$)"
)
_NUMBERED = re.compile(r"\.\d+(\.|$)")
_LANGUAGE = re.compile(r"(^|\.)(language_model|text_model|text_decoder)\.")
_EXPERTS = re.compile(r"(^|\.)(experts|local_experts|shared_transformer_experts)(\.|$)")
_ROUTER = re.compile(
    r"(^|\.)(router(\.\w+)?|shared_expert_gate|gate\.wg|moe_gate|router_gate|block_sparse_moe\.gate|moe\.gate"
    r"|(mlp|feed_forward|ffn|moe|mixer|mlp_moe)\.gate)$"
)
_HEAD = re.compile(
    r"(^|\.)(lm_head(\.\w+)*|embed_out|score|classifier(\.\w+)*|classification_head(\.\w+)*|output_projection|lm_loss"
    r"|qa_outputs|proj_out|cls(\.\w+)+|generator_lm_head|generator_predictions(\.\w+)*|vocab_\w+|head(\.\w+)*"
    r"|pre_classifier|logits_proj\w*|predictions(\.\w+)+|discriminator_predictions(\.\w+)*|lm_loss|pooler(\.\w+)*"
    r"|sequence_summary(\.\w+)*|summary|pred_layer(\.\w+)*|decoder|mlm_head(\.\w+)*|entity_predictions(\.\w+)*|seq_relationship)$"
    r"|^output$|^transformer\.output_layer$"  # InternLM2, ChatGLM
)
_STATE = re.compile(r"(^|\.)(mamba\w*|mixer|linear_attn|ssm|rg_lru|temporal_block|time_mix\w*|conv|short_conv"
                    r"|mlstm_layer|recurrent\w*|gated_deltanet|delta_net"
                    r"|attention\.(key|value|receptance|output|gate)$)(\.|$)")  # fmt: skip
_ATTENTION_PARENT = re.compile(r"attn|attention|Attention|mha|self_attn|EncDec|SelfAttention", re.IGNORECASE)
_EMBEDDING = re.compile(r"embed|wte$|wpe$|^shared$|\.shared$|relative_attention_bias$|word_emb", re.IGNORECASE)
_LEAVES: dict[Role, tuple[str, ...]] = {
    "query": ("q_proj", "q_lin", "q", "query", "query_proj", "wq", "Wq", "q_a_proj", "q_b_proj", "q_head", "to_q",
              "query_global", "project_q", "wq_a", "wq_b", "q_gate_proj", "layout_query"),
    "key": ("k_proj", "k_lin", "k", "key", "key_proj", "wk", "Wk", "kv_a_proj_with_mqa", "kv_b_proj", "kv_proj",
            "to_kv", "k_head", "key_global", "project_k", "wkv", "layout_key"),
    "value": ("v_proj", "v_lin", "v", "value", "value_proj", "wv", "Wv", "v_head", "value_global", "project_v",
              "v_proj_current", "v_proj_delayed", "layout_value"),
    "qkv": ("qkv_proj", "qkv", "c_attn", "query_key_value", "Wqkv", "W_pack", "wqkv", "att_proj"),
    "output": ("o_proj", "o", "out_lin", "Wo", "attention_out", "o_a_proj", "o_b_proj", "attn_out", "dense_o"),
    "gate": ("gate_proj", "w1", "wi_0", "gate_linear"),
    "up": ("up_proj", "w3", "wi_1", "wi", "fc1", "fc_in", "lin1", "linear1", "dense_h_to_4h", "c_fc", "ff_proj",
           "dense1", "layer_1", "fc_1", "w_0", "w_1"),
    "gate_up": ("gate_up_proj", "gate_up", "Wi", "input_linear", "w12", "proj_up_gate"),
    "down": ("down_proj", "w2", "fc2", "fc_out", "lin2", "linear2", "dense_4h_to_h", "ff_out", "output_linear",
             "dense2", "ffn_output", "layer_2", "fc_2", "w_out", "w3_down"),
}  # fmt: skip
_BY_LEAF = {leaf: role for role, leaves in _LEAVES.items() for leaf in leaves}


@lru_cache(maxsize=65536)
def role(path: str) -> Role:
    """The role of the module at `path` (its full path, such as model.layers.0.self_attn.q_proj)."""
    tower = _TOWER.search(path)
    if tower and not _LANGUAGE.search(path[: tower.start() + 1]):
        return "tower"
    leaf = path.rpartition(".")[2]
    parent = path.rpartition(".")[0]
    if re.search(r"norm|(^|\.)ln_?\w*$|LayerNorm", leaf, re.IGNORECASE):
        return "norm"
    if _EXPERTS.search(path):
        return "expert"
    inside = _NUMBERED.search(path) is not None
    if inside and _ROUTER.search(path):
        return "router"
    if not inside:
        if _HEAD.search(path):
            return "head"
        return "embedding" if _EMBEDDING.search(leaf) else "other"
    return _in_block(path, parent, leaf)


def _in_block(path: str, parent: str, leaf: str) -> Role:
    """A module of a numbered stack; `parent` decides where a leaf name is used for two things."""
    last = parent.rpartition(".")[2]
    if _EMBEDDING.search(leaf):
        return "embedding"
    if re.fullmatch(r"transformer\.h\.\d+\.mlp\.w[12]", path):  # Qwen, of which w1 is the one without activation
        return "up" if leaf == "w1" else "gate"
    attention = bool(_ATTENTION_PARENT.search(last)) or bool(re.search(r"attention\.(self|output)$", parent))
    if _STATE.search(path) and not re.search(r"self_attn|self_attention", path) and leaf not in ("q_proj", "k_proj"):
        return "state" if not re.search(r"(^|\.)(mlp|feed_forward|ffn)\.", path) else _BY_LEAF.get(leaf, "other")
    if leaf in ("c_proj", "out_proj", "dense", "wo", "proj", "out", "linear_out", "to_out"):
        if attention:
            return "output"
        if leaf == "dense":
            return "up" if last == "intermediate" else "down" if last == "output" else "output"
        return "down" if leaf in ("c_proj", "wo", "proj") else "output"
    if leaf == "in_proj" and attention:
        return "qkv"
    return _BY_LEAF.get(leaf, "other")
