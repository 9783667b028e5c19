"""The memory formulas against traces of the real classes, for every kind of model that people fine-tune.

Run as: python benchmarks/formula_against_trace.py [--only TYPE ...] [--settings NAME ...] [--home DIR]

Models are those of formula_against_trace.toml: published widths, few layers. Each is priced in SETTINGS both ways,
which share no code. Prints a line of errors (formula / trace - 1 of the allocated peak) for each model, what could not
be traced, and last the figure. Traces are kept below DIR (default: peftsmith's cache), so a run that was stopped goes
on where it was. Needs PEFTSMITH_TRAIN_PYTHON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "mcp_server"), str(ROOT)]

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.machine import environment as environments
from peftsmith.model import anatomy, catalogue, memory, precise, skeleton, source
from peftsmith.worker import client

TABLE = Path(__file__).with_suffix(".toml")
LAYERS, VOCABULARY, FEW_TOKENS = 4, 32000, 4096
BATCH, LENGTH = 4, 512
ARCHITECTURES = {
    "causal": "causal-lm",
    "state": "causal-lm",
    "classification": "sequence-classification",
    "seq2seq": "seq2seq",
}
SETTINGS: Mapping[str, dict[str, Any]] = {
    "full": {"method": "full", "autocast": False, "gradient_checkpointing": False},
    "full32": {"method": "full", "precision": "fp32", "gradient_checkpointing": True},
    "qv": {"targets": "query-value", "autocast": False, "gradient_checkpointing": False, "attention": "flash"},
    "lora": {"gradient_checkpointing": False},
    "loraC": {"autocast": False, "gradient_checkpointing": True},
    "qlora": {"quantization": "nf4", "gradient_checkpointing": False, "attention": "flash"},
    "qloraC": {"quantization": "nf4", "autocast": False, "gradient_checkpointing": True},
}
# Settings with a whole vocabulary; the others have one so small that blocks, and not the loss, make the peak.
WHOLE_VOCABULARY = ("full", "full32")
# What classifiers and encoder-decoders are held to: sanity.
FEW = ("full", "lora")
MEAN_LIMIT, WORST_LIMIT, OTHERS_LIMIT = 3.0, 10.0, 15.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", help="only these model types")
    parser.add_argument("--settings", nargs="*", choices=tuple(SETTINGS), help="only these settings")
    parser.add_argument("--home", type=Path, help="where traces are kept")
    arguments = parser.parse_args()
    files.set_roots(["/"])
    if arguments.home:
        os.environ["PEFTSMITH_HOME"] = str(arguments.home.resolve())
    environment = environments.ask(os.environ["PEFTSMITH_TRAIN_PYTHON"], "benchmark")
    assert environment is not None
    errors: dict[tuple[str, str, str], float] = {}
    failed = 0
    for task, kinds in tomllib.loads(TABLE.read_text(encoding="utf-8")).items():
        wanted = arguments.settings or (SETTINGS if task == "causal" else FEW)
        for kind, entry in kinds.items():
            if arguments.only and kind not in arguments.only:
                continue
            found = one(task, kind, entry, wanted, environment)
            failed += sum(error is None for error in found.values())
            errors |= {(task, kind, name): error for name, error in found.items() if error is not None}
            shown = "  ".join(f"{name} {'   -' if e is None else f'{e:+5.1f}'}" for name, e in found.items())
            print(f"{task:14} {kind:12} {shown}", flush=True)
    client.stop(environment)
    return figure(errors, failed)


def body_of(
    task: str, kind: str, entry: Mapping[str, Any], vocabulary: int, environment: environments.Environment | None
) -> anatomy.Anatomy:
    """The model of an entry of the table; the real class is asked (`environment`) where the catalogue does not say."""
    config = {
        "model_type": kind,
        "architectures": [architecture(kind, task)],
        entry.get("vocab", "vocab_size"): vocabulary,
        entry.get("layers", "num_hidden_layers"): LAYERS,
        **entry["config"],
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        opened = source.open_model(folder)
        found = anatomy.describe(opened)
        if found.supported or environment is None:
            return found
        return anatomy.describe(opened, real=skeleton.exact(config, environment, ARCHITECTURES[task]))


def architecture(kind: str, task: str) -> str:
    """The class that the catalogue has for this type and task."""
    found = catalogue.entry(kind, ARCHITECTURES[task])
    if found is None:
        raise SystemExit(f"the catalogue has no {kind} for {ARCHITECTURES[task]}")
    return str(found["architecture"])


def one(
    task: str, kind: str, entry: Mapping[str, Any], wanted: Any, environment: environments.Environment
) -> dict[str, float | None]:
    """Percent by which the formulas' allocated peak is above the traced one, by setting; None: not traced."""
    bodies = {size: body_of(task, kind, entry, size, environment) for size in (VOCABULARY, FEW_TOKENS)}
    found: dict[str, float | None] = {}
    for name in wanted:
        body = bodies[VOCABULARY if name in WHOLE_VOCABULARY else FEW_TOKENS]
        request = memory.Request(
            batch_size=BATCH, sequence_length=LENGTH, loss="stock", task="sft" if task in ("causal", "state") else task,
            **SETTINGS[name],
        )  # fmt: skip
        try:
            traced = precise.trace({**precise.arguments_of(body, request), "loop": "released"}, environment)[
                "allocated"
            ]
            found[name] = 100 * (memory.estimate(body, request).allocated.likely / traced - 1)
        except PeftsmithError as error:
            print(f"  {kind} {name}: {str(error)[:300]}", flush=True)
            found[name] = None
    return found


def figure(errors: Mapping[tuple[str, str, str], float], failed: int) -> int:
    causal = {key: abs(error) for key, error in errors.items() if key[0] == "causal"}
    others = {key: abs(error) for key, error in errors.items() if key[0] in ("classification", "seq2seq")}
    states = [abs(error) for key, error in errors.items() if key[0] == "state"]
    if states:
        print(f"state layers, which have no formula (the answer says so): mean |error| {statistics.mean(states):.1f} %")
    mean, worst = (
        (statistics.mean(causal.values()), max(causal, key=lambda key: causal[key])) if causal else (0.0, None)
    )
    most = causal[worst] if worst else 0.0
    rest = max(others.values(), default=0.0)
    ok = not failed and mean <= MEAN_LIMIT and most <= WORST_LIMIT and rest <= OTHERS_LIMIT
    print(
        f"\n{'OK' if ok else 'NOT REACHED'}: {len(errors)} pairs, {failed} not traced; causal: mean |error| {mean:.2f} "
        f"% (limit {MEAN_LIMIT}), worst {most:.1f} % {worst} ({WORST_LIMIT:.0f}); others: worst {rest:.1f} % "
        f"({OTHERS_LIMIT:.0f})"
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
