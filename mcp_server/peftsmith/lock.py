"""plan.lock.json: what was resolved from a plan, and the digest that start_run demands.

Knows: the lock's fields, the digest over plan, lock and scripts, which files have changed since.
Does not know: how estimates or proofs are made; it only keeps what it is given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.plan import PLAN_FILE

LOCK_FILE = "plan.lock.json"
LOCK_VERSION = 1


class Why(BaseModel):
    """The reason for one recommended value: which rule, whose evidence and how strong, what would change it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: Any
    rule: str
    reason: str
    source: str
    strength: str = ""
    conflicts: str = ""
    would_change: str


class DataFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    sha256: str
    rows: int


class Lock(BaseModel):
    """`files` maps each generated file to its sha256 as generated, `checked` to that at the last successful check.

    `device` is what was planned for: {"kind", "capability" (a CUDA GPU's, or null), "name" (a GPU's that was named, or
    null)}; null in locks of before. `seconds` is how long the training would take on it, {"low", "likely", "high"}.
    `proofs` maps a proof's name (vet, twin) to what it saw; `digest` is None until a check passed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    lock_version: int = LOCK_VERSION
    peftsmith: str
    plan_sha256: str
    base: dict[str, Any]  # model, folder (local path or null), commit, config_sha256, licence, parameters
    data: dict[str, DataFile]  # by split
    versions: dict[str, str]  # library -> version in the training environment
    interpreter: str | None
    device: dict[str, Any] | None = None
    estimate: dict[str, Any]
    seconds: dict[str, int] | None = None
    why: dict[str, Why]
    files: dict[str, str]
    checked: dict[str, str] = {}
    proofs: dict[str, Any] = {}
    digest: str | None = None


def load(project: Path) -> Lock:
    path = project / LOCK_FILE
    if not path.exists():
        raise PeftsmithError(
            "The project has no plan.lock.json", value=str(project), next_step="Run plan_finetune first."
        )
    try:
        return Lock.model_validate(files.read_json(path))
    except ValueError as error:
        raise PeftsmithError(
            "plan.lock.json is not a valid lock",
            value=str(error),
            next_step="Plan in a new folder, and take what you changed in plan.yaml along.",
        ) from error


def save(project: Path, lock: Lock) -> None:
    files.write_json(project / LOCK_FILE, lock.model_dump(mode="json"))


def compute_digest(project: Path, lock: Lock) -> str:
    """Hash over plan.yaml, the lock (without its own digest) and every generated file as it now lies on disk."""
    present = {name: _hash_or_missing(project / name) for name in sorted([PLAN_FILE, *lock.files])}
    return files.sha256_json({"lock": lock.model_dump(mode="json", exclude={"digest"}), "files": present})


def changed_since(project: Path, lock: Lock, digest: str) -> list[str]:
    """Names of what differs from the state that `digest` was given for; empty when nothing does."""
    changed = []
    if lock.digest != digest:
        changed.append("digest")
    elif compute_digest(project, lock) != digest:
        changed += [name for name in lock.files if _hash_or_missing(project / name) != lock.checked.get(name)]
        if _hash_or_missing(project / PLAN_FILE) != lock.plan_sha256:
            changed.append(PLAN_FILE)
        changed = changed or [LOCK_FILE]
    for split, data in lock.data.items():
        if _hash_or_missing(project / data.path) != data.sha256:
            changed.append(f"data.{split} ({data.path})")
    return changed


def _hash_or_missing(path: Path) -> str:
    return files.sha256_file(path) if path.is_file() else "missing"
