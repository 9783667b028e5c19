"""The guard as Claude Code runs it: the command of hooks.json through a shell, with the call on stdin."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.credentials import CONTEXTS, HARMLESS, MAKERS, make

HOOK = json.loads((REPOSITORY / "hooks" / "hooks.json").read_text(encoding="utf-8"))["hooks"]["PreToolUse"][0]
COMMAND = HOOK["hooks"][0]["command"]


def run(stdin: str | bytes, *, root: Path = REPOSITORY, command: str = COMMAND, path: str | None = None, **env: str):
    folder = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}" if path is None else path
    clean = {"PATH": folder, "CLAUDE_PLUGIN_ROOT": str(root), **env}
    data = stdin.encode() if isinstance(stdin, str) else stdin
    return subprocess.run(["/bin/sh", "-c", command], input=data, capture_output=True, env=clean, timeout=60)


def call(tool: str, **arguments) -> str:
    return json.dumps({"hook_event_name": "PreToolUse", "tool_name": tool, "tool_input": arguments, "cwd": "/"})


def refusal(done) -> str:
    """The reason that the client is given; an assertion fails when the call was let through."""
    assert done.returncode == 0, done.stderr
    decision = json.loads(done.stdout)["hookSpecificOutput"]
    assert (decision["hookEventName"], decision["permissionDecision"]) == ("PreToolUse", "deny")
    return decision["permissionDecisionReason"]


def passes(done) -> bool:
    return (done.returncode, done.stdout) == (0, b"")


@pytest.mark.parametrize("kind", MAKERS)
def test_a_planted_credential_is_stopped_and_not_repeated(kind):
    credential = make(kind, 10)
    done = run(call("Write", file_path="/p/train.py", content=CONTEXTS["train.py"](credential)))
    reason = refusal(done)
    assert re.search(r"at line \d+ of content", reason)
    assert credential.value not in done.stdout.decode() + done.stderr.decode()


def test_the_reason_says_what_to_do():
    reason = refusal(run(call("Write", file_path="a.py", content=f"x = 1\nTOKEN = '{make('huggingface', 1).value}'\n")))
    assert "huggingface token at line 2 of content" in reason
    for part in ("your_service_key_here", "os.environ", "peftsmith: allow-secret", "PEFTSMITH_GUARD=off"):
        assert part in reason


def test_every_way_of_writing_is_covered():
    value = make("huggingface", 2).value
    calls = {
        "Edit": {"file_path": "a", "old_string": "x", "new_string": f"t = '{value}'"},
        "MultiEdit": {"file_path": "a", "edits": [{"old_string": "x", "new_string": "y"}, {"new_string": value}]},
        "NotebookEdit": {"notebook_path": "a.ipynb", "new_source": value},
        "mcp__plugin_peftsmith_peftsmith__plan_finetune": {"project": "p", "system_prompt": f"use {value}"},
    }
    for tool, arguments in calls.items():
        assert re.fullmatch(HOOK["matcher"], tool)
        assert "huggingface token" in refusal(run(call(tool, **arguments)))


def test_taking_a_secret_out_is_possible():
    value = make("huggingface", 3).value
    assert passes(run(call("Edit", file_path="a", old_string=value, new_string='os.environ["HF_TOKEN"]')))
    assert passes(run(call("MultiEdit", file_path="a", edits=[{"old_string": value, "new_string": "x"}])))


def test_normal_work_passes():
    assert passes(run(call("Write", file_path="notes.md", content="\n".join(HARMLESS.values()))))
    for file in ("pyproject.toml", "mcp_server/peftsmith/secrets.py", "hooks/secret_guard.py", "tests/credentials.py"):
        content = (REPOSITORY / file).read_text(encoding="utf-8")
        assert passes(run(call("Write", file_path=file, content=content))), file


def test_both_ways_of_allowing():
    value = make("huggingface", 4).value
    assert passes(run(call("Write", file_path="a", content=f"x = '{value}'  # peftsmith: allow-secret")))
    refusal(run(call("Write", file_path="a", content=f"# peftsmith: allow-secret\nx = '{value}'")))
    for spelling in ("off", "OFF"):
        assert passes(run(call("Write", file_path="a", content=value), PEFTSMITH_GUARD=spelling))
    refusal(run(call("Write", file_path="a", content=value), PEFTSMITH_GUARD="on"))


@pytest.mark.parametrize(
    "stdin",
    [
        "",
        "garbage",
        "[]",
        "{}",
        '{"tool_name": "Write"}',
        b"\xff\xfe",
        '{"tool_name": "Write", "tool_input": ' + "[" * 100_000,
    ],
    ids=["nothing", "garbage", "list", "empty", "no input", "not utf-8", "nested"],
)
def test_what_it_cannot_read_is_blocked(stdin):
    done = run(stdin)
    assert done.returncode == 2
    assert b"PEFTSMITH_GUARD=off" in done.stderr


def test_a_missing_part_blocks_and_the_switch_still_works(tmp_path):
    harmless = call("Write", file_path="a", content="x = 1")
    for broken in ({"root": tmp_path}, {"path": str(tmp_path)}):
        done = run(harmless, **broken)
        assert done.returncode == 2
        assert b"PEFTSMITH_GUARD=off" in done.stderr
        assert passes(run(harmless, PEFTSMITH_GUARD="off", **broken))
    (tmp_path / "hooks").mkdir()
    guard = REPOSITORY / "hooks" / "secret_guard.py"
    (tmp_path / "hooks" / "secret_guard.py").write_text(guard.read_text(encoding="utf-8"), encoding="utf-8")
    assert run(harmless, root=tmp_path).returncode == 2  # the patterns are missing


@pytest.mark.slow
def test_an_input_that_never_ends_is_blocked_in_time():
    command = COMMAND.replace('secret_guard.py" 8', 'secret_guard.py" 1')
    assert command != COMMAND
    environment = {"PATH": os.environ["PATH"], "CLAUDE_PLUGIN_ROOT": str(REPOSITORY)}
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    started = time.monotonic()
    assert process.wait(timeout=20) == 2
    assert time.monotonic() - started < 10
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def test_the_alarm_is_shorter_than_the_timeout():
    seconds = re.search(r'secret_guard\.py" (\d+)', COMMAND)
    assert seconds
    assert int(seconds.group(1)) * 2 <= HOOK["hooks"][0]["timeout"]


def test_a_megabyte_takes_less_than_a_second():
    content = ("loss = compute(model, batch)  # one line of ordinary code, as long as most\n" * 20_000)[:1_000_000]
    times = []
    for _ in range(3):
        started = time.monotonic()
        assert passes(run(call("Write", file_path="a", content=content)))
        times.append(time.monotonic() - started)
    assert min(times) < 1


@pytest.mark.parametrize("file", ["hooks/secret_guard.py", "mcp_server/peftsmith/secrets.py"])
def test_the_hook_is_python_3_8_and_standard_library(file):
    tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"), feature_version=(3, 8))
    imported = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert imported <= {*sys.stdlib_module_names}
