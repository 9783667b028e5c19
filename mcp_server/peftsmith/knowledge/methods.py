"""Every PEFT method as the control plane knows it: what its config takes, and what is known of how it behaves.

Knows: knowledge/peft_methods.json and bottleneck.json (read out of the libraries by worker/jobs/methods.py and
bottleneck.py) and knowledge/methods.toml (experience).
Does not know: PEFT itself, which the control plane never imports, whether a plan's options fit (method_options.py), or
whether a choice is wise (advise/).

Make both files anew, for other versions, with: python -m peftsmith.knowledge.methods
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from peftsmith.errors import PeftsmithError

FULL = "FULL"  # full fine-tuning: no adapter, and so no PeftType
FILE = "peft_methods.json"
# Bottleneck adapters are no PeftTypes: another library has them (worker/jobs/bottleneck.py reads it).
BOTTLENECK_FILE = "bottleneck.json"
_DECOMPOSING = ("pissa", "olora", "eva", "orthogonal", "corda", "loftq", "lora_ga", "mica")
# Fields that the scripts set themselves, so that a plan may not.
SET_BY_SCRIPT = frozenset({"task_type", "inference_mode", "base_model_name_or_path", "revision", "peft_type"})
# What PEFT works out from the base model.
FROM_MODEL = frozenset({"token_dim", "num_attention_heads", "num_layers", "num_transformer_submodules"})


@dataclass(frozen=True)
class Method:
    """A PeftType. `fields` maps a config field to {"type", "default", "doc"} (see worker/jobs/methods.py).

    `shares`: can several adapters be wrapped around one base ("kind": of this method only)? `mixed`: PeftMixedModel
    holds it beside other methods. `prefix` begins the names of its tensors.

    `names` maps the plan's own names (rank, alpha, dropout, target_modules) to the config's fields. `defaults` are the
    plan's values where it is silent, `with_rank` more of them for a plan that gives a rank, `needs` the fields without
    which PEFT cannot build the adapter. `merges` and `resumes` hold for a plain base, and unless an option of
    `unmerged` or `unresumed` is set; `quantised` says which bitsandbytes sizes train. `fails_on` are model types that
    it fails on, `only_on` the only ones; `widens` are bits of a quantised base on which its layers answer in float32,
    `adds_in_place` those on which layers with a bias fail. `near_one` says whose numbers train that begin at 1, the
    "adapter"'s or the "base"'s, in the base's type. `takes_conv1d`: it adapts GPT-2's transposed layers. `tasks`
    are PEFT's task types. `own_forward`: TRL's fused head does not reach its loss. `packs`: packed rows stay apart.
    `divides`, `decomposes`, `sparse` and `twin_width` say how small a model can be (project/proof_facts.py).
    `by_task` names the field that counts the tasks of a method which is told the task of every row.
    `alters_base` are values of init_lora_weights that change the base, `only_converted` those of them whose adapter
    loads only after it was turned into plain LoRA, `unconverted` options that stand against that (starts.py).
    `replicates` are model types whose layers PEFT can repeat. `library` is the package that has it.
    `unsupported` is the reason why no project is generated with it, or None; `refused` maps an option's name and value
    ("*": any) to such a reason.
    """

    name: str
    config: str
    fields: Mapping[str, Mapping[str, Any]]
    tasks: tuple[str, ...]
    prompt_learning: bool
    names: Mapping[str, str]
    mixed: bool = False
    prefix: str = ""
    shares: bool | str = True
    defaults: Mapping[str, Any] = field(default_factory=dict)
    with_rank: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    merges: bool = False
    unmerged: tuple[str, ...] = ()
    resumes: bool = True
    unresumed: tuple[str, ...] = ()
    checkpointing: bool = True
    own_forward: bool = False
    packs: bool = True
    by_task: str | None = None
    quantised: tuple[int, ...] = ()
    served: tuple[str, ...] = ("transformers",)
    divides: tuple[str, ...] = ()
    decomposes: bool = False
    sparse: bool = False
    twin_width: int = 0
    alters_base: tuple[str, ...] = ()
    only_converted: tuple[str, ...] = ()
    unconverted: tuple[str, ...] = ()
    replicates: tuple[str, ...] = ()
    library: str = "peft"
    refused: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    learning_rate: tuple[float, float] | None = None
    fails_on: tuple[str, ...] = ()
    only_on: tuple[str, ...] = ()
    widens: tuple[int, ...] = ()
    near_one: str = ""
    adds_in_place: tuple[int, ...] = ()
    takes_conv1d: bool = True
    unsupported: str | None = None
    note: str = ""


@cache
def names() -> tuple[str, ...]:
    """Every PeftType of the PEFT that these facts were read from, sorted."""
    return tuple(_facts()["methods"])


@cache
def bottlenecks() -> tuple[str, ...]:
    """The bottleneck adapters of the library `adapters`, sorted."""
    return tuple(sorted(_bottlenecks()["methods"]))


def _also(alternative: Any, values: list[Any]) -> Any:
    """A field's choices with more of them."""
    chosen = isinstance(alternative, Mapping) and "choices" in alternative
    return {"choices": [*alternative["choices"], *values]} if chosen else alternative


