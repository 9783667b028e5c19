"""The process that runs a user's own loader: its rows as JSON lines, and nothing else on standard output.

Knows: importing one file by its path, calling rows(path), what a row must be.
Does not know: anything else of peftsmith; it runs as a file, also under a training environment's Python (3.10 on).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any


def load(file: Path) -> Any:
    """The module in `file`; its own folder comes first on the path, so that it may be in several files."""
    sys.path.insert(0, str(file.parent))
    specification = importlib.util.spec_from_file_location(file.stem, file)
    if specification is None or specification.loader is None:
        raise ImportError(f"{file.name} is no Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[file.stem] = module
    specification.loader.exec_module(module)
    return module


def main() -> None:
    """Arguments: the loader's file, the data's path."""
    loader, data = Path(sys.argv[1]), Path(sys.argv[2])
    # What the loader prints must not stand among its rows.
    with os.fdopen(os.dup(1), "wb") as out, contextlib.redirect_stdout(sys.stderr):
        os.dup2(2, 1)
        for number, row in enumerate(load(loader).rows(data), start=1):
            if not isinstance(row, dict):
                raise TypeError(f"row {number} is a {type(row).__name__}, not a dict")
            out.write(json.dumps(row).encode("ascii") + b"\n")


if __name__ == "__main__":
    main()
