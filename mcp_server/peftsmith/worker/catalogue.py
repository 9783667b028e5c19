"""Writes knowledge/architectures.jsonl: what config.json implies for every model type of the installed transformers.

Run as: python -m peftsmith.worker.catalogue OUT.jsonl [--types a,b]      (training environment; minutes to an hour)

Every width is found by experiment: the real class is built on the meta device with one field of its config changed at a
time, then with several, and the width is written as a sum of products of fields. Formulas count only when they also
hold for configs that had no part in finding them; what does not is left out, and the type is then marked incomplete.
Knows: which types there are, and which are left out. Does not know: how to experiment (architectures/), nor how a
config.json is read with the result (model/layouts.py).
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from peftsmith.worker import table
from peftsmith.worker.architectures.entry import entry_of
from peftsmith.worker.architectures.experiment import Experiment, Slow

SECONDS_A_TYPE = 150
# Layers of these follow lists of indices or two periods at once, which no rule here can tell: headers answer for them.
LEFT_OUT = ("bamba", "jamba", "zamba", "zamba2", "nemotron_h")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--types", help="only these, comma-separated")
    parser.add_argument("--task", action="append", help="only these tasks")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    wanted = set(arguments.types.split(",")) if arguments.types else None
    done = _read(arguments.output)
    signal.signal(signal.SIGALRM, too_slow)
    for task, model_type in every_type(arguments.task or list(table.TASKS)):
        key = f"{model_type}:{task}"
        if (
            model_type in LEFT_OUT
            or (wanted is not None and model_type not in wanted)
            or (wanted is None and key in done)
        ):
            continue
        began = time.monotonic()
        signal.alarm(SECONDS_A_TYPE)
        try:
            entry = entry_of(Experiment(model_type, task))
        except Exception as error:  # one type that cannot be built must not end the run; it is reported
            print(f"{key}: left out, {type(error).__name__}: {str(error)[:160]}", file=sys.stderr, flush=True)
            continue
        finally:
            signal.alarm(0)
        done[key] = {"key": key, "transformers": transformers.__version__, **entry}
        state = "complete" if entry["complete"] else f"incomplete: {entry['missing'][:3]}"
        print(f"{key}: {state}, {time.monotonic() - began:.1f} s", flush=True)
        _write(arguments.output, done)
    return 0


def every_type(tasks: list[str]) -> list[tuple[str, str]]:
    """(task, model type) for what the tasks' Auto classes know."""
    from transformers.models.auto import modeling_auto

    names = {
        "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        "image-text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
        "masked-lm": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
        "sequence-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    }
    return [(task, name) for task in tasks for name in getattr(modeling_auto, names[task])]


def too_slow(*_: Any) -> None:
    raise Slow(f"more than {SECONDS_A_TYPE} s")


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {entry["key"]: entry for entry in map(json.loads, lines)}


def _write(path: Path, done: dict[str, Any]) -> None:
    lines = [json.dumps(done[key], separators=(",", ":"), sort_keys=False) for key in sorted(done)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
