"""The warm worker's mechanics, with a training environment whose libraries are empty shells: no torch, fast."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest

from peftsmith.errors import PeftsmithError
from peftsmith.worker import client

SHELLS = {
    "torch.py": "",
    "datasets.py": "def load(path, *, split=None): pass",
    "accelerate.py": "",
    "peft.py": "class LoraConfig: pass\nclass PeftModel: pass\ndef get_peft_model(model, config): pass",
    "trl/__init__.py": """
        class SFTConfig:
            def __init__(self, output_dir, max_length=1024): pass
        class SFTTrainer:
            def __init__(self, model, **kwargs): kwargs.pop("callbacks", None)
        """,
    "trl/broken.py": "raise RuntimeError('cannot open \\x1b[31mlibcudart')",
    "trl/killed.py": "import os, signal\nprint('last words', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)",
    "trl/slow.py": """
        import pathlib, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        pathlib.Path(__file__).with_suffix(".pid").write_text(str(child.pid))
        time.sleep(60)
        """,
    "trl/surroundings.py": "import os, sys\nraise RuntimeError(repr((sorted(os.environ), sys.path)))",
    "transformers/__init__.py": """
        class AutoConfig: pass
        class AutoModelForCausalLM: pass
        class AutoTokenizer: pass
        class GenerationConfig: pass
        class Trainer: pass
        """,
    "transformers/models/__init__.py": "",
    "transformers/models/llama/__init__.py": "",
    "transformers/models/llama/modeling_llama.py": "class LlamaForCausalLM: pass",
}
CALLS = {"calls": {"trl.SFTConfig": ["max_length", "max_seq_length"]}}


@pytest.fixture(scope="session")
def shell(tmp_path_factory):
    """A virtual environment with the shells; returns its folder."""
    folder = tmp_path_factory.mktemp("shell") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    for name, text in SHELLS.items():
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text(textwrap.dedent(text), encoding="utf-8")
    return folder


@pytest.fixture
def environment(shell, tmp_path, monkeypatch):
    """An environment of its own for each test, with its own cache and so its own worker."""
    monkeypatch.setenv("PEFTSMITH_HOME", str(tmp_path / "home"))
    made = SimpleNamespace(interpreter=str(shell / "bin" / "python"), key="one", packages=shell / "lib")
    yield made
    client.stop(made)
    wait_until(lambda: not client._locked(client.socket_path(made)))


def wait_until(true, seconds=10.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def worker_pid(environment):
    return int(client.socket_path(environment).with_suffix(".lock").read_text(encoding="ascii"))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"


def test_a_job_answers_and_the_next_one_finds_the_same_worker(environment):
    first = client.call(environment, "signatures", CALLS, timeout=20)
    pid = worker_pid(environment)
    second = client.call(environment, "signatures", CALLS, timeout=20)
    assert first == second
    assert first["unknown"] == [{"callable": "trl.SFTConfig", "keyword": "max_seq_length", "nearest": "max_length"}]
    assert worker_pid(environment) == pid
    assert alive(pid)


def test_an_exception_comes_back_cleaned(environment):
    with pytest.raises(client.JobFailed) as caught:
        client.call(environment, "signatures", {"calls": {"trl.broken.x": []}}, timeout=20)
    assert "RuntimeError: cannot open [31mlibcudart" in str(caught.value)
    assert "broken.py" in caught.value.traceback
    assert "\x1b" not in caught.value.traceback


def test_an_unknown_job_is_refused(environment):
    with pytest.raises(client.JobFailed, match="no such job"):
        client.call(environment, "../main", {}, timeout=20)


def test_a_killed_child_is_reported_with_its_last_words_and_the_worker_goes_on(environment):
    with pytest.raises(client.JobFailed, match="SIGKILL") as caught:
        client.call(environment, "signatures", {"calls": {"trl.killed.x": []}}, timeout=20)
    assert caught.value.log == "last words"
    assert client.call(environment, "signatures", CALLS, timeout=20)["checked"] == 2


@pytest.mark.slow
def test_a_late_job_is_killed_with_its_children(environment, shell):
    with pytest.raises(client.JobFailed, match="did not end within 1 s"):
        client.call(environment, "signatures", {"calls": {"trl.slow.x": []}}, timeout=1)
    grandchild = int(next(shell.rglob("slow.pid")).read_text(encoding="utf-8"))
    wait_until(lambda: not alive(grandchild))
    assert client.call(environment, "signatures", CALLS, timeout=20)["checked"] == 2


def test_a_client_that_hangs_up_takes_its_job_with_it(environment, shell):
    client.call(environment, "signatures", CALLS, timeout=20)
    for old in shell.rglob("slow.pid"):
        old.unlink()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(client.socket_path(environment)))
    connection.sendall(b'{"job": "signatures", "arguments": {"calls": {"trl.slow.x": []}}, "deadline": 60}\n')
    wait_until(lambda: list(shell.rglob("slow.pid")) and next(shell.rglob("slow.pid")).read_text(encoding="utf-8"))
    connection.close()
    grandchild = int(next(shell.rglob("slow.pid")).read_text(encoding="utf-8"))
    wait_until(lambda: not alive(grandchild))


@pytest.mark.slow
def test_it_ends_when_idle_and_starts_again_when_needed(environment, monkeypatch):
    monkeypatch.setenv("PEFTSMITH_WORKER_IDLE_SECONDS", "0.3")
    client.call(environment, "signatures", CALLS, timeout=20)
    pid, place = worker_pid(environment), client.socket_path(environment)
    wait_until(lambda: not alive(pid))
    assert not place.exists()
    client.call(environment, "signatures", CALLS, timeout=20)
    assert worker_pid(environment) != pid


@pytest.mark.slow
def test_four_clients_at_once_share_one_worker(environment):
    answers, pids = [], []

    def ask():
        answers.append(client.call(environment, "signatures", CALLS, timeout=30))
        pids.append(worker_pid(environment))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(answers) == 4
    assert all(answer["checked"] == 2 for answer in answers)
    assert len(set(pids)) == 1
    assert client.stop_all() == 1
    wait_until(lambda: not client._locked(client.socket_path(environment)))
    time.sleep(0.5)  # long enough for a spare that another client started to take over
    assert client.stop_all() == 0


def test_a_stale_socket_is_no_obstacle(environment):
    place = client.socket_path(environment)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(place))
    assert place.exists()
    assert client.call(environment, "signatures", CALLS, timeout=20)["checked"] == 2


def test_it_outlives_the_process_that_started_it(environment):
    code = (
        "import sys; from types import SimpleNamespace; from peftsmith.worker import client;"
        f"client.call(SimpleNamespace(interpreter={environment.interpreter!r}, key='one'), 'signatures', "
        "{'calls': {}}, timeout=20)"
    )
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": paths})
    pid = worker_pid(environment)
    assert alive(pid)
    client.call(environment, "signatures", CALLS, timeout=20)
    assert worker_pid(environment) == pid


def test_neither_secrets_nor_the_control_planes_libraries_reach_a_job(environment, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "not-a-token")
    monkeypatch.setenv("WANDB_API_KEY", "not-a-key")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    with pytest.raises(client.JobFailed) as caught:
        client.call(environment, "signatures", {"calls": {"trl.surroundings.x": []}}, timeout=20)
    text = caught.value.traceback + str(caught.value)
    assert "HF_HUB_OFFLINE" in text
    for absent in ("HF_TOKEN", "WANDB_API_KEY", "'PYTHONPATH'", "/elsewhere", "mcp_server'", "peftsmith/worker'"):
        assert absent not in text


def test_libraries_that_cannot_be_imported_are_named(environment, shell, tmp_path):
    broken = tmp_path / "venv"
    venv.create(broken, with_pip=False, symlinks=True)
    packages = next((broken / "lib").glob("python*")) / "site-packages"
    (packages / "torch.py").write_text("raise ImportError('libcudart.so.12: no such file')", encoding="utf-8")
    unusable = SimpleNamespace(interpreter=str(broken / "bin" / "python"), key="broken")
    with pytest.raises(PeftsmithError, match="libcudart") as caught:
        client.call(unusable, "signatures", CALLS, timeout=20)
    assert "make_environment" in str(caught.value)


def test_each_environment_and_each_way_of_quantising_has_its_own_worker(environment):
    other = SimpleNamespace(interpreter=environment.interpreter, key="two")
    places = {
        client.socket_path(environment),
        client.socket_path(other),
        client.socket_path(environment, quantise=True),
    }
    assert len(places) == 3
    assert all(place.parent.stat().st_mode & 0o777 == 0o700 for place in places)


def test_a_long_cache_path_falls_back_to_a_short_private_one(environment, monkeypatch, tmp_path):
    monkeypatch.setenv("PEFTSMITH_HOME", str(tmp_path / ("long" * 30)))
    place = client.socket_path(environment)
    assert len(os.fsencode(place)) <= 107
    assert place.parent.stat().st_mode & 0o777 == 0o700
    assert client.call(environment, "signatures", CALLS, timeout=20)["checked"] == 2
    client.stop(environment)
    wait_until(lambda: not client._locked(place))
    for each in place.parent.iterdir():
        each.unlink()
    place.parent.rmdir()
