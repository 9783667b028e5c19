"""Precise mode against PEFT's own published benchmark: the real classes traced, an allocator replayed.

Run as: python benchmarks/precise.py ROWS.csv --configs DIR [--limit N] [--only METHOD ...]

Scores the rows of ROWS.csv (columns as in benchmarks/memory.py) that are `scored` and give max_memory_reserved of
PEFT's
method comparison. Identical configurations are traced once. Prints a line for each, how many methods were traced, how
many came from layer-cut real builds, how many could not be traced and fell back to the formulas (they count in the
mean), the seconds an 8B model takes cold, warm and cached (best of three), and last the mean error. Needs
PEFTSMITH_TRAIN_PYTHON.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "mcp_server"), str(ROOT)]

from benchmarks import measured
from benchmarks import memory as rows_of
from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.machine import environment as environments
from peftsmith.model import memory, precise
from peftsmith.worker import client

GIB = 1 << 30
MEAN_LIMIT, TRACED_SHARE = 1.5, 95.0
COLD, WARM, CACHED = 25.0, 6.0, 0.1
TURNS = 3
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "tie_word_embeddings": False, "max_position_embeddings": 8192,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--configs", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="only this many configurations")
    parser.add_argument("--only", nargs="*", help="only these methods (PEFT's names)")
    arguments = parser.parse_args()
    files.set_roots(["/"])
    environment = environments.ask(os.environ["PEFTSMITH_TRAIN_PYTHON"], "benchmark")
    with tempfile.TemporaryDirectory() as folder, arguments.table.open(encoding="utf-8", newline="") as stream:
        os.environ["PEFTSMITH_HOME"] = str(Path(folder) / "home")
        times = timings(environment, Path(folder))
        models = rows_of.Models(arguments.configs, Path(folder))
        groups: dict[str, list[dict[str, str]]] = defaultdict(list)
        for row in csv.DictReader(stream):
            if arguments.only and row["method"] not in arguments.only:
                continue
            if row["scored"] == "yes" and row["source"].startswith("peft-") and "reserved" in row["peak_kind"]:
                said = [row[name] for name in ("model_id", "method", "r", "target_modules", "n_trainable", "optimizer")]
                groups[json.dumps([*said, measured.in_braces(row["note"])])].append(row)
        scored = []
        for group in list(groups.values())[: arguments.limit]:
            scored += one(group, models, environment)
        client.stop(environment)
    return figure(scored, times)


def one(group: list[dict[str, str]], models: rows_of.Models, environment: Any) -> list[dict[str, Any]]:
    row = group[0]
    body = models.get(row["model_id"])
    request = measured.request_of(row, body)
    began = time.monotonic()
    try:
        found, about = precise.estimate(body, request, environment, frozen=frozen_in(row), loop="bare")
        how = about["how"]
    except PeftsmithError as error:
        found, how = memory.estimate(body, request), "formulas"
        print(f"  not traced: {row['method']}: {str(error)[:160]}", flush=True)
    likely = found.reserved.likely / GIB
    errors = [100 * (likely / float(each["peak_gb"]) - 1) for each in group]
    print(
        f"{statistics.mean(errors):+7.2f} %  {likely:7.3f} GiB  {len(group)} rows  {how:9} "
        f"{time.monotonic() - began:5.1f} s  {row['method']} r={row['r']} {request.options}",
        flush=True,
    )
    return [{"error": abs(error), "method": row["method"], "how": how} for error in errors]


def frozen_in(row: dict[str, str]) -> tuple[str, ...]:
    """What a row says does not train: LoRA-FA's first factor; AdaLoRA's rank numbers, which newer PEFT trains too."""
    if "lora-fa" in row["optimizer"].lower():
        return ("lora_A",)
    return ("ranknum",) if row["method"] == "ADALORA" else ()


def timings(environment: Any, folder: Path) -> dict[str, float]:
    """Seconds for an 8B model, the best of three each: with no worker running, with a warm one (another batch), and
    again (cached)."""
    place = folder / "llama-8b"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(LLAMA_8B), encoding="utf-8")
    body = rows_of.anatomy.inspect(str(place))
    found: dict[str, list[float]] = defaultdict(list)
    for turn in range(TURNS):
        client.stop(environment)
        cold = memory.Request(batch_size=2 + turn, sequence_length=1024)
        for name, asked in (("cold", cold), ("warm", replace(cold, sequence_length=2048)), ("cached", cold)):
            began = time.monotonic()
            precise.estimate(body, asked, environment)
            found[name].append(time.monotonic() - began)
    for name, seconds in found.items():
        print(f"8B, {name}: {', '.join(f'{each:.2f}' for each in seconds)} s")
    return {name: min(seconds) for name, seconds in found.items()}


def figure(scored: list[dict[str, Any]], times: dict[str, float]) -> int:
    ways = {
        how: {each["method"] for each in scored if each["how"] == how} for how in ("traced", "layer-cut", "formulas")
    }
    total = set().union(*ways.values())
    traced = 100 * len(ways["traced"]) / len(total)
    mean = statistics.mean(each["error"] for each in scored)
    worst = max(scored, key=lambda each: each["error"])
    ok = mean <= MEAN_LIMIT and traced >= TRACED_SHARE
    ok = ok and times["cold"] <= COLD and times["warm"] <= WARM and times["cached"] <= CACHED
    print(f"\n{len(total)} methods: {len(ways['traced'])} traced ({traced:.0f} %)")
    print(f"layer-cut {sorted(ways['layer-cut'])}, by formulas {sorted(ways['formulas'])}")
    print(f"worst {worst['error']:.1f} % ({worst['method']})")
    print(
        f"{'OK' if ok else 'NOT REACHED'}: mean error {mean:.2f} % (limit {MEAN_LIMIT}) on {len(scored)} rows; 8B cold "
        f"{times['cold']:.1f} s (limit {COLD:.0f}), warm {times['warm']:.1f} s ({WARM:.0f}), cached "
        f"{1000 * times['cached']:.0f} ms ({1000 * CACHED:.0f})"
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