@cache
def versions() -> dict[str, str]:
    """The versions that the facts were read from: {"peft", "transformers"}."""
    return {name: str(_facts()[name]) for name in ("peft", "transformers")}


@cache
def method(name: str) -> Method:
    """The facts of one PeftType; PeftsmithError with the nearest name for any other."""
    known = {**_facts()["methods"], **_bottlenecks()["methods"]}.get(name)
    if known is None:
        near = difflib.get_close_matches(name.upper(), [*names(), *bottlenecks(), FULL], 1)
        raise PeftsmithError(
            "PEFT has no such method" + (f", did you mean {near[0]}?" if near else ""),
            value=name,
            next_step=f"Use {FULL} or one of {', '.join((*names(), *bottlenecks()))}.",
        )
    noted = dict(_notes().get(name, {}))
    own: dict[str, str] = {plain: noted.pop(plain) for plain in ("rank", "alpha", "dropout") if plain in noted}
    if "target_modules" in known["fields"]:
        own["target_modules"] = "target_modules"
    noted = {key: tuple(value) if isinstance(value, list) else value for key, value in noted.items()}
    shares = noted.pop("shares", True)
    fields = {**known["fields"]}
    for option, values in noted.pop("also", {}).items():
        fields[option] = {**fields[option], "type": [_also(each, values) for each in fields[option]["type"]]}
    return Method(
        name=name,
        config=known["config"],
        fields=fields,
        tasks=tuple(noted.pop("tasks", known["tasks"])),
        prompt_learning=known["prompt_learning"],
        mixed=known["mixed"] and shares is True,
        prefix=known["prefix"],
        shares=shares,
        names=own,
        **noted,
    )


def supports(task_type: str, model_type: str) -> bool | None:
    """Does transformers have a class with this task's head for this model type? None for types it does not know."""
    models = _facts()["models"]
    if not any(model_type in types for types in models.values()):
        return None
    return model_type in models[task_type]


def body_renamed(model_type: str) -> bool:
    """Does this type's class for question answering call the model's body otherwise than its checkpoints do?"""
    return model_type in _facts()["renamed_bodies"]


def merges(known: Method, options: Mapping[str, Any]) -> bool:
    """Does merge_and_unload give a model with the same logits?"""
    return known.merges and not any(has(options, each) for each in known.unmerged)


def resumes(known: Method, options: Mapping[str, Any]) -> bool:
    """Does a Trainer go on from a checkpoint with what it had?"""
    return known.resumes and not any(has(options, each) for each in known.unresumed)


def has(options: Mapping[str, Any], stated: str) -> bool:
    """Is an option set ("name"), or set to this value ("name=value")?"""
    name, _, value = stated.partition("=")
    given = options.get(name)
    return str(given) == value if value else given not in (None, False)


def why_refused(known: Method, name: str, value: Any) -> str | None:
    """Why no project is generated with this value of an option; None when one is."""
    reasons = known.refused.get(name, {})
    if value in (None, False, [], {}):
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return next((reason for pattern, reason in reasons.items() if fnmatch.fnmatchcase(text, pattern)), None)


def decomposes(options: Mapping[str, Any]) -> bool:
    """Does LoRA start from a decomposition of each adapted matrix, or of what goes into it?"""
    return str(options.get("init_lora_weights", "")).startswith(_DECOMPOSING)


@cache
def _facts() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(
        resources.files("peftsmith.knowledge").joinpath(FILE).read_text(encoding="utf-8")
    )
    return facts


@cache
def _bottlenecks() -> dict[str, Any]:
    text = resources.files("peftsmith.knowledge").joinpath(BOTTLENECK_FILE).read_text(encoding="utf-8")
    facts: dict[str, Any] = json.loads(text)
    return facts


@cache
def _notes() -> dict[str, dict[str, Any]]:
    return tomllib.loads(resources.files("peftsmith.knowledge").joinpath("methods.toml").read_text(encoding="utf-8"))


def written(facts: Mapping[str, Any]) -> str:
    """The text of peft_methods.json: one line a method, so that a new PEFT gives a diff that can be read."""

    def line(value: Any) -> str:
        return json.dumps(value, sort_keys=True, ensure_ascii=False)

    plain = ("peft", "adapters", "transformers", "renamed_bodies")
    parts = [f'"{name}": {line(facts[name])}' for name in plain if name in facts]
    for group in (name for name in ("methods", "models") if name in facts):
        inner = ",\n".join(f"{line(name)}: {line(value)}" for name, value in sorted(facts[group].items()))
        parts.append(f'"{group}": {{\n{inner}\n}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    """Read the methods of the present training environments and write their files beside this one."""
    from peftsmith.machine import environment
    from peftsmith.worker import client

    here = Path.cwd()
    for job, name, found in (
        ("methods", FILE, environment.require(here)),
        ("bottleneck", BOTTLENECK_FILE, environment.require(here, library="adapters")),
    ):
        facts = client.call(found, job, {}, timeout=120)
        Path(__file__).with_name(name).write_text(written(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
