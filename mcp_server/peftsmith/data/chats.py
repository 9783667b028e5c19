"""Conversations in one form: the messages that chat templates take, from OpenAI's and ShareGPT's ways to write them.

Knows: roles, content in parts, tool calls and their results, tool schemas, where the last assistant turn begins.
Does not know: columns (mapping.py), or how a template prints a message (rendering.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from peftsmith import files
from peftsmith.data import faults
from peftsmith.data.examples import Chat, Message
from peftsmith.data.faults import RowFault

SYSTEM_ROLES = ("system", "developer")
ROLES = {role: role for role in (*SYSTEM_ROLES, "user", "assistant", "tool")} | {"function": "tool", "ipython": "tool"}
# Names that public ShareGPT sets use; see LLaMA-Factory's data/README.md and axolotl's sharegpt strategy.
SHAREGPT_ROLES = ROLES | {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "function_call",
}
_CALL = "function_call"


def messages(value: object, name: str, roles: Mapping[str, str] = ROLES) -> list[Message]:
    """A list of messages with role and content, both text; keys that are None are dropped, parts of type text joined.

    A call of a function stands in `tool_calls` as {"type", "function": {"name", "arguments": object}}, its message's
    content is then "" where it was null. Raises RowFault.
    """
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise RowFault("shape", f"{name!r} is not a list of messages")
    if not value:
        raise RowFault("empty", f"{name!r} is an empty list")
    return [_message(message, place, roles) for place, message in enumerate(value, start=1)]


def _message(message: Mapping[str, Any], place: int, roles: Mapping[str, str]) -> Message:
    kept = {name: item for name, item in message.items() if item is not None}
    if "role" not in kept and "from" in kept:
        kept = {"role": kept.pop("from"), **kept}
    if "content" not in kept and "value" in kept:
        kept["content"] = kept.pop("value")
    written, content = kept.get("role"), kept.get("content")
    if not isinstance(written, str):
        raise RowFault("shape", f"message {place} lacks a role")
    role = roles.get(written)
    if role is None:
        raise RowFault("role", f"message {place} has the unknown role {files.clean(written, 60)!r}")
    if role == _CALL:
        return {"role": "assistant", "content": "", "tool_calls": _calls_in_text(content, place)}
    calls = _calls(kept, place) if role == "assistant" else []
    if isinstance(content, list):
        content = _joined(content, place)
    if content is None and calls:
        content = ""
    blank = role in SYSTEM_ROLES or role == "tool" or bool(calls)
    if content is None and "content" not in message and "value" not in message:
        raise RowFault("shape", f"message {place} lacks a content")
    made = {**kept, "role": role, "content": faults.text(content, f"the {role}'s content", blank=blank)}
    made.pop(_CALL, None)
    made.pop("tool_calls", None)
    if calls:
        made["tool_calls"] = calls
    for key, item in made.items():
        if isinstance(item, str) and key not in ("role", "content"):
            faults.text(item, key, blank=True)
    return made


def _joined(parts: list[Any], place: int) -> str:
    """Content in parts as one text; every part must be text."""
    texts = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        body = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(body, str):
            shown = files.clean(str(kind), 40)
            raise RowFault("unsupported", f"message {place} has a part of type {shown!r}; only text is covered")
        texts.append(body)
    return "".join(texts)


def _calls(message: Mapping[str, Any], place: int) -> list[dict[str, Any]]:
    calls = message.get("tool_calls") or ([{"function": message[_CALL]}] if message.get(_CALL) else [])
    if not isinstance(calls, list):
        raise RowFault("shape", f"message {place} has tool_calls that are not a list")
    return [_call(call, place) for call in calls]


def _calls_in_text(content: object, place: int) -> list[dict[str, Any]]:
    """ShareGPT's function_call: the JSON of one call, or of a list of calls, as text."""
    value = _json(content, f"the function_call of message {place}") if isinstance(content, str) else content
    return [_call(call, place) for call in (value if isinstance(value, list) else [value])]


def _call(call: object, place: int) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowFault("shape", f"message {place} has a tool call without a function name")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        # OpenAI sends arguments as JSON text; templates print objects, and would print such text a second time quoted.
        arguments = _json(arguments, f"the arguments of the tool call in message {place}") if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowFault("shape", f"message {place} has a tool call whose arguments are not an object")
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    _encodable(made, f"the tool call in message {place}")
    return {"id": call["id"], **made} if isinstance(call.get("id"), str) else made


def tools(value: object) -> list[dict[str, Any]] | None:
    """Tool schemas out of a list, or its JSON as text; None where there are none."""
    if isinstance(value, str):
        value = _json(value, "tools") if value.strip() else None
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowFault("shape", "tools is not a list of objects")
    _encodable(value, "tools")
    return value


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowFault("shape", f"{name} cannot be read as JSON") from error


def _encodable(value: object, name: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowFault("encoding", f"{name} holds half of a surrogate pair, which no tokenizer accepts") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise RowFault("shape", f"{name} is no plain JSON") from error


def chat(conversation: list[Message], schemas: list[dict[str, Any]] | None = None) -> Chat:
    """The conversation cut before its last assistant turn. Raises RowFault where there is none, or nobody asked."""
    cut = len(conversation) - 1
    while cut > 0 and conversation[cut - 1]["role"] == "tool":
        while cut > 0 and conversation[cut - 1]["role"] == "tool":
            cut -= 1
        if cut == 0 or not conversation[cut - 1].get("tool_calls"):
            raise RowFault("order", f"message {cut + 1} is a tool's, but no call of the assistant stands before it")
        cut -= 1
    return checked(conversation[:cut], conversation[cut:], schemas)


def checked(prompt: list[Message], completion: list[Message], schemas: list[dict[str, Any]] | None = None) -> Chat:
    if completion[-1]["role"] != "assistant":
        raise RowFault("ending", f"the last message is the {completion[-1]['role']}'s, not the assistant's")
    if not any(message["role"] == "user" for message in prompt):
        raise RowFault("order", "there is nothing from the user before the last assistant message")
    return Chat(prompt, completion, schemas)


def with_system(conversation: list[Message], system: str | None) -> list[Message]:
    """`system` goes first where the conversation has no system message."""
    if not system or any(message["role"] in SYSTEM_ROLES for message in conversation):
        return conversation
    return [{"role": "system", "content": system}, *conversation]
