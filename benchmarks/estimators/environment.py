"""The Pythons that the other estimators run in: one made for them by hash-locked pins, and the training environment.

Knows: where they are and when they have to be made anew. Does not know: any estimator.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".cache" / "estimators-venv"
PINS = ROOT / "requirements" / "estimators.txt"


def own() -> str | None:
    """The Python with the estimators of PINS, made when it is missing or older than the pins; None, with the reason on
    stderr, when it cannot be made."""
    python, mark = FOLDER / "bin" / "python", FOLDER / "pins.sha256"
    pins = hashlib.sha256(PINS.read_bytes()).hexdigest()
    if mark.is_file() and mark.read_text(encoding="utf-8") == pins:
        return str(python)
    shutil.rmtree(FOLDER, ignore_errors=True)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    for command in ([sys.executable, "-m", "venv", str(FOLDER)], [str(python), *install, "-r", str(PINS)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            print(f"no environment for the other estimators: {' '.join(said[-2:])}", file=sys.stderr)
            return None
    mark.write_text(pins, encoding="utf-8")
    return str(python)


def training() -> str | None:
    """The training environment's Python, where accelerate is; None, with the reason on stderr, when there is none."""
    python = Path(os.environ.get("PEFTSMITH_TRAIN_PYTHON", ROOT / ".venv-train" / "bin" / "python"))
    if python.is_file():
        return str(python)
    print(f"accelerate is not run: there is no training environment at {python}", file=sys.stderr)
    return None
