"""Runs the commands of an "environment" run one after the other: python -I steps.py RUN_FOLDER ENVIRONMENT STEPS_JSON.

Knows: how to log, count progress in metrics.jsonl, write done.json, and remove a half-made environment.
Does not know: what the commands do. Standard library only: it runs detached, beside the package but not from it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType


def main(folder: Path, environment: Path, steps: list[list[str]]) -> int:
    """Exit code of the first command that fails (0: none). Only a complete environment stays on the disk."""
    started = time.monotonic()
    code, failed = 0, ""
    try:
        for number, argv in enumerate(steps, 1):
            print("$ " + " ".join(argv[:3]) + (" ..." if len(argv) > 3 else ""), flush=True)
            code = subprocess.run(argv, stdin=subprocess.DEVNULL, check=False).returncode
            if code:
                failed = f"step {number} of {len(steps)} ended with exit code {code}"
                break
            row = {"step": number, "max_steps": len(steps), "seconds": round(time.monotonic() - started, 1)}
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
    except OSError as error:
        code, failed = 1, f"{type(error).__name__}: {error}"
    except SystemExit:
        shutil.rmtree(environment, ignore_errors=True)
        raise
    if code:
        print(f"{failed}; removing the incomplete environment", flush=True)
        shutil.rmtree(environment, ignore_errors=True)
    done = {
        "ok": code == 0,
        "kind": "environment",
        "seconds": round(time.monotonic() - started, 1),
        "peak_rss_bytes": _peak(),
        "peak_gpu_bytes": None,
        "metrics": {},
        "artefacts": {"environment": str(environment)} if code == 0 else {},
    }
    written = folder / f".done.{os.getpid()}"
    written.write_text(json.dumps(done) + "\n", encoding="utf-8")
    written.replace(folder / "done.json")
    return code if 0 <= code < 256 else 1


def _peak() -> int | None:
    """Largest resident set of a command, in bytes."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit


def _stop(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])))
