"""What this machine offers for training: processors, memory, GPUs, free disk, within the limits of its container.

Knows: /proc, cgroup v1 and v2 limits, macOS sysctl, nvidia-smi.
Does not know: which Pythons there are (environment.py), or what a job needs (model/memory.py).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftsmith import files
from peftsmith.finding import Finding, finding

GIB = 1 << 30
_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
_SECONDS = 10
_LITTLE_DISK_GIB = 10
_LITTLE_RAM_GIB = 4
_UNLIMITED = 1 << 60  # cgroup v1 says "no limit" with a number near 2^63


@dataclass(frozen=True)
class Gpu:
    """`capability` is CUDA's (major, minor), None where the driver does not tell."""

    name: str
    memory_gib: float
    capability: tuple[int, int] | None


@dataclass(frozen=True)
class Hardware:
    """`cpus` and both RAM figures are what this process may use: the machine's, or its container's if less."""

    cpus: int
    ram_gib: float
    ram_available_gib: float
    disk_free_gib: float
    gpus: list[Gpu]
    platform: str
    findings: list[Finding]

    def to_json(self) -> dict[str, Any]:
        return {
            "cpus": self.cpus,
            "ram_gib": round(self.ram_gib, 2),
            "ram_available_gib": round(self.ram_available_gib, 2),
            "disk_free_gib": round(self.disk_free_gib, 2),
            "gpus": [vars(gpu) for gpu in self.gpus],
            "platform": self.platform,
        }


def probe(folder: Path) -> Hardware:
    """The machine as seen now; `folder` says on which disk to look. Missing tools are no error."""
    gpus, findings = _gpus()
    total, available = _memory()
    disk = shutil.disk_usage(_existing(folder)).free / GIB
    if not gpus and not findings:
        findings.append(finding("machine.gpu.none"))
    if disk < _LITTLE_DISK_GIB:
        findings.append(
            finding("machine.disk.little", f"Only {disk:.1f} GiB are free on this disk.", free_gib=round(disk, 2))
        )
    if available < _LITTLE_RAM_GIB * GIB:
        findings.append(
            finding(
                "machine.memory.little",
                f"Only {available / GIB:.1f} GiB of memory are available.",
                available_gib=round(available / GIB, 2),
            )
        )
    return Hardware(
        cpus=_cpus(),
        ram_gib=total / GIB,
        ram_available_gib=available / GIB,
        disk_free_gib=disk,
        gpus=gpus,
        platform=f"{platform.system()} {platform.machine()}",
        findings=findings,
    )


def parse_gpus(text: str) -> list[Gpu]:
    """The rows of nvidia-smi's csv output without header and units: name, memory in MiB, compute capability."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 3 or not parts[1].replace(".", "", 1).isdigit():
            continue
        major, _, minor = parts[2].partition(".")
        known = major.isdigit() and minor.isdigit()
        found.append(
            Gpu(files.clean(parts[0], 80), float(parts[1]) / 1024, (int(major), int(minor)) if known else None)
        )
    return found


def cgroup_memory(proc: Path = _PROC, root: Path = _CGROUP) -> tuple[int | None, int]:
    """(limit, used) in bytes of the tightest memory cgroup around this process; limit None when there is none.

    Used leaves out the page cache that the kernel gives back (inactive_file).
    """
    tightest: tuple[int | None, int] = (None, 0)
    for folder, limit_name, used_name, cache in _cgroup_folders(proc, root, "memory"):
        limit = _number(folder / limit_name)
        if limit is None or limit >= _UNLIMITED or (tightest[0] is not None and limit >= tightest[0]):
            continue
        used = _number(folder / used_name) or 0
        tightest = (limit, max(0, used - _stat(folder / "memory.stat").get(cache, 0)))
    return tightest


def cgroup_cpus(proc: Path = _PROC, root: Path = _CGROUP) -> float | None:
    """Processors that the tightest cpu cgroup grants (1.5 is possible), None without a limit."""
    grants = []
    for folder, *_ in _cgroup_folders(proc, root, "cpu"):
        quota, period = _words(folder / "cpu.max") or ("max", "100000")
        if not (folder / "cpu.max").exists():
            quota, period = str(_number(folder / "cpu.cfs_quota_us")), str(_number(folder / "cpu.cfs_period_us"))
        if quota.isdigit() and period.isdigit() and int(period):
            grants.append(int(quota) / int(period))
    return min(grants, default=None)


def _gpus() -> tuple[list[Gpu], list[Finding]]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [], []
    query = [tool, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], [finding("machine.gpu.unknown", f"nvidia-smi could not be asked: {type(error).__name__}.")]
    text = done.stdout.decode("utf-8", "replace")
    found = parse_gpus(text) if done.returncode == 0 else []
    if found:
        return found, []
    said = files.clean((text + done.stderr.decode("utf-8", "replace")).strip(), 300)
    return [], [finding("machine.gpu.unknown", f"nvidia-smi ended with {done.returncode}: {said}")]


def _cpus() -> int:
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:
        allowed = os.cpu_count() or 1
    granted = cgroup_cpus()
    return allowed if granted is None else max(1, min(allowed, int(granted)))


def _memory() -> tuple[int, int]:
    """(total, available) bytes."""
    information = _stat(_PROC / "meminfo")
    if "MemTotal" in information:
        total = information["MemTotal"] * 1024
        available = information.get("MemAvailable", information.get("MemFree", 0)) * 1024
    else:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        available = total // 2  # macOS keeps no such figure that a program could ask for without a tool of its own
    limit, used = cgroup_memory()
    if limit is None or limit >= total:
        return total, available
    return limit, max(0, min(available, limit - used))


def _cgroup_folders(proc: Path, root: Path, controller: str) -> list[tuple[Path, str, str, str]]:
    """This process's cgroup folder and all above it, with the names of limit, usage and cache in that version."""
    found: list[tuple[Path, str, str, str]] = []
    for line in _lines(proc / "self" / "cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif controller in controllers.split(","):
            base = root / controllers if (root / controllers).is_dir() else root / controller
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inner = base / path.lstrip("/")
        folders = [inner, *inner.parents] if inner != base else [base]
        # In a container the path may be that of the host, which is not visible inside: then only the base counts.
        found += [(folder, *names) for folder in folders if base in (folder, *folder.parents) and folder.is_dir()]
    return found


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    lines = _lines(path)
    return lines[0].split() if lines and len(lines[0].split()) == 2 else []


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None


def _stat(path: Path) -> Mapping[str, int]:
    """`name number ...` or `name: number ...` lines."""
    found = {}
    for line in _lines(path):
        parts = line.replace(":", " ").split()
        if len(parts) >= 2 and parts[1].isdigit():
            found[parts[0]] = int(parts[1])
    return found
