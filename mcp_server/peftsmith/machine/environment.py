"""The training environments of this machine: other Pythons, with which libraries, and what is wrong with them.

Knows: where such environments lie, how to read their versions without importing them, which versions were tested.
Does not know: how to make one (install.py), or how to run work in one (worker/client.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, Severity, finding

LIBRARIES = (
    "torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes", "tokenizers", "safetensors",
    "adapters",
)  # fmt: skip
NEEDED = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")
OLDEST_PYTHON = (3, 10)
# [from, below): the ranges of pyproject.toml's extra "train"; a test compares the two.
TESTED: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "torch": ((2, 13), (2, 14)),
    "transformers": ((5, 23), (6,)),
    "peft": ((0, 21), (0, 22)),
    "trl": ((1, 16), (2,)),
    "accelerate": ((1, 15), (2,)),
    "datasets": ((5, 2), (6,)),
}
_NAMED = "PEFTSMITH_TRAIN_PYTHON"  # the variable by which a user names one
_NAMED_ADAPTERS = "PEFTSMITH_ADAPTERS_PYTHON"  # the same for one with the library `adapters`
_SECONDS = 20
Answer = tuple[str, dict[str, str | None]]  # version of Python, versions of the libraries
_answers: dict[tuple[str, tuple[tuple[str, int], ...]], Answer] = {}
# Asks the distribution metadata only: nothing of the environment is imported, and -I keeps the user's paths out.
_ASK = (
    "import json, sys, importlib.metadata as m\n"
    "def v(n):\n"
    "    try: return m.version(n)\n"
    "    except Exception: return None\n"
    "print(json.dumps({'python': '%d.%d.%d' % sys.version_info[:3], 'prefix': sys.prefix,"
    " 'versions': {n: v(n) for n in sys.argv[1:]}}))\n"
)


@dataclass(frozen=True)
class Environment:
    """One Python. `problems` are sentences; with `usable` False training cannot run here, else they are warnings."""

    interpreter: str
    python: str
    versions: dict[str, str | None]
    problems: list[str]
    usable: bool
    origin: str
    key: str = field(default="")

    def __post_init__(self) -> None:
        if not self.key:
            identity = {"interpreter": self.interpreter, "python": self.python, "versions": self.versions}
            object.__setattr__(self, "key", files.sha256_json(identity)[:16])

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def find(project: Path) -> list[Environment]:
    """Every Python that has torch or another of the training libraries, in the order in which they would be taken.

    Order: PEFTSMITH_TRAIN_PYTHON, the project's .venv-train and .venv, the active venv and conda environment,
    .venv-train here or beside the venv that peftsmith runs in, those that make_environment made, Jupyter kernels,
    python3 on the PATH.
    """
    wanted = _wanted(project)
    with ThreadPoolExecutor(4) as pool:
        asked = list(pool.map(lambda path: ask(path, wanted[path]), wanted))
    return [
        each
        for each in asked
        if each is not None
        and (each.origin == _NAMED or any(each.versions[name] for name in ("torch", "transformers")))
    ]


def judge(found: list[Environment]) -> list[Finding]:
    """What is wrong with the environments that were found; machine.environment.missing when none can be used."""
    findings = []
    usable = [each for each in found if each.usable]
    if not usable:
        findings.append(
            finding(
                "machine.environment.missing",
                "No training environment was found."
                if not found
                else f"Of {len(found)} Pythons with training libraries none can be used.",
                looked_at=[each.interpreter for each in found],
            )
        )
    for each in found:
        if not each.usable:
            severity: Severity = "info" if usable else "warning"
            findings.append(
                finding(
                    "machine.environment.unusable",
                    f"{each.interpreter}: {' '.join(each.problems)}",
                    severity=severity,
                    interpreter=each.interpreter,
                )
            )
    if usable and best(usable).problems:
        chosen = best(usable)
        findings.append(
            finding(
                "machine.environment.untested",
                f"{chosen.interpreter}: {' '.join(chosen.problems)}",
                interpreter=chosen.interpreter,
            )
        )
    return findings


def require(project: Path, *, library: str = "peft") -> Environment:
    """The environment to use: the first without problems, else the first usable. PeftsmithError when there is none.

    As `best(find(project))`, but nobody is asked after the first that `best` would take whatever comes behind it. With
    `library` "adapters" it is one with that library, which holds transformers back and so lives apart.
    """
    if library == "adapters":
        return _with_adapters(project)
    usable = []
    for path, origin in _wanted(project).items():
        asked = ask(path, origin)
        if asked is not None and asked.usable:
            usable.append(asked)
            if origin == _NAMED or not asked.problems:
                break
    if not usable:
        raise PeftsmithError(
            "There is no training environment (a Python with torch, transformers, peft and trl)",
            value=str(project),
            next_step="Make one with make_environment, or set PEFTSMITH_TRAIN_PYTHON to the python of yours.",
        )
    return best(usable)


def _with_adapters(project: Path) -> Environment:
    """PEFTSMITH_ADAPTERS_PYTHON, the project's .venv, or .venv-adapters in it or here: the first with what it needs."""
    named = os.environ.get(_NAMED_ADAPTERS)
    places = [Path(named).expanduser()] if named else []
    places += [python_in(folder) for folder in (project / ".venv", project / ".venv-adapters")]
    places.append(python_in(Path.cwd() / ".venv-adapters"))
    for python in places:
        asked = ask(str(python.absolute()), "adapters") if os.access(python, os.X_OK) else None
        if asked is not None and asked.usable and asked.versions.get("adapters"):
            return asked
    raise PeftsmithError(
        "There is no training environment with the library adapters, which bottleneck adapters need",
        value=[str(each) for each in places],
        next_step="Make .venv in the project from its requirements.txt, as its README says, or set "
        f"{_NAMED_ADAPTERS} to the python of yours.",
    )


