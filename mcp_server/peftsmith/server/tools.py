"""An operation as an MCP tool: schema from its signature, one compact JSON text as its result.

Knows: argument models, how a result and each kind of error reach the model, where tracebacks are logged.
Does not know: what any operation does.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, get_type_hints

import anyio
import anyio.to_thread
import pydantic_core
from mcp.server.mcpserver.context import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from pydantic import ConfigDict, ValidationError, create_model

from peftsmith import files, progress
from peftsmith.errors import PeftsmithError
from peftsmith.operations import Operation

HEARTBEAT_SECONDS = 5.0
_LONGEST_ERROR = 4000
_LARGEST_LOG = 1 << 20


class _Arguments(ArgModelBase):
    """An argument that the operation does not have is an error: a misspelt one must not be dropped in silence."""

    model_config = ConfigDict(extra="forbid")


class OperationTool(Tool):
    """One operation. It runs in a thread, so that a call that waits does not hold up the others."""

    async def run(self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False) -> Any:
        """The operation's result as one block of compact JSON; every failure is a ToolError that names its cause."""
        try:
            keywords = self.fn_metadata.validate_arguments(arguments)
        except ValidationError as error:
            raise ToolError(_explain(self.name, self.fn_metadata.arg_model, error)) from error
        heard: dict[str, tuple[int, int | None]] = {}
        progress.listen(lambda done, total: heard.update(now=(done, total)))  # the thread takes this context along
        async with anyio.create_task_group() as group:
            group.start_soon(_heartbeat, self.name, context, heard)
            outcome = await anyio.to_thread.run_sync(_call, self.name, self.fn, keywords, abandon_on_cancel=True)
            group.cancel_scope.cancel()
        if isinstance(outcome, ToolError):
            raise outcome
        return CallToolResult(content=[TextContent(type="text", text=outcome)])


def make_tool(operation: Operation) -> OperationTool:
    """The tool for an operation. Its result has no outputSchema: no client shows one to the model, each one costs."""
    name = operation.run.__name__
    model = _arguments_model(operation)
    return OperationTool(
        fn=operation.run,
        name=name,
        title=operation.title,
        description=" ".join((operation.run.__doc__ or "").split()),
        parameters=_without_titles(model.model_json_schema()),
        fn_metadata=FuncMetadata(arg_model=model),
        is_async=False,
        context_kwarg=None,
        annotations=ToolAnnotations(
            title=operation.title,
            read_only_hint=operation.reads_only,
            destructive_hint=operation.destructive,
        ),
    )


def _arguments_model(operation: Operation) -> type[_Arguments]:
    hints = get_type_hints(operation.run, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is inspect.Parameter.empty else parameter.default)
        for name, parameter in inspect.signature(operation.run).parameters.items()
    }
    return create_model(f"{operation.run.__name__}_arguments", __base__=_Arguments, **fields)


def _without_titles(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without pydantic's generated titles, which repeat the names and cost the model's context."""
    properties = {
        name: {key: value for key, value in body.items() if key != "title"}
        for name, body in schema["properties"].items()
    }
    kept = {key: value for key, value in schema.items() if key not in ("title", "description")}
    return {**kept, "properties": properties}


def _call(name: str, function: Callable[..., Any], keywords: Mapping[str, Any]) -> str | ToolError:
    """Compact JSON of what the operation returns; NaN and infinities, which JSON lacks, become strings."""
    try:
        return pydantic_core.to_json(function(**keywords), inf_nan_mode="strings").decode("utf-8")
    except PeftsmithError as error:
        return ToolError(files.clean(str(error), _LONGEST_ERROR))
    except Exception as error:
        return ToolError(_unexpected(name, error))


async def _heartbeat(name: str, context: Context[Any, Any], heard: Mapping[str, tuple[int, int | None]]) -> None:
    """Progress every few seconds for a client that asked for it: some give up on a call that is silent for a minute."""
    start = anyio.current_time()
    while True:
        await anyio.sleep(HEARTBEAT_SECONDS)
        seconds = anyio.current_time() - start
        done, total = heard.get("now", (None, None))
        of = f", {done} of {total}" if total else f", {done}" if done else ""
        await context.report_progress(seconds, None, f"{name}: {seconds:.0f} s{of}")


def _explain(name: str, model: type[ArgModelBase], error: ValidationError) -> str:
    """What is wrong with the arguments, by name. The rejected values are not repeated: one may be a pasted key."""
    faults = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = get_close_matches(where, list(model.model_fields), 1)
            faults.append(f"there is no argument {where!r}" + (f", did you mean {near[0]!r}" if near else ""))
        elif item["type"] == "missing":
            faults.append(f"the argument {where!r} is missing")
        else:
            faults.append(f"{where}: {item['msg']}")
    return files.clean(f"{name}: {'; '.join(faults)}. It takes: {', '.join(model.model_fields)}.", _LONGEST_ERROR)


def _unexpected(name: str, error: Exception) -> str:
    """One line for the model; the traceback goes to a log file on this machine, without secrets."""
    from peftsmith.secrets import redact

    kind = f"{name} failed with an unexpected {type(error).__name__}"
    trace = redact("".join(traceback.format_exception(error)))
    try:
        path = files.cache_folder("logs") / "errors.log"
        if path.exists() and path.stat().st_size > _LARGEST_LOG:
            path.replace(path.with_suffix(".old.log"))
        with path.open("a", encoding="utf-8") as stream:
            stream.write(f"--- {datetime.now(UTC).isoformat(timespec='seconds')} {kind}\n{trace}\n")
    except OSError as problem:
        return f"{kind}; its traceback could not be logged ({problem.strerror}). This is a fault in peftsmith."
    return f"{kind}. This is a fault in peftsmith; the traceback is at the end of {path}."
