"""Running a project's own scripts inside a checker, byte for byte as they lie on disk.

Knows: how to load a script as a module, call its main(argv), and name the script's line when it fails; what a
project's files looked like before.
Does not know: what the scripts should do (jobs/twin.py).
"""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from peftsmith.worker.child import describe

_NOT_OURS = frozenset({"runs", ".git", ".venv", ".venv-train", "__pycache__", ".ruff_cache"})
_TRACEBACK = 3000


class ScriptFailed(Exception):
    """A script raised. `where` is "file:line" of the innermost line that lies in the project, or None."""

    def __init__(self, script: str, error: BaseException, project: Path) -> None:
        super().__init__(describe(error))
        self.script = script
        self.where = innermost(error.__traceback__, project)
        self.traceback = "".join(traceback.format_exception(error))[-_TRACEBACK:]


def run_main(project: Path, name: str, argv: list[str]) -> Any:
    """What `main(argv)` of the project's script `name`.py returns; raises ScriptFailed, also for sys.exit(not 0)."""
    try:
        return load(project, name).main(argv)
    except SystemExit as error:
        if error.code in (None, 0):
            return None
        raise ScriptFailed(f"{name}.py", error, project) from error
    except Exception as error:
        raise ScriptFailed(f"{name}.py", error, project) from error


def load(project: Path, name: str) -> ModuleType:
    """The script as a module, read anew; its neighbours (progress.py) are found as when it runs by itself."""
    path = project / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"the project has no {name}.py")
    if sys.path[0] != str(project):
        sys.path.insert(0, str(project))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def innermost(trace: TracebackType | None, project: Path) -> str | None:
    """ "file:line" of the last frame of `trace` whose code lies in the project."""
    where = None
    for frame, line in traceback.walk_tb(trace):
        file = Path(frame.f_code.co_filename)
        if project in file.parents:
            where = f"{file.relative_to(project)}:{line}"
    return where


def listing(project: Path) -> dict[str, tuple[int, int]]:
    """Every file of the project with size and time of change; runs, environments and caches are left out."""
    return {str(path.relative_to(project)): _mark(path) for path in _walk(project)}


class Steps(list[float]):
    """The losses, and under `before` the values that trainable parameters had before the first of them."""

    before: dict[str, Any]


@contextmanager
def counted_steps() -> Iterator[Steps]:
    """The loss of every forward and backward pass that any trainer makes meanwhile, in order."""
    import transformers

    losses = Steps()
    losses.before = {}
    original = transformers.Trainer.training_step

    def training_step(self: Any, *positional: Any, **named: Any) -> Any:
        if not losses.before:
            trained = ((name, each) for name, each in self.model.named_parameters() if each.requires_grad)
            losses.before = {name: each.detach().clone() for name, each in trained}
        loss = original(self, *positional, **named)
        losses.append(float(loss))
        return loss

    transformers.Trainer.training_step = training_step
    try:
        yield losses
    finally:
        transformers.Trainer.training_step = original


@dataclass(frozen=True)
class Trained:
    """What a trainer had trained when its train() returned: a copy of its model, with its arguments and state."""

    losses: Steps
    model: Any
    args: Any
    state: Any


@contextmanager
def recorded() -> Iterator[list[Trained]]:
    """Every training that runs meanwhile, in order: what comes after one cannot change what was kept of it."""
    import transformers

    made: list[Trained] = []
    original = transformers.Trainer.train

    def train(self: Any, *positional: Any, **named: Any) -> Any:
        with counted_steps() as losses:
            result = original(self, *positional, **named)
        # The copy loses the wrapper that would compute in 16 bits whatever the weights are, and TRL's forward with the
        # loss in it, which would go on asking the model that was copied.
        model = self.accelerator.unwrap_model(copy.deepcopy(self.model), keep_fp32_wrapper=False)
        vars(model.get_base_model()).pop("forward", None)
        made.append(Trained(losses, model, self.args, copy.deepcopy(self.state)))
        return result

    transformers.Trainer.train = train
    try:
        yield made
    finally:
        transformers.Trainer.train = original


def _walk(folder: Path) -> Iterator[Path]:
    for entry in os.scandir(folder):
        if entry.name in _NOT_OURS:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        else:
            yield Path(entry.path)


def _mark(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_size, found.st_mtime_ns
