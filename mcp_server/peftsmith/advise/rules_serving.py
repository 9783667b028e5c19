"""What in a plan the chosen server will not load, or will load with another strength.

Knows: per server the options of an adapter that it refuses or ignores, and what merging can mend.
Does not know: whether a finished adapter can be served (adapter/portable.py), or how to start a server.
Sources: vllm/lora/peft_helper.py and config/lora.py; SGLang issue 40835; llama.cpp convert_lora_to_gguf.py; Ollama.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from peftsmith.knowledge import methods
from peftsmith.model.serving import VLLM_RANKS
from peftsmith.plan import FineTunePlan

IGNORE_RSLORA = ("sglang", "llama.cpp", "ollama")
IGNORE_RANK_PATTERN = ("vllm", "sglang", "ollama")
FROM_GGUF = ("llama.cpp", "ollama")
EVERYTHING = "transformers"
# Options of LoRA that no server but Transformers takes in an adapter.
_REFUSED = (
    "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "layer_replication",
    "alora_invocation_tokens", "use_bdlora",
)  # fmt: skip

_Seen = Mapping[str, Any] | None


def refused(config: Mapping[str, Any]) -> list[str]:
    """The options of a LoRA config that no server but Transformers loads unmerged."""
    found = [name for name in _REFUSED if config.get(name)]
    return [*found, "bias"] if config.get("bias", "none") != "none" else found


def _rslora(plan: FineTunePlan) -> _Seen:
    lost = plan.method.config.get("use_rslora") and plan.serving in IGNORE_RSLORA
    return {"serving": plan.serving} if lost else None


def _patterns(plan: FineTunePlan) -> _Seen:
    config, engine = plan.method.config, plan.serving
    lost = ["alpha_pattern"] if config.get("alpha_pattern") and engine != EVERYTHING else []
    lost += ["rank_pattern"] if config.get("rank_pattern") and engine in IGNORE_RANK_PATTERN else []
    return {"serving": engine, "options": lost} if lost else None


def _rank(plan: FineTunePlan) -> _Seen:
    ranks = [plan.method.rank or 0, *(plan.method.config.get("rank_pattern") or {}).values()]
    saved = max(ranks) * (2 if plan.converts else 1)
    if plan.serving != "vllm" or saved <= VLLM_RANKS[-1]:
        return None
    return {"rank": saved, "highest": VLLM_RANKS[-1]}


def _options(plan: FineTunePlan) -> _Seen:
    if plan.serving == EVERYTHING or plan.method.peft_type != "LORA":
        return None
    options = refused(plan.method.config)
    message = f"{plan.serving} refuses an adapter with {', '.join(options)}."
    return {"message": message, "serving": plan.serving, "options": options} if options else None


def _method(plan: FineTunePlan) -> _Seen:
    method, engine = plan.method, plan.serving
    if method.full:
        return None
    known = methods.method(method.peft_type)
    if engine in plan.servers():
        return None
    merges = methods.merges(known, method.config)
    message = f"{engine} does not load this {known.name} adapter" + (
        "; serve the merged model." if merges else ", and it cannot be merged."
    )
    return {"message": message, "severity": "warning" if merges else "error", "serving": engine}


def _head(plan: FineTunePlan) -> _Seen:
    lost = plan.task_type in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS") and plan.serving != EVERYTHING
    return {"serving": plan.serving, "task": plan.task} if lost else None


def _quantised(plan: FineTunePlan) -> _Seen:
    return {"serving": plan.serving} if plan.method.quantization and plan.serving in FROM_GGUF else None


RULES: Mapping[str, Callable[[FineTunePlan], _Seen]] = {
    "plan.scale.lost_at_serving": _rslora,
    "plan.pattern.lost_at_serving": _patterns,
    "plan.rank.above_server": _rank,
    "plan.serving.option": _options,
    "plan.method.unserved": _method,
    "plan.serving.head": _head,
    "plan.serving.other_base": _quantised,
}
