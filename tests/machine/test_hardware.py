"""The machine, its container's limits, and nvidia-smi in its good and bad moods."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from peftsmith.machine import hardware


def nvidia_smi(folder: Path, text: str, code: int = 0) -> None:
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n", encoding="utf-8")
    script.chmod(0o755)


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A PATH with cat and sh, and nothing else but what the test puts there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("cat", "sh"):
        (folder / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_this_machine(tmp_path, path):
    found = hardware.probe(tmp_path / "not" / "there" / "yet")
    assert 1 <= found.cpus <= (os.cpu_count() or 1)
    assert 0 < found.ram_available_gib <= found.ram_gib
    assert found.disk_free_gib > 0 and found.gpus == []
    assert "machine.gpu.none" in [each.id for each in found.findings]
    assert json.loads(json.dumps(found.to_json()))["cpus"] == found.cpus


def test_gpus_as_nvidia_smi_lists_them(tmp_path, path):
    nvidia_smi(path, "NVIDIA L40S, 46068, 8.9\nTesla T4, 15360, 7.5\nOld, 2048, [N/A]")
    found = hardware.probe(tmp_path)
    assert [(g.name, g.capability) for g in found.gpus] == [
        ("NVIDIA L40S", (8, 9)),
        ("Tesla T4", (7, 5)),
        ("Old", None),
    ]
    assert found.gpus[0].memory_gib == pytest.approx(44.99, abs=0.01)
    assert not [each for each in found.findings if each.id.startswith("machine.gpu")]


@pytest.mark.parametrize(
    ("text", "code"), [("NVIDIA-SMI has failed because it couldn't communicate", 9), ("nonsense", 0)]
)
def test_a_driver_that_does_not_answer_is_unknown(tmp_path, path, text, code):
    nvidia_smi(path, text, code)
    found = hardware.probe(tmp_path)
    assert found.gpus == []
    assert [(f.id, f.severity) for f in found.findings if "gpu" in f.id] == [("machine.gpu.unknown", "unknown")]


def tree(folder: Path, cgroup: str, **files: str) -> tuple[Path, Path]:
    proc, root = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    root.mkdir()
    (proc / "self" / "cgroup").write_text(cgroup, encoding="utf-8")
    for name, text in files.items():
        target = root / name.replace("__", "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return proc, root


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


def test_cgroup_2_takes_the_tightest_of_all_levels(tmp_path):
    proc, root = tree(tmp_path, "0::/job/inner\n")
    write(root, "job/memory.max", "4000\n")
    write(root, "job/memory.current", "1500\n")
    write(root, "job/memory.stat", "anon 900\ninactive_file 500\n")
    write(root, "job/inner/memory.max", "max\n")
    write(root, "job/cpu.max", "150000 100000\n")
    write(root, "job/inner/cpu.max", "max 100000\n")
    assert hardware.cgroup_memory(proc, root) == (4000, 1000)
    assert hardware.cgroup_cpus(proc, root) == 1.5


def test_cgroup_1(tmp_path):
    proc, root = tree(tmp_path, "5:cpu,cpuacct:/box\n4:memory:/box\n0::/\n")
    write(root, "memory/box/memory.limit_in_bytes", "8000\n")
    write(root, "memory/box/memory.usage_in_bytes", "3000\n")
    write(root, "memory/box/memory.stat", "total_inactive_file 1000\n")
    write(root, "memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(root, "cpu,cpuacct/box/cpu.cfs_quota_us", "200000\n")
    write(root, "cpu,cpuacct/box/cpu.cfs_period_us", "100000\n")
    assert hardware.cgroup_memory(proc, root) == (8000, 2000)
    assert hardware.cgroup_cpus(proc, root) == 2.0


@pytest.mark.parametrize("cgroup", ["", "0::/\n", "garbage\n", "0::/gone/elsewhere\n", "4:memory:/x\n"])
def test_no_limit(tmp_path, cgroup):
    proc, root = tree(tmp_path, cgroup)
    assert hardware.cgroup_memory(proc, root) == (None, 0)
    assert hardware.cgroup_cpus(proc, root) is None


def test_a_container_sees_its_own_root_only(tmp_path):
    """The path in /proc/self/cgroup may be the host's; the limit then stands at the root that is mounted."""
    proc, root = tree(tmp_path, "0::/system.slice/docker-1.scope\n")
    write(root, "memory.max", "7000\n")
    write(root, "memory.current", "10\n")
    assert hardware.cgroup_memory(proc, root) == (7000, 10)
