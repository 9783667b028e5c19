"""Making a training environment: refusals, commands, the run that carries them out, the lock file."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from peftsmith import assets
from peftsmith.errors import PeftsmithError
from peftsmith.machine import environment, install
from peftsmith.run import watch
from tests.machine.fake_python import fake_environment

STEPS = Path(install.__file__).with_name("steps.py")


def test_nothing_happens_without_confirm(tmp_path):
    with pytest.raises(PeftsmithError, match="downloads") as caught:
        install.start(tmp_path, tmp_path / "env", confirm=False)
    assert "confirm=true" in caught.value.next_step
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(PeftsmithError, match="in use"):
        install.start(tmp_path, tmp_path / "env", confirm=True)
    with pytest.raises(PeftsmithError, match="in use"):
        install.start(tmp_path, tmp_path / "env" / "mine.txt", confirm=True)
    fake_environment(tmp_path / "good")
    with pytest.raises(PeftsmithError, match="working training environment"):
        install.start(tmp_path, tmp_path / "good", confirm=True)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["env", "good"]


def test_a_full_disk_is_noticed_before(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 1 << 40, 1 << 30))
    with pytest.raises(PeftsmithError, match=r"1\.0 GiB are free"):
        install.start(tmp_path, tmp_path / "env", confirm=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uv", [None, "/opt/uv"])
def test_commands(tmp_path, monkeypatch, uv):
    monkeypatch.setattr(install, "find_uv", lambda: uv)
    make, torch, rest, test = install.commands(tmp_path / "env")
    python = str(environment.python_in(tmp_path / "env"))
    assert make[-1] == str(tmp_path / "env")
    assert torch[-1] == install.TORCH and "--require-hashes" not in torch
    assert {"--require-hashes", "--no-deps"} <= set(rest) and Path(rest[-1]) == assets.folder(
        "requirements"
    ) / "train.txt"
    assert test[0] == python and "import torch" in test[-1]
    assert all(each[0] == (uv or python) for each in (torch, rest))


def test_without_uv_and_venv_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "find_uv", lambda: None)
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PeftsmithError) as caught:
        install.start(tmp_path, tmp_path / "env", confirm=True)
    assert f"python3.{sys.version_info.minor}-venv" in caught.value.next_step


def test_uv_gets_pips_settings_unless_it_has_its_own():
    variables = {"PIP_INDEX_URL": "https://a", "PIP_FIND_LINKS": "/w", "UV_FIND_LINKS": "/mine", "PIP_CERT": ""}
    assert install.uv_settings(variables) == {"UV_DEFAULT_INDEX": "https://a"}


def run_steps(folder: Path, environment_path: Path, steps: list[list[str]]) -> subprocess.Popen[str]:
    argv = [sys.executable, "-I", str(STEPS), str(folder), str(environment_path), json.dumps(steps)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_steps_that_succeed(tmp_path):
    (tmp_path / "env").mkdir()
    steps = [[sys.executable, "-c", "print('one')"], [sys.executable, "-c", "print('two')"]]
    process = run_steps(tmp_path, tmp_path / "env", steps)
    text, _ = process.communicate(timeout=60)
    done = json.loads((tmp_path / "done.json").read_text(encoding="utf-8"))
    assert process.returncode == 0 and "one" in text and "two" in text
    assert done["ok"] and done["artefacts"] == {"environment": str(tmp_path / "env")} and done["peak_rss_bytes"] > 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["step"], row["max_steps"]) for row in rows] == [(1, 2), (2, 2)]
    assert (tmp_path / "env").is_dir()


@pytest.mark.parametrize("bad", [[sys.executable, "-c", "raise SystemExit(3)"], ["/nowhere/at/all"]])
def test_a_step_that_fails_leaves_no_half_environment(tmp_path, bad):
    (tmp_path / "env").mkdir()
    process = run_steps(
        tmp_path, tmp_path / "env", [[sys.executable, "-c", "1"], bad, [sys.executable, "-c", "print('no')"]]
    )
    text, _ = process.communicate(timeout=60)
    done = json.loads((tmp_path / "done.json").read_text(encoding="utf-8"))
    assert process.returncode != 0 and not done["ok"] and "no\n" not in text
    assert not (tmp_path / "env").exists()


def test_stopping_leaves_no_half_environment(tmp_path):
    (tmp_path / "env").mkdir()
    process = run_steps(
        tmp_path, tmp_path / "env", [[sys.executable, "-c", "print(1, flush=True); import time; time.sleep(60)"]]
    )
    assert process.stdout is not None
    while process.stdout.readline() != "1\n":
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM and not (tmp_path / "env").exists()


def test_it_is_a_run_that_can_be_followed(tmp_path, monkeypatch):
    """The real supervisor and the real steps, with commands that need no network."""
    made = tmp_path / "env"
    steps = [[sys.executable, "-m", "venv", "--without-pip", str(made)], [sys.executable, "-c", "print('ready')"]]
    monkeypatch.setattr(install, "commands", lambda path: steps)
    (tmp_path / "project").mkdir()
    run = install.start(tmp_path / "project", made, confirm=True)
    assert run.kind == "environment"
    deadline = time.monotonic() + 90
    while (seen := watch.follow(tmp_path / "project", run.id, wait_seconds=5)).state in ("starting", "running"):
        assert time.monotonic() < deadline, seen.log_tail
    assert seen.state == "done", seen.log_tail
    assert "ready" in seen.log_tail and os.access(environment.python_in(made), os.X_OK)


def lines() -> list[str]:
    text = (assets.folder("requirements") / "train.txt").read_text(encoding="utf-8")
    return text.splitlines()


def test_the_lock_pins_by_hash_and_names_no_registry():
    named = [line for line in lines() if line[:1].isalnum()]
    assert lines()[0] == "# made by: make pins"
    assert all(re.match(r"[a-z0-9.-]+==[^ ]+( ; .+)? \\$", line) for line in named)
    assert len([line for line in lines() if line.startswith("    --hash=sha256:")]) >= len(named)
    assert not [line for line in lines() if "://" in line or "--index" in line or "--find-links" in line]


def test_the_lock_has_everything_but_torch():
    names = {line.split("==")[0] for line in lines() if line[:1].isalnum()}
    assert {"transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes", "gguf", "scikit-learn"} <= names
    assert {"tensorboard", "safetensors", "tokenizers", "numpy", "jinja2"} <= names
    assert not {name for name in names if re.match(r"(torch|triton|pytest)$|nvidia-|cuda-", name)}


@pytest.mark.training
def test_the_lock_is_what_the_tests_run_with(training_python):
    found = environment.ask(training_python, "test")
    assert found is not None
    pinned = dict(line.split(" ")[0].split("==") for line in lines() if line[:1].isalnum())
    apart = ("torch", "adapters")  # torch's build differs by machine; adapters lives in another environment
    assert {name: pinned[name] for name in environment.LIBRARIES if name not in apart} == {
        name: version for name, version in found.versions.items() if name not in apart
    }
    assert found.versions["torch"] is not None and f"torch=={found.versions['torch'].split('+')[0]}" == install.TORCH
