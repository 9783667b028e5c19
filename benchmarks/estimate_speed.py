"""How fast the memory estimate is: a whole `peftsmith estimate` process beside `accelerate estimate-memory`, and one
estimate of a 405B model inside the server.

Run as: python benchmarks/estimate_speed.py [--repeats 7]      (with the Python that has the control-plane libraries)

Both processes get the config of Llama-3.1-8B; accelerate looks models up on the hub, so a loopback stand-in gives it
the same config.json, cached after the first round. They take turns; the ratio is the median of the turns' own ratios,
so that other load on the machine weighs on both sides alike. Needs the training environment, where accelerate is
(PEFTSMITH_TRAIN_PYTHON). Exit code 1 when a limit is missed: the process takes at most a tenth of accelerate's time,
an estimate inside the server at most 50 ms in the median of 50, with and without alternatives.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "mcp_server"), str(ROOT)]

from benchmarks.estimators import environment, hub
from peftsmith import files, operations

SHARE_OF_ACCELERATE, MILLISECONDS, CALLS = 0.1, 50.0, 50
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 128256,
    "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip
LLAMA_8B = {
    **LLAMA, "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "num_attention_heads": 32,
}  # fmt: skip
LLAMA_405B = {
    **LLAMA, "hidden_size": 16384, "num_hidden_layers": 126, "intermediate_size": 53248, "num_attention_heads": 128,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="turns of the two processes")
    repeats = parser.parse_args().repeats
    training = environment.training()
    if training is None:
        return 1
    with tempfile.TemporaryDirectory() as folder:
        ok = [processes(Path(folder), training, repeats), inside_server(Path(folder))]
    print("OK" if all(ok) else "NOT REACHED")
    return 0 if all(ok) else 1


def processes(folder: Path, training: str, repeats: int) -> bool:
    """Prints the seconds of both processes and their ratio; whether it holds."""
    model = model_folder(folder / "hub" / "own" / "model", LLAMA_8B)
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    seconds: dict[str, list[float]] = {"peftsmith estimate": [], "accelerate estimate-memory": []}
    with hub.serve(folder / "hub") as url:
        accelerate = [training, "-m", "accelerate.commands.accelerate_cli", "estimate-memory", "own/model"]
        kinds = {
            "peftsmith estimate": (
                [sys.executable, "-m", "peftsmith.cli", "estimate", str(model)],
                {**plain, "PYTHONPATH": str(ROOT / "mcp_server")},
                "terms_gib",
            ),
            "accelerate estimate-memory": (
                accelerate,
                {**plain, "PYTHONPATH": "", "HF_ENDPOINT": url, "HF_HOME": str(folder / "home")},
                "Training using Adam",
            ),
        }
        for turn in range(repeats + 1):
            for name, (argv, variables, expected) in kinds.items():
                took = timed(argv, variables, expected)
                if turn:  # the first round only warms the caches
                    seconds[name].append(took)
    for name, values in seconds.items():
        print(f"{name:28}{statistics.median(values):8.3f} s (median of {repeats}){min(values):8.3f} s (least)")
    ratio = statistics.median(ours / theirs for ours, theirs in zip(*seconds.values(), strict=True))
    print(f"peftsmith/accelerate {ratio:.3f} (at most {SHARE_OF_ACCELERATE})")
    return ratio <= SHARE_OF_ACCELERATE


def timed(argv: list[str], variables: Mapping[str, str], expected: str) -> float:
    """Seconds of a whole process, which must have printed what it is for."""
    start = time.perf_counter()
    done = subprocess.run(argv, env=dict(variables), capture_output=True, text=True, check=False)
    took = time.perf_counter() - start
    if expected not in done.stdout:
        raise SystemExit(f"{' '.join(argv)} failed: {done.stderr[-500:]}")
    return took


def inside_server(folder: Path) -> bool:
    """Prints the milliseconds of an estimate in a running process; whether both medians hold."""
    files.set_roots(["/"])
    model = str(model_folder(folder / "405B", LLAMA_405B))
    operations.estimate_memory(model)  # the first call imports and reads tables
    medians = []
    for alternatives in (False, True):
        times, processor = zip(*(call(model, alternatives=alternatives) for _ in range(CALLS)), strict=True)
        medians.append(statistics.median(times))
        print(
            f"Llama-3.1-405B, {'with' if alternatives else 'without'} alternatives: median {medians[-1]:.1f} ms "
            f"(at most {MILLISECONDS:.0f}), most {max(times):.1f} ms of {CALLS}; "
            f"{statistics.median(processor):.1f} ms of the processor"
        )
    return max(medians) <= MILLISECONDS


def call(model: str, *, alternatives: bool) -> tuple[float, float]:
    """Milliseconds of one estimate: by the clock, and of the processor (less, when others use the machine)."""
    start, before = time.perf_counter(), time.thread_time()
    operations.estimate_memory(model, alternatives=alternatives)
    return 1000 * (time.perf_counter() - start), 1000 * (time.thread_time() - before)


def model_folder(folder: Path, config: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


if __name__ == "__main__":
    sys.exit(main())
