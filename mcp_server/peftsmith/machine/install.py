"""Making a training environment: a virtual environment with the tested libraries, as a run in the background.

Knows: the commands (uv where there is one, else venv and pip), what must hold before anything is downloaded.
Does not know: how the commands are carried out (steps.py, in the run), or which packages there are (requirements/).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from peftsmith import assets
from peftsmith.errors import PeftsmithError
from peftsmith.machine import environment

if TYPE_CHECKING:
    from peftsmith.run.store import Run

# By version and not by hash: its build differs by machine (CPU, CUDA, macOS). A test compares it with pyproject.toml.
TORCH = "torch==2.13.0"
LEAST_FREE_GIB = 6
GIB = 1 << 30
_IMPORTS = (
    "import torch, transformers, peft, trl, datasets, accelerate; "
    "print('torch', torch.__version__, 'cuda', torch.cuda.is_available())"
)
# uv does not read pip's settings; where the user has set only those, the downloads still go to the same place.
_PIP_TO_UV = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_INDEX",
    "PIP_FIND_LINKS": "UV_FIND_LINKS",
    "PIP_CERT": "SSL_CERT_FILE",
}


def start(project: Path, path: Path, *, confirm: bool) -> Run:
    """Start a run of kind "environment" that makes `path` (absolute) and installs into it. Returns at once.

    Raises PeftsmithError without `confirm`, when `path` is in use, the disk is too full, or venv is missing.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        there = environment.ask(str(environment.python_in(path)), "path") if path.is_dir() else None
        raise PeftsmithError(
            "There is a working training environment already" if there and there.usable else "The folder is in use",
            value=str(path),
            next_step="Use it as it is." if there and there.usable else "Choose another path, or remove it first.",
        )
    free = shutil.disk_usage(_existing(path)).free / GIB
    if free < LEAST_FREE_GIB:
        raise PeftsmithError(
            f"Only {free:.1f} GiB are free where the environment would go; {LEAST_FREE_GIB} are needed",
            value=str(path),
            next_step="Free some space, or choose a path on another disk.",
        )
    steps = commands(path)
    if not confirm:
        raise PeftsmithError(
            f"Making a training environment downloads {TORCH} and about 70 pinned packages into {path}: 0.7 GB with "
            "torch's CPU build, up to 4 GB with CUDA's",
            next_step="Call again with confirm=true to go ahead.",
        )
    from peftsmith.run import start as starting
    from peftsmith.run import store

    def argv(folder: Path) -> list[str]:
        script = Path(__file__).with_name("steps.py")
        return [sys.executable, "-I", "-u", str(script), str(folder), str(path), json.dumps(steps)]

    run = store.create(project, "environment", argv, project, uv_settings(dict(os.environ)))
    starting.launch(run)
    return run


def commands(path: Path) -> list[list[str]]:
    """The argv lists that make the environment `path`: create it, torch, the hash-locked rest, and a test import."""
    python = str(environment.python_in(path))
    requirements = ["--require-hashes", "--no-deps", "-r", str(assets.folder("requirements") / "train.txt")]
    uv = find_uv()
    if uv is not None:
        install = [uv, "pip", "install", "--no-progress", "--python", python]
        return [
            [uv, "venv", "--no-project", "--python", sys.executable, str(path)],
            [*install, TORCH],
            [*install, *requirements],
            [python, "-I", "-c", _IMPORTS],
        ]
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        raise PeftsmithError(
            "This Python cannot make virtual environments",
            value=sys.executable,
            next_step=f"Install uv, or your system's python3.{sys.version_info.minor}-venv package, and try again.",
        )
    install = [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    return [
        [sys.executable, "-m", "venv", str(path)],
        [*install, TORCH],
        [*install, *requirements],
        [python, "-I", "-c", _IMPORTS],
    ]


def find_uv() -> str | None:
    """uv on the PATH, or beside this interpreter."""
    beside = Path(sys.executable).with_name("uv")
    return shutil.which("uv") or (str(beside) if os.access(beside, os.X_OK) else None)


def uv_settings(variables: dict[str, str]) -> dict[str, str]:
    """What to add to the environment so that uv finds what pip is set up to find."""
    return {uv: variables[pip] for pip, uv in _PIP_TO_UV.items() if variables.get(pip) and not variables.get(uv)}


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
