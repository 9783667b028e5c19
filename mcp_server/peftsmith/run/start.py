"""Starting a run: only from a project that was checked and has not changed since.

Knows: which script belongs to which kind of run, its command line, what must hold before anything is spent.
Does not know: what the scripts do, or how a run is supervised (supervise.py) and followed (watch.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from peftsmith import lock, plan
from peftsmith.errors import PeftsmithError
from peftsmith.project import mask
from peftsmith.run import host, store, supervise, watch

SCRIPTS = {"smoke": "train.py", "train": "train.py", "evaluate": "evaluate.py", "merge": "merge.py"}
NEEDS_ADAPTER = ("evaluate", "merge")
SMOKE_STEPS = 5
# Progress that appears at once, no telemetry, and no warning from tokenizers in forked data loader workers.
ADDED_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DO_NOT_TRACK": "1",
}
# For runs without a GPU, only where the user has not chosen. OpenMP threads that spin while they wait make a step many
# times slower as soon as anything else runs; glibc hands the loss's large blocks back to the kernel after each use.
ON_CPU = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
}
_GPU = Path("/dev/nvidiactl")
_PACKAGES = Path(__file__).resolve().parent.parent.parent


def start(
    project: Path,
    *,
    kind: str,
    digest: str,
    adapter_run: str | None,
    max_steps: int | None,
    adapter: str | None = None,
) -> store.Run:
    """Start a run of a checked project in the background and return it.

    Raises PeftsmithError when the digest is missing, wrong or outdated (names what changed), when another run of the
    project is under way, when the training environment or the base model's folder is gone, and when `adapter_run` is
    missing, has no adapter, or does not belong to this kind of run.
    """
    if kind not in SCRIPTS:
        raise PeftsmithError(
            "This kind of run cannot be started", value=kind, next_step=f"Use one of {', '.join(SCRIPTS)}."
        )
    if max_steps is not None and kind == "merge":
        raise PeftsmithError("A merge has no steps", value=max_steps, next_step="Leave max_steps out.")
    script = project / SCRIPTS[kind]
    locked = lock.load(project)
    _require_checked(project, locked, digest, proven=kind != "smoke")
    interpreter = _interpreter(locked)
    base = _base(project, locked)
    used = _adapter(project, kind, adapter_run, adapter)
    steps = min(max_steps or SMOKE_STEPS, SMOKE_STEPS) if kind == "smoke" else max_steps

    def argv(folder: Path) -> list[str]:
        return [
            *(interpreter, "-u", script.name, "--base", base),
            *([f"--{'model' if used.name == 'model' else 'adapter'}", str(used)] if used else []),
            *("--output", str(folder)),
            *(["--max-steps", str(steps)] if steps else []),
        ]

    with _one_at_a_time(project):
        _require_idle(project)
        run = store.create(
            project,
            kind,
            argv,
            project,
            digest=digest,
            adapter_run=adapter_run,
            scripts=sorted(project.glob("*.py")),
        )
        launch(run)
    return run


def launch(run: store.Run) -> None:
    """Start a run that was made: its supervisor listens when this returns, and needs this process no longer."""
    try:
        host.start(host.probe(), run.folder, child_environment(run.environment))
    except PeftsmithError:
        if not (run.folder / supervise.STATUS).exists():
            shutil.rmtree(run.folder, ignore_errors=True)
        raise


def child_environment(added: Mapping[str, str]) -> dict[str, str]:
    """The user's environment as the script gets it: ours added, and the way to peftsmith's own packages taken out."""
    environment = {**({} if _GPU.exists() else ON_CPU), **os.environ, **ADDED_ENVIRONMENT, **added}
    path = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    kept = [entry for entry in path if Path(entry).resolve() != _PACKAGES]
    environment.pop("PYTHONPATH", None)
    return {**environment, "PYTHONPATH": os.pathsep.join(kept)} if kept else environment


def _require_checked(project: Path, locked: lock.Lock, digest: str, *, proven: bool) -> None:
    if not digest:
        raise PeftsmithError(
            "Starting a run needs the digest of a checked project",
            next_step="Run check_project and pass its digest on.",
        )
    if locked.digest is None:
        raise PeftsmithError(
            "The project has not passed check_project since its plan or scripts last changed",
            value=str(project),
            next_step="Run check_project, mend what it finds, and pass its digest on.",
        )
    if proven and not (locked.proofs.get("twin") or {}).get("ok"):
        raise PeftsmithError(
            "The project was checked without its twin, so nothing shows that its scripts run",
            value=str(project),
            next_step="Run check_project with the twin, and pass its digest on; only a smoke run needs none.",
        )
    changed = lock.changed_since(project, locked, digest)
    changed += [name for name in mask.changed_since(project, locked) if name not in changed]
    if changed:
        what = (
            "The digest is not that of the last check"
            if "digest" in changed
            else "The project has changed since its check"
        )
        named = [name for name in changed if name != "digest"]
        raise PeftsmithError(
            what + (f": {', '.join(named)}" if named else ""),
            value=digest,
            next_step="Run check_project again and pass the new digest on.",
        )


def _interpreter(locked: lock.Lock) -> str:
    interpreter = locked.interpreter
    if interpreter is None or not os.access(interpreter, os.X_OK) or Path(interpreter).is_dir():
        raise PeftsmithError(
            "The training environment that the project was checked with is gone",
            value=interpreter,
            next_step="Make one with make_environment (or set PEFTSMITH_TRAIN_PYTHON), then run check_project again.",
        )
    return interpreter


def _base(project: Path, locked: lock.Lock) -> str:
    folder = locked.base.get("folder")
    if folder is None:
        return plan.load(project).base.model
    if not (Path(folder) / "config.json").is_file():
        raise PeftsmithError(
            "The base model's folder is gone or holds no config.json",
            value=folder,
            next_step="Put it back, or plan again with another base model.",
        )
    return str(folder)


def _adapter(project: Path, kind: str, adapter_run: str | None, adapter: str | None) -> Path | None:
    """The folder of the adapter (or whole model) to use; `adapter` is its name where the plan has several."""
    names = list(plan.load(project).adapters)
    if kind in NEEDS_ADAPTER and (adapter not in names if names or adapter else False):
        wanted = f"Name one of {', '.join(names)}." if names else "Leave adapter out: this plan has one adapter."
        raise PeftsmithError("That is no adapter of this plan", value=adapter, next_step=wanted)
    if kind not in NEEDS_ADAPTER:
        if adapter_run is not None:
            raise PeftsmithError(
                f"A {kind} run makes an adapter and takes none", value=adapter_run, next_step="Leave adapter_run out."
            )
        return None
    if adapter_run is None:
        raise PeftsmithError(
            f"A run of kind {kind} needs the run whose adapter to use",
            next_step="Pass the id of a train run as adapter_run; list_runs shows them.",
        )
    source = store.open_run(project, adapter_run)
    whole = source.folder / "model"
    if source.kind in ("smoke", "train") and (whole / "config.json").is_file():
        return whole  # all weights were trained
    folder = source.folder / "adapters" / adapter if adapter else source.folder / "adapter"
    missing = [n for n in ("adapter_config.json", "adapter_model.safetensors") if not (folder / n).is_file()]
    if source.kind not in ("smoke", "train") or missing:
        raise PeftsmithError(
            "That run has no adapter"
            + (f" (no {' and no '.join(missing)})" if missing else f": it is a {source.kind} run"),
            value=adapter_run,
            next_step="Pass a train run that is done; get_run shows how it stands.",
        )
    return folder


def _require_idle(project: Path) -> None:
    for run in store.all_runs(project):
        if run.kind in SCRIPTS and watch.state_of(run) not in watch.ENDED:
            raise PeftsmithError(
                f"Run {run.id} ({run.kind}) of this project is still under way",
                value=run.id,
                next_step="Follow it with get_run until it ends, or end it with stop_run.",
            )


@contextmanager
def _one_at_a_time(project: Path) -> Iterator[None]:
    """Two starts at once do not both find the project idle."""
    try:
        import fcntl
    except ImportError as error:
        raise PeftsmithError("Runs need a POSIX system", value=os.name, next_step="Use WSL2 on Windows.") from error
    try:
        (project / store.RUNS).mkdir(exist_ok=True)
        stream = (project / store.RUNS / ".lock").open("a", encoding="utf-8")
    except OSError as error:
        raise PeftsmithError(
            f"The folder for runs cannot be written: {error.strerror}",
            value=str(project / store.RUNS),
            next_step="Check its permissions and the free space.",
        ) from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
