"""Who may share a sequence: architectures and methods whose packed rows do not see each other, and a step's needs.

Knows: knowledge/packing.json (tried on small models by worker/apart.py) and what methods.toml says of methods.
Does not know: the config of a base, whose own small twin the loss-mask proof tries (data/proof.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from peftsmith.knowledge.methods import Method
from peftsmith.model import catalogue

FILE = "packing.json"


def keeps_apart(model_type: str) -> bool | str | None:
    """Whether rows in one sequence do not see each other; a text is what the class says when it refuses to pack
    (a kernel is missing); None: not tried."""
    apart: bool | str | None = _types().get(model_type, {}).get("apart")
    return apart


def attention(model_type: str) -> str | None:
    """The attention with which the type was tried: the one that it takes by default."""
    known: str | None = _types().get(model_type, {}).get("attention")
    return known


def tried_with() -> str:
    """The version of transformers that the types were tried with."""
    return str(_document()["transformers"])


def type_of_class(name: str) -> str | None:
    """The model type of a class for language models, such as LlamaForCausalLM; None where it is none that was tried."""
    return _by_class().get(name)


def labelled(model_type: str) -> bool | None:
    """Whether logits can be asked for at some positions only, with no other loss in the forward pass."""
    known: bool | None = _types().get(model_type, {}).get("labelled")
    return known


def method_mixes(known: Method, options: Mapping[str, Any]) -> str | None:
    """Why a method lets rows of one sequence see each other; None where it does not."""
    if known.prompt_learning:
        return "its virtual tokens stand before a sequence, not before each row in it"
    if options.get("alora_invocation_tokens"):
        return "it is switched on for all that follows its invocation tokens"
    return None if known.packs else "it weighs its adapters by all positions of a sequence"


def method_hides_labels(known: Method) -> bool:
    """Whether the method puts tokens of its own among the positions, or has a forward pass that the loss must take."""
    return known.prompt_learning or known.own_forward


@cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(resources.files("peftsmith.knowledge").joinpath(FILE).read_text("utf-8"))
    return document


def _types() -> dict[str, dict[str, Any]]:
    types: dict[str, dict[str, Any]] = _document()["types"]
    return types


@cache
def _by_class() -> dict[str, str]:
    entries = ((name, catalogue.entry(name, "causal-lm")) for name in _types())
    return {str(entry["architecture"]): name for name, entry in entries if entry}
