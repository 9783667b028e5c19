"""Formats: detection with its confidence, the example that a row becomes, and the fault of one that cannot."""

from __future__ import annotations

import json

import pytest

from peftsmith.data import formats
from peftsmith.data.examples import Classified
from peftsmith.data.formats import Mapping, RowFault, as_chat, detect
from peftsmith.errors import PeftsmithError


def to_example(row, format, system_prompt=None, labels=()):
    example = formats.to_example(row, Mapping(format), labels)
    return as_chat(example, system_prompt) or example


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


def file_of(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


MESSAGES = {"messages": [user("a"), assistant("b")]}
PAIR = {"prompt": "a", "completion": "b"}
CLASS = {"text": "a", "label": "b"}


@pytest.mark.parametrize(
    ("row", "name"), [(MESSAGES, "messages"), (PAIR, "prompt_completion"), (CLASS, "classification")]
)
def test_detect(tmp_path, row, name):
    found = detect(file_of(tmp_path, [row] * 3))
    assert (found.format, found.confidence) == (name, 1.0)
    assert found.labels == (["b"] if name == "classification" else [])


def test_detect_says_how_sure_it_is(tmp_path):
    found = detect(file_of(tmp_path, [PAIR] * 3 + [MESSAGES]))
    assert (found.format, found.confidence) == ("prompt_completion", 0.75)
    assert "3 of the first 4" in found.reason
    assert detect(file_of(tmp_path, [{**MESSAGES, **CLASS}] * 4)).confidence == 0.5


def test_detect_reads_every_label(tmp_path):
    rows = [{"text": str(i), "label": "x"} for i in range(1500)] + [
        {"text": "t", "label": 7},
        {"text": "t", "label": True},
    ]
    assert detect(file_of(tmp_path, rows)).labels == ["7", "true", "x"]
    with pytest.raises(PeftsmithError, match="more than 1000 different"):
        detect(file_of(tmp_path, [{"text": "t", "label": str(i)} for i in range(1200)]))


def test_nothing_readable(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("no\njson\n", encoding="utf-8")
    with pytest.raises(PeftsmithError, match="None of the 2 rows"):
        detect(path)


def test_own_columns(tmp_path):
    row = {"ticket": "a", "queue": 3}
    mapping = Mapping.of(text_column="ticket", label_column="queue")
    found = detect(file_of(tmp_path, [row]), mapping)
    assert found.labels == ["3"]
    assert formats.to_example(row, found.mapping) == Classified("a", "3")
    example = as_chat(formats.to_example(row, found.mapping), "Route it.")
    assert example.prompt == [system("Route it."), user("a")]
    assert example.completion == [assistant("3")]


def test_messages():
    turns = [user("a"), assistant("b"), user("c"), assistant("d")]
    example = to_example({"messages": turns}, "messages", system_prompt="s")
    assert example.prompt == [system("s"), *turns[:3]]
    assert example.completion == turns[3:]
    with_own = to_example({"messages": [system("own"), *turns]}, "messages", system_prompt="s")
    assert with_own.prompt[0] == system("own")


def test_prompt_completion_as_text_and_as_messages():
    assert to_example(PAIR, "prompt_completion").prompt == [user("a")]
    row = {"prompt": [system("s"), user("a")], "completion": [assistant("b")]}
    assert to_example(row, "prompt_completion", system_prompt="x").prompt == [system("s"), user("a")]
    assert to_example({**row, "completion": "b"}, "prompt_completion").completion == [assistant("b")]


def test_keys_that_are_none_are_dropped_and_others_kept():
    row = {"messages": [user("a"), {**assistant("b"), "reasoning_content": "r", "tool_calls": None}]}
    assert to_example(row, "messages").completion == [{**assistant("b"), "reasoning_content": "r"}]


@pytest.mark.parametrize(
    ("row", "format", "kind"),
    [
        ({"messages": "x"}, "messages", "shape"),
        ({"messages": ["x"]}, "messages", "shape"),
        ({"messages": []}, "messages", "empty"),
        ({"messages": [{"content": "a"}]}, "messages", "shape"),
        ({"messages": [user("a"), {"role": "assistant"}]}, "messages", "shape"),
        ({"messages": [user("a"), {"role": "bot", "content": "b"}]}, "messages", "role"),
        ({"messages": [user("a"), assistant("b"), user("c")]}, "messages", "ending"),
        ({"messages": [assistant("b")]}, "messages", "order"),
        ({"messages": [system("s"), assistant("b")]}, "messages", "order"),
        ({"messages": [user("a"), assistant("  ")]}, "messages", "empty"),
        ({"messages": [user(""), assistant("b")]}, "messages", "empty"),
        ({"messages": [user("a"), assistant(None)]}, "messages", "empty"),
        ({"messages": [user("a"), assistant(5)]}, "messages", "shape"),
        ({"messages": [user([{"type": "image"}]), assistant("b")]}, "messages", "unsupported"),
        ({"messages": [user("a"), {"role": "tool", "content": "b"}]}, "messages", "ending"),
        ({"messages": [user("a"), {**assistant("b"), "tool_calls": [{}]}]}, "messages", "shape"),
        ({**MESSAGES, "tools": ["f"]}, "messages", "shape"),
        ({"messages": [user("\ud800"), assistant("b")]}, "messages", "encoding"),
        ({"prompt": "a"}, "prompt_completion", "shape"),
        ({"prompt": "a", "completion": ""}, "prompt_completion", "empty"),
        ({"prompt": "a", "completion": [user("b")]}, "prompt_completion", "ending"),
        ({"text": "a"}, "classification", "empty"),
        ({"text": "a", "label": ""}, "classification", "empty"),
        ({"text": "a", "label": 0.5}, "classification", "label"),
        ({"text": "a", "label": ["b"]}, "classification", "shape"),
        ({"text": 5, "label": "b"}, "classification", "shape"),
        ({"text": " \n", "label": "b"}, "classification", "empty"),
    ],
)
def test_faults(row, format, kind):
    with pytest.raises(RowFault) as caught:
        to_example(row, format)
    assert caught.value.kind == kind
    assert str(caught.value)


def test_labels_of_the_plan():
    assert to_example(CLASS, "classification", labels=["b"]).completion == [assistant("b")]
    with pytest.raises(RowFault, match="not one of the plan's labels"):
        to_example(CLASS, "classification", labels=["c"])
