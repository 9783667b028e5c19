"""Stand-ins for other Pythons: a script that answers as the real one would."""

from __future__ import annotations

import json
from pathlib import Path

GOOD = {
    "torch": "2.13.0+cpu", "transformers": "5.23.0", "peft": "0.21.2", "trl": "1.16.0", "accelerate": "1.15.0",
    "datasets": "5.2.0", "bitsandbytes": "0.50.2", "tokenizers": "0.23.3", "safetensors": "0.8.0",
}  # fmt: skip


def fake_environment(folder: Path, python: str = "3.11.7", **versions: str | None) -> Path:
    """A virtual environment whose python prints these versions; returns the interpreter."""
    interpreter = folder / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    answer = json.dumps({"python": python, "prefix": str(folder), "versions": {**GOOD, **versions}})
    interpreter.write_text(f"#!/bin/sh\necho '{answer}'\n", encoding="utf-8")
    interpreter.chmod(0o755)
    return interpreter
