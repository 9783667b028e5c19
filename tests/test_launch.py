"""The front: what it answers alone, how it waits, passes on, restarts and leaves; and the installer behind it."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters

from peftsmith.server import manifest
from tests.wire import HANDSHAKE, MCP_SERVER, MODERN, Wire

sys.path.insert(0, str(MCP_SERVER))
import launch_install

pytestmark = pytest.mark.slow

LAUNCH = MCP_SERVER / "launch.py"
FRONT_FILES = sorted(MCP_SERVER.glob("launch*.py"))

SLEEPER = "import time; time.sleep(600)"
FAKE_SERVER = """
import json, os, sys

seen = []
for line in sys.stdin:
    message = json.loads(line)
    seen.append(message["method"])
    if "id" not in message:
        continue
    name = message.get("params", {}).get("name")
    if name == "die":
        print("boom: out of cheese", file=sys.stderr, flush=True)
        os._exit(3)
    if name == "silent":
        continue
    text = json.dumps({"pid": os.getpid(), "seen": seen})
    result = {"content": [{"type": "text", "text": text}], "isError": False}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""
FAKE_UV = """#!{python}
import os, pathlib, sys, time

control = pathlib.Path({control!r})
if sys.argv[1] == "--version":
    sys.exit(0)
with (control / "calls").open("a") as calls:
    calls.write(f"{{os.getpid()}} {{' '.join(sys.argv[1:])}}\\n")
if sys.argv[1] == "venv":
    python = pathlib.Path(sys.argv[-1], "bin", "python")
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\\nexec {python} {server}\\n')
    python.chmod(0o755)
else:
    time.sleep(float((control / "delay").read_text()))
    if (control / "fail").exists():
        sys.exit((control / "fail").read_text())
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def stand_in(tmp_path, code) -> Path:
    """An interpreter that runs `code` whatever it is asked to run."""
    body = tmp_path / "stand_in.py"
    body.write_text(code, encoding="utf-8")
    return script(tmp_path / "stand-in-python", f'#!/bin/sh\nexec {sys.executable} "{body}"\n')


def front(tmp_path, python=sys.executable, **environment):
    project = tmp_path / "project"
    project.mkdir(exist_ok=True)
    settings = {"PEFTSMITH_SERVER_PYTHON": python, "CLAUDE_PLUGIN_DATA": tmp_path / "data", **environment}
    return Wire([sys.executable, LAUNCH], cwd=project, **settings)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone_within(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


# --- the code itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FRONT_FILES, ids=lambda path: path.name)
def test_the_front_is_python_3_8_with_the_standard_library_only(path):
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    assert names - {file.stem for file in FRONT_FILES} <= sys.stdlib_module_names


def pythons() -> list[str]:
    found = {sys.executable}
    for name in ("python3.8",):
        candidates = [shutil.which(name), *map(str, Path.home().glob(f".pyenv/versions/{name[6:]}*/bin/python"))]
        for candidate in filter(None, candidates):
            asked = subprocess.run([candidate, "--version"], capture_output=True, check=False)
            if asked.returncode == 0:
                found.add(candidate)
                break
    return sorted(found)


@pytest.mark.parametrize("python", pythons())
def test_it_runs_under_every_python_on_this_machine(python, tmp_path):
    settings = {"PEFTSMITH_SERVER_PYTHON": sys.executable, "CLAUDE_PLUGIN_DATA": tmp_path}
    with Wire([python, "-I", LAUNCH], cwd=tmp_path, **settings) as wire:
        assert wire.shake_hands()["result"]["serverInfo"]["name"] == "peftsmith"
        text, failed = wire.call("scan_secrets")
    assert failed is False
    assert json.loads(text)["findings"] == []
    assert wire.errors == ""


# --- what it answers alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"])
def test_without_any_server_it_answers_what_the_server_would(version, tmp_path):
    requests = manifest.requests(version)
    real = asyncio.run(manifest.ask(manifest.build(), requests))
    with front(tmp_path, stand_in(tmp_path, SLEEPER)) as wire:
        for request, expected in zip(requests, real, strict=True):
            if "result" in expected:
                assert wire.ask(request["method"], request["params"], 5)["result"] == expected["result"]


def test_opening_with_an_unknown_version_is_refused_at_once_as_by_the_server(tmp_path):
    meta = {**MODERN["_meta"], "io.modelcontextprotocol/protocolVersion": "2099-01-01"}
    request = {"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {"_meta": meta}}
    (expected,) = asyncio.run(manifest.ask(manifest.build(), [request]))
    with front(tmp_path, stand_in(tmp_path, SLEEPER)) as wire:
        assert wire.ask("server/discover", request["params"], 5)["error"] == expected["error"]
        assert wire.ask("server/discover", MODERN, 5)["result"]["supportedVersions"] == ["2026-07-28"]


def test_before_the_handshake_only_ping_is_answered(tmp_path):
    (expected,) = asyncio.run(
        manifest.ask(manifest.build(), [{"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}])
    )
    with front(tmp_path, stand_in(tmp_path, SLEEPER)) as wire:
        assert wire.ask("ping", seconds=5)["result"] == {}
        assert wire.ask("tools/list", seconds=5)["error"] == expected["error"]


def test_garbage_does_not_stop_it(tmp_path):
    with front(tmp_path, stand_in(tmp_path, SLEEPER)) as wire:
        for line in (b"\n", b"{\n", b"\xff\xfe\n", b"[]\n", b"7\n", b'{"id": 1}\n', b'{"method": 5, "id": 2}\n'):
            wire.send(line)
        wire.send({"jsonrpc": "2.0", "id": 3, "method": "initialize", "params": [1]})
        assert wire.answer(3, 5)["result"]["protocolVersion"] == "2025-11-25"
        assert wire.ask("ping", seconds=5)["result"] == {}
        assert wire.process.poll() is None


# --- waiting and passing on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_the_sdk_s_client_works_through_it(mode, tmp_path):
    async def talk():
        environment = {"PEFTSMITH_SERVER_PYTHON": sys.executable, "CLAUDE_PLUGIN_DATA": str(tmp_path)}
        server = StdioServerParameters(command=sys.executable, args=[str(LAUNCH)], env=environment, cwd=tmp_path)
        async with Client(server, mode=mode) as client:
            listed = await client.list_tools()
            result = await client.call_tool("scan_secrets", {"path": "."})
            document = await client.read_resource("peftsmith://schema/plan")
            return client.protocol_version, listed.tools, result, document

    version, listed, result, document = asyncio.run(talk())
    assert version == {"legacy": "2025-11-25", "auto": "2026-07-28"}[mode]
    assert "scan_secrets" in {tool.name for tool in listed}
    assert json.loads(result.content[0].text)["findings"] == []
    assert json.loads(document.contents[0].text)["title"] == "FineTunePlan"


@pytest.mark.parametrize("params", [{}, MODERN], ids=["handshake", "envelope"])
def test_calls_sent_at_once_are_kept_and_answered_once_by_the_server(params, tmp_path):
    with front(tmp_path) as wire:
        if params:
            wire.ask("server/discover", params)
        else:
            wire.shake_hands()
        arguments = {"name": "scan_secrets", "arguments": {"path": "."}, **params}
        ids = [wire.request("tools/call", arguments, id_) for id_ in (10, "10", 11)]
        assert [wire.answer(id_)["result"]["isError"] for id_ in ids] == [False] * 3
        assert wire.ask("tools/list", params)["result"]["tools"]
        assert wire.others == []
        assert set(wire.answers) == {1, 5, 10, "10", 11}


def test_a_new_server_is_greeted_as_the_client_greeted_the_front(tmp_path):
    with front(tmp_path, stand_in(tmp_path, FAKE_SERVER)) as wire:
        wire.shake_hands()
        text, _ = wire.call("state")
    assert json.loads(text)["seen"] == ["initialize", "notifications/initialized", "tools/call"]


def test_files_of_the_project_do_not_shadow_the_server(tmp_path):
    (tmp_path / "project").mkdir()
    for name in ("mcp", "json", "peftsmith", "launch_answers", "pydantic"):
        (tmp_path / "project" / f"{name}.py").write_text("raise SystemExit('shadowed')\n", encoding="utf-8")
    with front(tmp_path) as wire:
        wire.shake_hands()
        _, failed = wire.call("list_runs")
    assert failed is False


@pytest.mark.parametrize("params", [{}, MODERN], ids=["handshake", "envelope"])
def test_a_server_that_is_slow_to_start_is_said_to_start(params, tmp_path):
    with front(tmp_path, stand_in(tmp_path, SLEEPER), PEFTSMITH_FRONT_PATIENCE="0.3") as wire:
        wire.ask("server/discover" if params else "initialize", params or HANDSHAKE)
        reply = wire.ask("tools/call", {"name": "list_runs", "arguments": {}, **params}, 5)
        assert reply["result"]["isError"] is True
        assert "peftsmith is starting (" in reply["result"]["content"][0]["text"]
        assert ("_meta" in reply["result"]) is bool(params)
        reply = wire.ask("resources/read", {"uri": "peftsmith://findings", **params}, 5)
        assert "peftsmith is starting (" in reply["error"]["message"]


def test_a_cancelled_call_is_forgotten(tmp_path):
    with front(tmp_path, stand_in(tmp_path, SLEEPER), PEFTSMITH_FRONT_PATIENCE="0.5") as wire:
        wire.shake_hands()
        id_ = wire.request("tools/call", {"name": "list_runs", "arguments": {}})
        wire.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id_}})
        later = wire.request("tools/call", {"name": "list_runs", "arguments": {}})
        wire.answer(later, 5)
        assert id_ not in wire.answers


# --- failing and leaving --------------------------------------------------------------------------------------------


def test_a_server_that_dies_is_reported_with_its_log_and_started_again(tmp_path):
    with front(tmp_path, stand_in(tmp_path, FAKE_SERVER)) as wire:
        wire.shake_hands()
        first = json.loads(wire.call("state")[0])["pid"]
        silent = wire.request("tools/call", {"name": "silent", "arguments": {}})
        text, failed = wire.call("die")
        assert failed is True
        assert "exit code 3" in text
        assert "boom: out of cheese" in text
        assert str(tmp_path / "data" / "logs") in text
        assert wire.answer(silent)["result"]["isError"] is True
        assert wire.ask("tools/list", seconds=5)["result"]["tools"]
        second = json.loads(wire.call("state")[0])
        assert second["pid"] != first
        assert second["seen"] == ["initialize", "notifications/initialized", "tools/call"]


def test_a_real_server_killed_in_between_comes_back(tmp_path):
    with front(tmp_path) as wire:
        wire.shake_hands()
        assert wire.call("list_runs")[1] is False
        (child,) = children(wire.process.pid)
        os.kill(child, signal.SIGKILL)
        assert gone_within(child, 5)
        end = time.monotonic() + 30
        while wire.call("list_runs")[1] and time.monotonic() < end:  # the pipe may still have been open
            time.sleep(0.1)
        assert wire.call("list_runs")[1] is False


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text(encoding="utf-8").split()]
    return found


def test_a_server_that_cannot_start_says_why_at_every_call(tmp_path):
    with front(tmp_path, stand_in(tmp_path, "raise SystemExit('no module named cheese')")) as wire:
        wire.shake_hands()
        for _ in range(2):
            text, failed = wire.call("list_runs", seconds=15)
            assert failed is True
            assert "no module named cheese" in text
        assert wire.ask("tools/list", seconds=5)["result"]["tools"]


def test_an_interpreter_that_is_not_there_is_named(tmp_path):
    with front(tmp_path, tmp_path / "missing-python") as wire:
        wire.shake_hands()
        text, failed = wire.call("list_runs", seconds=15)
    assert failed is True
    assert "missing-python" in text


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM, "end of input"], ids=str)
def test_it_leaves_quickly_and_takes_the_server_along(way, tmp_path):
    with front(tmp_path, stand_in(tmp_path, FAKE_SERVER)) as wire:
        wire.shake_hands()
        child = json.loads(wire.call("state")[0])["pid"]
        wire.request("tools/call", {"name": "silent", "arguments": {}})
        start = time.monotonic()
        if way == "end of input":
            wire.process.stdin.close()
        else:
            wire.process.send_signal(way)
        code = wire.process.wait(5)
        assert time.monotonic() - start < 2
        assert code == (0 if way == "end of input" else 128 + way)
        assert gone_within(child, 2)
    assert wire.errors == ""


def test_when_the_front_is_killed_the_real_server_ends_by_itself(tmp_path):
    with front(tmp_path) as wire:
        wire.shake_hands()
        wire.call("list_runs")
        (child,) = children(wire.process.pid)
        wire.process.kill()
        assert gone_within(child, 5)


# --- installing -----------------------------------------------------------------------------------------------------


@pytest.fixture
def uv(tmp_path, monkeypatch):
    """A stand-in for uv, first on PATH: notes its calls, takes `delay` seconds, fails with what `fail` says.

    What it installs is FAKE_SERVER. The real tools are tried in tests/system/test_cold_start.py.
    """
    control = tmp_path / "uv-control"
    control.mkdir()
    (control / "delay").write_text("0", encoding="utf-8")
    server = tmp_path / "installed_server.py"
    server.write_text(FAKE_SERVER, encoding="utf-8")
    script(tmp_path / "bin" / "uv", FAKE_UV.format(python=sys.executable, control=str(control), server=server))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return control


def calls(uv) -> list[str]:
    return [line.split(" ", 1)[1] for line in (uv / "calls").read_text(encoding="utf-8").splitlines()]


def installing_front(tmp_path, **environment):
    return front(tmp_path, "", **environment)


def test_while_it_installs_lists_are_answered_and_calls_are_told(tmp_path, uv):
    (uv / "delay").write_text("2", encoding="utf-8")
    with installing_front(tmp_path, PEFTSMITH_FRONT_PATIENCE="0.5") as wire:
        wire.shake_hands()
        assert wire.ask("tools/list", seconds=5)["result"]["tools"]
        text, failed = wire.call("list_runs", seconds=10)
        assert failed is True
        assert "peftsmith is installing its libraries (" in text
        assert "call again in a little while" in text
        end = time.monotonic() + 60
        while wire.call("list_runs")[1] and time.monotonic() < end:
            time.sleep(0.2)
        assert wire.call("list_runs")[1] is False
    assert calls(uv)[1].split(" -r ")[0].endswith("--require-hashes")
    assert wire.errors == ""


def test_two_clients_at_once_install_once(tmp_path, uv):
    (uv / "delay").write_text("1", encoding="utf-8")
    with installing_front(tmp_path) as one, installing_front(tmp_path) as two:
        for wire in (one, two):
            wire.shake_hands()
        ids = [wire.request("tools/call", {"name": "list_runs", "arguments": {}}) for wire in (one, two)]
        assert [wire.answer(id_)["result"]["isError"] for wire, id_ in zip((one, two), ids, strict=True)] == [False] * 2
    assert [call.split()[0] for call in calls(uv)] == ["venv", "pip"]


def test_stopped_while_it_installs_it_leaves_nothing_half_made(tmp_path, uv):
    (uv / "delay").write_text("60", encoding="utf-8")
    with installing_front(tmp_path) as wire:
        wire.shake_hands()
        end = time.monotonic() + 20
        while not ((uv / "calls").exists() and len(calls(uv)) == 2) and time.monotonic() < end:
            time.sleep(0.05)
        installer = int((uv / "calls").read_text(encoding="utf-8").splitlines()[1].split()[0])
        wire.process.terminate()
        wire.process.wait(5)
        assert gone_within(installer, 3)
    data = tmp_path / "data"
    assert [path.name for path in data.glob("env-*") if path.is_dir()] == []
    (uv / "delay").write_text("0", encoding="utf-8")
    with installing_front(tmp_path) as wire:
        wire.shake_hands()
        assert wire.call("list_runs")[1] is False
    assert list(data.glob("new-*")) == []


def test_a_failed_installation_is_told_and_tried_again(tmp_path, uv):
    (uv / "fail").write_text("error: error sending request for url: dns error", encoding="utf-8")
    with installing_front(tmp_path) as wire:
        wire.shake_hands()
        text, failed = wire.call("list_runs", seconds=20)
        assert failed is True
        assert "the package index cannot be reached" in text
        assert "install.log" in text
        (uv / "fail").unlink()
        end = time.monotonic() + 60
        while wire.call("list_runs")[1] and time.monotonic() < end:
            time.sleep(0.5)
        assert wire.call("list_runs")[1] is False


def pins(tmp_path, text="# nothing\n") -> Path:
    path = tmp_path / "control.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_other_pins_make_another_environment_and_the_unused_one_goes(tmp_path, uv):
    data = tmp_path / "data"
    first = launch_install.Installer(data, pins(tmp_path))
    old = first.ensure().parent.parent
    assert first.ensure().parent.parent == old
    assert len(calls(uv)) == 2

    second = launch_install.Installer(data, pins(tmp_path, "# something else\n"))
    new = second.ensure().parent.parent
    assert new != old
    second.remove_unused()
    assert old.exists(), "it is still held by the first client"
    first._use.close()
    second.remove_unused()
    assert not old.exists()
    assert launch_install.interpreter_of(new).exists()
    second._use.close()


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("error: Hash mismatch for `mcp`: does not match", "does not match its pinned hash"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("error: something odd", "the installation failed"),
    ],
)
def test_why_an_installation_failed_is_said_in_words(tmp_path, uv, said, cause):
    (uv / "fail").write_text(said, encoding="utf-8")
    installer = launch_install.Installer(tmp_path / "data", pins(tmp_path))
    with pytest.raises(launch_install.Trouble, match=cause):
        installer.ensure()
    assert [path for path in (tmp_path / "data").iterdir() if path.is_dir()] == []
    installer._use.close()


def without_uv(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


@pytest.mark.system
def test_pip_without_a_network_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    without_uv(tmp_path, monkeypatch)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    installer = launch_install.Installer(tmp_path / "data", MCP_SERVER.parent / "requirements" / "control.txt")
    with pytest.raises(launch_install.Trouble, match="the package index cannot be reached"):
        installer.ensure()
    assert [path for path in (tmp_path / "data").iterdir() if path.is_dir()] == []
    installer._use.close()


def test_a_python_without_ensurepip_names_the_package(tmp_path, monkeypatch):
    without_uv(tmp_path, monkeypatch)
    code = "import sys; sys.modules['ensurepip'] = None; exec(sys.argv[3])"
    lacking = script(tmp_path / "lacking", f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    monkeypatch.setattr(launch_install.find_base, "__defaults__", (str(lacking), (3, 11)))
    installer = launch_install.Installer(tmp_path / "data", pins(tmp_path))
    with pytest.raises(launch_install.Trouble, match="Install the package python3-venv") as caught:
        installer.ensure()
    assert str(lacking) in str(caught.value)
    installer._use.close()


def test_an_old_python_alone_is_told_what_is_needed(tmp_path, monkeypatch):
    without_uv(tmp_path, monkeypatch)
    base, reason = launch_install.find_base("/usr/bin/old", (3, 8))
    assert base is None
    assert reason.startswith("peftsmith needs Python 3.11 or newer; this is 3.8 (/usr/bin/old).")


def test_a_newer_python_on_the_path_helps_an_old_one(tmp_path, monkeypatch):
    without_uv(tmp_path, monkeypatch)
    newer = script(tmp_path / "empty" / "python3.12", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    assert launch_install.find_base("/usr/bin/old", (3, 8)) == (str(newer), "")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "data").write_text("a file", encoding="utf-8")
    installer = launch_install.Installer(tmp_path / "data", pins(tmp_path))
    with pytest.raises(launch_install.Trouble, match="cannot write its environment to"):
        installer.ensure()


def test_the_pins_name_no_index_and_lock_every_package():
    text = (MCP_SERVER.parent / "requirements" / "control.txt").read_text(encoding="utf-8")
    assert "://" not in text
    blocks = text.replace("\\\n", " ").splitlines()
    packages = [line for line in blocks if line and not line.lstrip().startswith("#")]
    assert len(packages) > 20
    assert all("==" in line and "--hash=sha256:" in line for line in packages)
    names = {line.split("==")[0] for line in packages}
    assert {"mcp", "pydantic", "ruff", "tokenizers"} <= names
    assert not names & {"uv", "pytest", "mypy", "torch", "transformers", "peft", "trl", "datasets"}


def test_log_files_do_not_pile_up(tmp_path):
    import launch

    for number in range(20):
        log = tmp_path / f"server-{number}.log"
        log.write_text("x", encoding="utf-8")
        os.utime(log, (number, number))
    launch._log_file(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"server-{number}.log" for number in range(13, 20)
    )