def best(usable: list[Environment]) -> Environment:
    """The one that the user named, else the first without problems, else the first."""
    named = [each for each in usable if each.origin == _NAMED]
    return next(iter(named + [each for each in usable if not each.problems]), usable[0])


def ask(interpreter: str, origin: str) -> Environment | None:
    """The environment behind an interpreter, None when it is no working Python. Imports none of its libraries.

    A venv is asked again only when something was installed into it since, which its site-packages folder shows.
    """
    installed = _installed(interpreter)
    answer = _answers.get((interpreter, installed))
    if answer is None:
        answer = _asked(interpreter)
        if answer is not None and installed:
            _answers[interpreter, installed] = answer
    if answer is None:
        return None
    python, versions = answer
    problems, usable = problems_of(python, versions)
    return Environment(interpreter, python, dict(versions), problems, usable, origin)


def _asked(interpreter: str) -> Answer | None:
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    try:
        done = subprocess.run(
            [interpreter, "-I", "-c", _ASK, *LIBRARIES],
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            env=quiet,
        )
        answer = json.loads(done.stdout.decode("utf-8"))
        return str(answer["python"]), {name: answer["versions"].get(name) for name in LIBRARIES}
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError):
        return None


def _installed(interpreter: str) -> tuple[tuple[str, int], ...]:
    """When the folders that a venv's packages lie in were changed last; empty for any other Python."""
    folder = Path(interpreter).parent.parent
    marks = [
        Path(interpreter),
        folder / "pyvenv.cfg",
        *sorted([*folder.glob("lib/python3.*/site-packages"), *folder.glob("Lib/site-packages")]),
    ]
    try:
        return tuple((str(each), each.stat().st_mtime_ns) for each in marks) if len(marks) > 2 else ()
    except OSError:
        return ()


def problems_of(python: str, versions: dict[str, str | None]) -> tuple[list[str], bool]:
    """Sentences about what is missing, too old or untested, and whether training can run all the same."""
    problems = []
    if _numbers(python) < OLDEST_PYTHON:
        problems.append(f"Python {python} is older than {'.'.join(map(str, OLDEST_PYTHON))}.")
    missing = [name for name in NEEDED if versions.get(name) is None]
    if missing:
        problems.append(f"Missing: {', '.join(missing)}.")
    usable = not problems
    for name, (low, high) in TESTED.items():
        version = versions.get(name)
        if version is not None and not low <= _numbers(version) < high:
            span = f">={'.'.join(map(str, low))},<{'.'.join(map(str, high))}"
            problems.append(f"{name} {version} was not tested (tested: {span}).")
    if usable and versions.get("bitsandbytes") is None:
        problems.append("bitsandbytes is missing: no QLoRA.")
    return problems, usable


def python_in(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _wanted(project: Path) -> dict[str, str]:
    """Interpreters that can be run -> where each was found, in the order in which they would be taken."""
    wanted: dict[str, str] = {}
    for origin, python in _candidates(project):
        # Not resolved: a venv's python is a link to the base interpreter, and it is the link that makes it a venv.
        path = str(python.absolute())
        if os.access(path, os.X_OK) and Path(path).is_file():
            wanted.setdefault(path, origin)
    return wanted


def _candidates(project: Path) -> Iterator[tuple[str, Path]]:
    named = os.environ.get(_NAMED)
    if named:
        yield _NAMED, Path(named).expanduser()
    yield "project/.venv-train", python_in(project / ".venv-train")
    yield "project/.venv", python_in(project / ".venv")
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if os.environ.get(variable):
            yield variable, python_in(Path(os.environ[variable]))
    yield "./.venv-train", python_in(Path.cwd() / ".venv-train")
    yield "beside peftsmith/.venv-train", python_in(Path(sys.prefix).parent / ".venv-train")
    made = files.cache_folder("environments")
    yield from (("peftsmith", python_in(each)) for each in sorted(made.iterdir()) if each.is_dir())
    yield from (("jupyter kernel", python) for python in _kernels())
    python = shutil.which("python3") or shutil.which("python")
    if python:
        yield "PATH", Path(python)


def _kernels() -> Iterator[Path]:
    """Interpreters of Jupyter's kernel specifications (`argv[0]` of kernel.json)."""
    home = Path.home()
    share = [
        Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share") / "jupyter",
        home / "Library" / "Jupyter",
        Path(sys.prefix) / "share" / "jupyter",
        Path("/usr/local/share/jupyter"),
    ]
    share[:0] = [Path(each) for each in os.environ.get("JUPYTER_PATH", "").split(os.pathsep) if each]
    for folder in share:
        for specification in sorted(folder.glob("kernels/*/kernel.json")):
            try:
                argv = json.loads(specification.read_text(encoding="utf-8"))["argv"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if isinstance(argv, list) and argv and isinstance(argv[0], str) and Path(argv[0]).is_absolute():
                yield Path(argv[0])


def _numbers(version: str) -> tuple[int, ...]:
    """Leading numbers of a version: "2.13.0+cpu" is (2, 13, 0)."""
    numbers = []
    for part in version.split("+")[0].split("."):
        digits = "".join(c for c in part if c.isdigit())
        if not part[:1].isdigit():
            break
        numbers.append(int(digits))
    return tuple(numbers)
