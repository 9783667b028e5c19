"""Operations as tools: what a client sees, and how each kind of failure reaches it."""

import json
import math
import time
from typing import Annotated, Any

import anyio
import pytest
from mcp import Client
from mcp.server import MCPServer
from pydantic import Field

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.operations import OPERATIONS, Operation
from peftsmith.server import app, tools

ERAS = ("legacy", "2026-07-28")


TOKEN = "hf" + "_" + "aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xYzC"


def add(first: int, second: Annotated[int, Field(ge=0, description="The other one.")] = 1) -> dict[str, Any]:
    """Add two
    numbers."""
    return {"findings": [], "sum": first + second, "loss": math.nan, "name": "naïve 数据"}


def refuse(path: str) -> dict[str, Any]:
    """Always refuse."""
    raise PeftsmithError("The path is wrong\x1b[31m", value=path, next_step="Give another.")


def crash(path: str) -> dict[str, Any]:
    """Always crash."""
    raise KeyError(TOKEN)


def nap(seconds: float) -> dict[str, Any]:
    """Sleep."""
    time.sleep(seconds)
    return {"findings": []}


def server_of(*functions) -> MCPServer:
    made = [tools.make_tool(Operation(function, function.__name__.title())) for function in functions]
    return MCPServer("test", tools=made, log_level="WARNING")


def call(server, name, arguments, mode="legacy"):
    async def talk():
        async with Client(server, mode=mode) as client:
            return await client.call_tool(name, arguments)

    return anyio.run(talk)


def text_of(result):
    assert len(result.content) == 1
    return result.content[0].text


@pytest.mark.parametrize("mode", ERAS)
def test_the_server_lists_every_operation(mode):
    async def listed():
        async with Client(app.build(), mode=mode) as client:
            return (await client.list_tools()).tools

    found = {tool.name: tool for tool in anyio.run(listed)}
    assert list(found) == list(OPERATIONS)
    for name, operation in OPERATIONS.items():
        tool = found[name]
        assert tool.title == tool.annotations.title == operation.title
        assert tool.annotations.read_only_hint is operation.reads_only
        assert tool.annotations.destructive_hint is operation.destructive
        assert tool.description == " ".join(operation.run.__doc__.split())
        assert tool.output_schema is None
        assert tool.input_schema["additionalProperties"] is False
    names = {name for tool in found.values() for name in tool.input_schema["properties"]}
    assert not any(
        name.endswith("token") or "secret" in name or "password" in name for name in names
    )  # tokens: a count


def test_schema_carries_limits_and_descriptions_without_generated_titles():
    tool = tools.make_tool(Operation(add, "Add"))
    assert tool.parameters == {
        "type": "object",
        "additionalProperties": False,
        "required": ["first"],
        "properties": {
            "first": {"type": "integer"},
            "second": {"type": "integer", "minimum": 0, "default": 1, "description": "The other one."},
        },
    }
    assert tool.description == "Add two numbers."


@pytest.mark.parametrize("mode", ERAS)
def test_a_result_is_one_compact_json_text(mode):
    result = call(server_of(add), "add", {"first": 2}, mode)
    assert result.is_error is False
    assert result.structured_content is None
    assert text_of(result) == '{"findings":[],"sum":3,"loss":"NaN","name":"naïve 数据"}'


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"first": 1, "secnd": 2}, "there is no argument 'secnd', did you mean 'second'"),
        ({}, "the argument 'first' is missing"),
        ({"first": 1, "second": -1}, "second: Input should be greater than or equal to 0"),
        ({"first": "sk-secret"}, "first: Input should be a valid integer"),
    ],
)
def test_wrong_arguments_are_named_and_never_repeated(arguments, said):
    result = call(server_of(add), "add", arguments)
    assert result.is_error is True
    assert said in text_of(result)
    assert "It takes: first, second." in text_of(result)
    assert "sk-secret" not in text_of(result)


def test_a_refusal_keeps_cause_value_and_next_step():
    result = call(server_of(refuse), "refuse", {"path": "x"})
    assert result.is_error is True
    assert text_of(result) == "The path is wrong[31m (got 'x'). Give another."


def test_a_crash_names_its_type_and_the_log_that_has_the_traceback():
    result = call(server_of(crash), "crash", {"path": "x"})
    log = files.cache_folder("logs") / "errors.log"
    assert result.is_error is True
    assert "crash failed with an unexpected KeyError" in text_of(result)
    assert str(log) in text_of(result)
    assert "in crash\n" in log.read_text(encoding="utf-8")
    assert TOKEN not in log.read_text(encoding="utf-8") + text_of(result)


def test_the_log_of_crashes_does_not_grow_for_ever(monkeypatch):
    monkeypatch.setattr(tools, "_LARGEST_LOG", 10)
    log = files.cache_folder("logs") / "errors.log"
    for _ in range(3):
        call(server_of(crash), "crash", {"path": "x"})
    assert log.read_text(encoding="utf-8").count("--- ") == 1
    assert log.with_suffix(".old.log").exists()


def test_a_call_that_waits_does_not_hold_up_another():
    async def talk():
        order = []
        async with Client(server_of(nap, add), mode="legacy") as client, anyio.create_task_group() as group:

            async def one(name, arguments):
                await client.call_tool(name, arguments)
                order.append(name)

            group.start_soon(one, "nap", {"seconds": 1.0})
            await anyio.sleep(0.1)
            group.start_soon(one, "add", {"first": 1})
        return order

    assert anyio.run(talk) == ["add", "nap"]


def test_progress_is_reported_while_a_call_waits(monkeypatch):
    monkeypatch.setattr(tools, "HEARTBEAT_SECONDS", 0.1)
    seen = []

    async def note(progress, total, message):
        seen.append((progress, message))

    async def talk():
        async with Client(server_of(nap), mode="legacy") as client:
            await client.call_tool("nap", {"seconds": 0.5}, progress_callback=note)

    anyio.run(talk)
    assert len(seen) >= 2
    assert [progress for progress, _ in seen] == sorted(progress for progress, _ in seen)
    assert seen[0][1].startswith("nap: ")


def test_a_path_outside_of_the_project_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTSMITH_ROOTS", "")
    monkeypatch.chdir(tmp_path)
    app.set_roots({"CLAUDE_PROJECT_DIR": str(tmp_path)})
    result = call(app.build(), "scan_secrets", {"path": "/etc/passwd"})
    assert result.is_error is True
    assert "outside" in text_of(result)


def test_roots_are_the_project_and_what_the_user_adds(tmp_path, monkeypatch):
    project, more, other = (tmp_path / name for name in ("project", "more", "other"))
    for folder in (project, more, other):
        folder.mkdir()
        (folder / "notes.txt").write_text("nothing here", encoding="utf-8")
    monkeypatch.chdir(other)
    app.set_roots({"CLAUDE_PROJECT_DIR": str(project), "PEFTSMITH_ROOTS": str(more)})
    server = app.build()
    assert json.loads(text_of(call(server, "scan_secrets", {"path": "notes.txt"})))["scanned_files"] == 1
    assert call(server, "scan_secrets", {"path": str(more / "notes.txt")}).is_error is False
    assert call(server, "scan_secrets", {"path": str(other / "notes.txt")}).is_error is True
