"""Starts of LoRA that take a part of the base for the adapter: what becomes of the adapter, and what they need first.

Knows: which values of init_lora_weights change the base (PiSSA, OLoRA, CorDA, LoRA-GA), when PEFT can turn such an
adapter into plain LoRA of twice the rank as it saves it, which starts have to look at rows.
Does not know: a whole plan (plan.py), or how a script does it (templates/partials/starts.py.j2).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from peftsmith.knowledge.methods import Method, has

FROM_ROWS = ("eva", "corda", "lora_ga")  # begin from what the layers see in rows, or from their gradients
LOFTQ = "loftq"  # begins from the rounding error of a 4-bit base


def alters_base(known: Method, options: Mapping[str, Any]) -> bool:
    """Is the base under the adapter another one than that on disk?"""
    return _one_of(known.alters_base, options)


def converts(known: Method, options: Mapping[str, Any], *, quantised: bool, new_head: bool) -> bool:
    """Is the adapter saved as plain LoRA of twice the rank, which loads on the base as it is on disk?

    PEFT saves the difference between the trained and the first adapter. On a quantised base that is not exact, and it
    keeps nothing but LoRA's two matrices.
    """
    return alters_base(known, options) and not quantised and not lost(known, options, new_head=new_head)


def lost(known: Method, options: Mapping[str, Any], *, new_head: bool) -> list[str]:
    """What the plan trains besides LoRA's two matrices, or scales so that PEFT refuses to take the difference."""
    found = ["a head that is trained whole"] if new_head else []
    found += [each.partition("=")[0] for each in known.unconverted if has(options, each)]
    patterns = [name for name in ("rank_pattern", "alpha_pattern") if options.get(name)]
    return [*found, f"use_rslora with {patterns[0]}"] if options.get("use_rslora") and patterns else found


def only_converted(known: Method, options: Mapping[str, Any]) -> bool:
    """Does the adapter load nowhere unless it is converted?"""
    return _one_of(known.only_converted, options)


def _one_of(patterns: tuple[str, ...], options: Mapping[str, Any]) -> bool:
    init = str(options.get("init_lora_weights"))
    return any(fnmatch.fnmatchcase(init, pattern) for pattern in patterns)
