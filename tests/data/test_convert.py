"""Rows of every format as examples, and examples as rows again: what each public way of writing data becomes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftsmith.data import normal
from peftsmith.data.convert import as_chat, to_example
from peftsmith.data.examples import Answered, Chat, Classified, Judged, Pair, Plain, Preference, Tagged
from peftsmith.data.faults import RowFault
from peftsmith.data.formats import detect
from peftsmith.data.mapping import FIELDS, Mapping
from peftsmith.errors import PeftsmithError

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def called(**arguments):
    return {"type": "function", "function": {"name": "weather", "arguments": arguments}}


U, A = say("user", "u"), say("assistant", "a")
B = say("assistant", "b")
# (row, format that is detected, how sure, example)
CASES = {
    "messages": ({"messages": [U, A]}, "messages", 1, Chat([U], [A])),
    "parts": (
        {"messages": [say("user", [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]), A]},
        "messages", 1, Chat([say("user", "one two")], [A]),
    ),
    "reasoning": (
        {"messages": [U, {**A, "reasoning_content": "r", "thinking": None}]},
        "messages", 1, Chat([U], [{**A, "reasoning_content": "r"}]),
    ),
    "OpenAI tools": (
        {
            "messages": [
                U,
                {"role": "assistant", "content": None, "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
                ]},
                say("tool", "7 degrees", tool_call_id="c1"),
                A,
            ],
            "tools": [WEATHER],
        },
        "messages", 1,
        Chat(
            [U],
            [
                say("assistant", "", tool_calls=[{"id": "c1", **called(city="Oslo")}]),
                say("tool", "7 degrees", tool_call_id="c1"),
                A,
            ],
            [WEATHER],
        ),
    ),
    "older functions": (
        {"messages": [U, {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": ""}},
                      say("function", "7", name="weather"), A]},
        "messages", 1,
        Chat([U], [say("assistant", "", tool_calls=[called()]), say("tool", "7", name="weather"), A]),
    ),
    "a call at the end": (
        {"messages": [U, say("assistant", "", tool_calls=[called(a=1)])]},
        "messages", 1, Chat([U], [say("assistant", "", tool_calls=[called(a=1)])]),
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}], "system": "s", "id": 3},
        "sharegpt", 1, Chat([say("system", "s"), U], [A]),
    ),
    "ShareGPT with tools": (
        {
            "conversations": [
                {"from": "human", "value": "u"},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
                {"from": "observation", "value": "7"},
                {"from": "gpt", "value": "a"},
            ],
            "tools": json.dumps([WEATHER]),
            "system": "",
        },
        "sharegpt", 1,
        Chat([U], [say("assistant", "", tool_calls=[called(city="Oslo")]), say("tool", "7"), A], [WEATHER]),
    ),
    "conversations with roles": ({"conversations": [U, A]}, "sharegpt", 1, Chat([U], [A])),
    "Alpaca": (
        {"instruction": "i", "input": "x", "output": "a", "system": "s", "history": [["u", "b"]]},
        "alpaca", 1, Chat([say("system", "s"), U, B, say("user", "i\nx")], [A]),
    ),
    "Alpaca without input": (
        {"instruction": "u", "input": "", "output": "a", "text": "Below is"}, "alpaca", 1, Chat([U], [A]),
    ),
    "prompt and completion": ({"prompt": "u", "completion": "a"}, "prompt_completion", 1, Chat([U], [A])),
    "as messages": ({"prompt": [U], "completion": [A]}, "prompt_completion", 1, Chat([U], [A])),
    "prompt and response": ({"prompt": "u", "response": "a"}, "prompt_completion", 1, Chat([U], [A])),
    "instruction and response": (
        {"instruction": "i", "context": "x", "response": "a", "category": "qa"},
        "alpaca", 1, Chat([say("user", "i\nx")], [A]),
    ),
    "text and summary": ({"text": "s", "summary": "t", "title": "x"}, "seq2seq", 1, Pair("s", "t")),
    "input and output": ({"input": "s", "output": "t"}, "seq2seq", 0.5, Pair("s", "t")),
    "text": ({"text": "<|im_start|>user\nu<|im_end|>", "url": "x"}, "text", 1,
             Plain("", "<|im_start|>user\nu<|im_end|>")),
    "preference": ({"prompt": "u", "chosen": "a", "rejected": "b"}, "preference", 1, Preference("u", "a", "b")),
    "preference as messages": (
        {"prompt": [U], "chosen": [A], "rejected": [B]}, "preference", 1, Preference([U], [A], [B]),
    ),
    "implicit prompt": ({"chosen": [U, A], "rejected": [U, B]}, "preference", 1, Preference([U], [A], [B])),
    "prompt as text, whole conversations": (
        {"prompt": "u", "chosen": [U, A], "rejected": [U, B], "messages": [U, A]},
        "preference", 1, Preference([U], [A], [B]),
    ),
    "implicit prompt as text": (
        {"chosen": "Human: hello there Assistant: good", "rejected": "Human: hello there Assistant: go away"},
        "preference", 1, Preference("Human: hello there Assistant:", " good", " go away"),
    ),
    "ShareGPT preference": (
        {"conversations": [{"from": "human", "value": "u"}], "chosen": {"from": "gpt", "value": "a"},
         "rejected": {"from": "gpt", "value": "b"}},
        "preference", 1, Preference([U], [A], [B]),
    ),
    "system and question": (
        {"system": "s", "question": "u", "chosen": "a", "rejected": "b"},
        "preference", 1, Preference([say("system", "s"), U], [A], [B]),
    ),
    "KTO": ({"prompt": "u", "completion": "a", "label": True}, "kto", 1, Judged("u", "a", True)),
    "KTO with 0": ({"prompt": [U], "completion": [A], "label": 0}, "kto", 1, Judged([U], [A], False)),
    "KTO out of CSV": ({"prompt": "u", "completion": "a", "label": "True"}, "kto", 1, Judged("u", "a", True)),
    "classes": ({"text": "t", "label": "x"}, "classification", 1, Classified("t", "x")),
    "number": ({"sentence": "t", "label": 3, "idx": 0}, "classification", 1, Classified("t", "3")),
    "yes or no": ({"text": "t", "label": False}, "classification", 1, Classified("t", "false")),
    "premise": ({"premise": "p", "hypothesis": "h", "label": 1}, "classification", 1, Classified("p", "1", "h")),
    "two sentences": ({"sentence1": "p", "sentence2": "h", "label": 1}, "classification", 1, Classified("p", "1", "h")),
    "text and text2": ({"text": "p", "text2": "h", "label": "x"}, "classification", 1, Classified("p", "x", "h")),
    "tags": ({"tokens": ["a", "b"], "ner_tags": ["O", "B"]}, "token_classification", 1, Tagged(["a", "b"], ["O", "B"])),
    "numbers as tags": ({"tokens": ["a"], "tags": [4]}, "token_classification", 1, Tagged(["a"], ["4"])),
    "source": ({"source": "s", "target": "t"}, "seq2seq", 1, Pair("s", "t")),
    "article": ({"article": "s", "highlights": "t"}, "seq2seq", 1, Pair("s", "t")),
    "dialogue": ({"dialogue": "s", "summary": "t", "topic": "x"}, "seq2seq", 1, Pair("s", "t")),
    "question": ({"question": "q", "context": "c", "answer": "t"}, "seq2seq", 0.5, Pair("c\nq", "t")),
    "SQuAD": (
        {"question": "q", "context": "ctu", "answers": {"text": ["t", "u"], "answer_start": [1, 2]}},
        "question_answering", 1, Answered("q", "ctu", ["t", "u"], [1, 2]),
    ),
    "SQuAD, no answer": (
        {"question": "q", "context": "c", "answers": {"text": [], "answer_start": []}},
        "question_answering", 1, Answered("q", "c", [], []),
    ),
    "SQuAD, answers as objects": (
        {"question": "q", "context": "ct", "answers": [{"text": "t", "answer_start": 1}], "id": "7"},
        "question_answering", 1, Answered("q", "ct", ["t"], [1]),
    ),
    "answer beside its start": (
        {"question": "q", "context": "ct", "answer": "t", "answer_start": "1"},
        "question_answering", 1, Answered("q", "ct", ["t"], [1]),
    ),
    "no answer beside no start": (
        {"question": "q", "context": "ct", "answer": None, "answer_start": None},
        "question_answering", 1, Answered("q", "ct", [], []),
    ),
    "translation": ({"translation": {"de": "s", "en": "t"}}, "seq2seq", 0.5, Pair("s", "t")),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_a_row_becomes(tmp_path, case):
    row, format, sure, example = CASES[case]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    found = detect(path)
    assert (found.format, found.confidence) == (format, sure), found.reason
    assert to_example(row, found.mapping) == example


@pytest.mark.parametrize("case", CASES)
def test_normalised_rows_are_read_back_as_the_same_example(tmp_path, case):
    _, format, _, example = CASES[case]
    written = json.loads(json.dumps(normal.to_row(example, format)))
    assert to_example(written, normal.mapping_of(format)) == example
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(written) + "\n", encoding="utf-8")
    assert detect(path).format == normal.mapping_of(format).format


word = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip)
user, assistant = st.builds(say, st.just("user"), word), st.builds(say, st.just("assistant"), word)
turns = st.lists(st.tuples(user, assistant), min_size=1, max_size=3).map(
    lambda pairs: [m for pair in pairs for m in pair]
)
tools = st.none() | st.just([WEATHER])
chat = st.builds(lambda t, s: Chat(t[:-1], t[-1:], s), turns, tools)
sides = st.tuples(word, word, word) | st.tuples(
    st.lists(user, min_size=1, max_size=1), st.lists(assistant, min_size=1, max_size=1),
    st.lists(assistant, min_size=1, max_size=1),
)  # fmt: skip
EXAMPLES = {
    "messages": chat,
    "prompt_completion": chat,
    "text": st.builds(Plain, word | st.just(""), word),
    "preference": sides.filter(lambda s: s[1] != s[2]).map(lambda s: Preference(*s)),
    "kto": st.builds(lambda s, label: Judged(s[0], s[1], label), sides, st.booleans()),
    "classification": st.builds(Classified, word, word, st.none() | word),
    "token_classification": st.lists(st.tuples(word, word), min_size=1, max_size=4).map(
        lambda pairs: Tagged([a for a, _ in pairs], [b for _, b in pairs])
    ),
    "question_answering": st.tuples(word, word, st.integers(0, 9)).map(
        lambda made: Answered(made[0], f"x{made[1]}", *([[made[1]], [1]] if made[2] else [[], []]))
    ),
    "seq2seq": st.builds(Pair, word, word),
}


@pytest.mark.parametrize("format", EXAMPLES)
@given(data=st.data())
def test_any_example_survives_being_written_and_read(format, data):
    example = data.draw(EXAMPLES[format])
    row = json.loads(json.dumps(normal.to_row(example, format), ensure_ascii=False))
    assert to_example(row, normal.mapping_of(format)) == example


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "content", "from", "value", "tool_calls", "function", "name", "arguments", "type",
                         "text", "translation", "de"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
columns = sorted({column for each in FIELDS.values() for usual in each.names().values() for column in usual})


@given(row=st.dictionaries(st.sampled_from(columns), anything, max_size=5), format=st.sampled_from(sorted(FIELDS)))
def test_any_row_is_an_example_or_a_fault(row, format):
    try:
        example = to_example(row, Mapping(format))
        normal.to_row(example, format)
        as_chat(example, "s")
    except RowFault as fault:
        assert fault.kind and str(fault)


def squad(context, answer, start):
    return {"question": "q", "context": context, "answers": {"text": [answer], "answer_start": [start]}}


FAULTS = {
    "no call before the result": ("messages", {"messages": [U, say("tool", "x"), A]}, "order"),
    "arguments are no JSON": (
        "messages",
        {"messages": [U, say("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": "{"}}])]},
        "shape",
    ),
    "arguments are no object": (
        "messages",
        {"messages": [U, say("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": "[1]"}}])]},
        "shape",
    ),
    "tools are no JSON": ("sharegpt", {"conversations": [U, A], "tools": "[{"}, "shape"),
    "ShareGPT ends with a person": ("sharegpt", {"conversations": [U, A, U]}, "ending"),
    "unknown role": ("sharegpt", {"conversations": [{"from": "narrator", "value": "x"}, A]}, "role"),
    "history is flat": ("alpaca", {"instruction": "a", "output": "b", "history": ["x"]}, "shape"),
    "no output": ("alpaca", {"instruction": "a", "output": ""}, "empty"),
    "same answers": ("preference", {"prompt": "u", "chosen": "a", "rejected": "a"}, "shape"),
    "nothing shared": ("preference", {"chosen": "ab", "rejected": "cd"}, "empty"),
    "no question": ("preference", {"chosen": [A], "rejected": [B]}, "order"),
    "no verdict": ("kto", {"prompt": "u", "completion": "a", "label": None}, "empty"),
    "a grade": ("kto", {"prompt": "u", "completion": "a", "label": 3}, "label"),
    "second text missing": ("classification", {"text": "t", "text2": None, "label": "x"}, "empty"),
    "fewer tags": ("token_classification", {"tokens": ["a", "b"], "tags": ["O"]}, "shape"),
    "no tokens": ("token_classification", {"tokens": [], "tags": []}, "empty"),
    "answer elsewhere": ("question_answering", squad("the parcel came", "parcel", 5), "answer"),
    "answer nowhere": ("question_answering", squad("the parcel came", "letter", 4), "answer"),
    "answer before the start": ("question_answering", squad("the parcel came", "came", -4), "answer"),
    "bytes": ("question_answering", squad("Zürich ist groß", "groß", 12), "units"),
    "UTF-16 units": ("question_answering", squad("🙂 is a smile", "smile", 8), "units"),
    "more starts": (
        "question_answering",
        {"question": "q", "context": "c", "answers": {"text": ["c"], "answer_start": [0, 0]}},
        "shape",
    ),
    "blank answer": ("question_answering", squad("a b", " ", 1), "empty"),
    "no answer": ("seq2seq", {"question": "q", "answers": {"text": []}}, "shape"),
    "no text": ("text", {"text": " "}, "empty"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults(case):
    format, row, kind = FAULTS[case]
    with pytest.raises(RowFault) as caught:
        to_example(row, Mapping(format))
    assert caught.value.kind == kind


def test_a_stated_mapping_wins(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"question": "u", "answer": "a", "meta": {"who": "bot"}, "translation": {"de": "d", "en": "e"}}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    chats = detect(path, Mapping.of(columns={"prompt": "question", "completion": "answer"}))
    assert (chats.format, chats.confidence) == ("prompt_completion", 1.0)
    assert to_example(row, chats.mapping) == Chat([U], [A])
    plain = detect(path, Mapping.of("text", {"prompt": "question", "text": "answer"}))
    assert to_example(row, plain.mapping) == Plain("u", "a")
    other = detect(path, Mapping.of("seq2seq", {"source": "translation.en", "target": "translation.de"}))
    assert other.confidence == 1.0 and to_example(row, other.mapping) == Pair("e", "d")
    with pytest.raises(PeftsmithError, match="do not have kto"):
        detect(path, Mapping.of("kto"))
    with pytest.raises(PeftsmithError, match="absent"):
        detect(path, Mapping.of("text", {"text": "absent"}))
    with pytest.raises(PeftsmithError, match="lacks the field 'chosen'"):
        Mapping.of("text", {"chosen": "x"})
    with pytest.raises(PeftsmithError, match="the role 'bot'"):
        Mapping.of("messages", roles={"x": "bot"})


def test_roles_and_label_names():
    mapping = Mapping.of("messages", roles={"Kunde": "user", "Bot": "assistant"})
    row = {"messages": [say("Kunde", "u"), say("Bot", "a")]}
    assert to_example(row, mapping) == Chat([U], [A])
    tags = Mapping.of("token_classification", label_names=("O", "B"))
    assert to_example({"tokens": ["a", "b"], "tags": [1, 0]}, tags) == Tagged(["a", "b"], ["B", "O"])
    for number in (2, -1):
        with pytest.raises(RowFault, match="only 2 names"):
            to_example({"tokens": ["a"], "tags": [number]}, tags)
    with pytest.raises(RowFault, match="not one of the plan's labels"):
        to_example({"tokens": ["a"], "tags": [0]}, tags, labels=["B"])


def test_a_class_as_a_chat():
    assert as_chat(Classified("t", "x"), "s") == Chat([say("system", "s"), say("user", "t")], [say("assistant", "x")])
    assert as_chat(Classified("t", "x", "v")).prompt == [say("user", "t\n\nv")]
    assert as_chat(Chat([say("system", "own"), U], [A]), "s").prompt[0] == say("system", "own")
    assert as_chat(Plain("", "x")) is None


def test_a_plan_states_the_mapping():
    from peftsmith.plan_parts import Data

    data = Data(train="a.jsonl", format="prompt_completion", columns={"prompt": "q"}, roles={"bot": "assistant"})
    assert Mapping.of_plan(data) == Mapping("prompt_completion", {"prompt": "q"}, {"bot": "assistant"})
    older = Data(train="a.csv", format="classification", text_column="ticket", label_column="queue")
    assert Mapping.of_plan(older).columns == {"text": "ticket", "label": "queue"}


CHATS = {"train": "a.jsonl", "format": "messages"}
CLASSES = {"train": "a.csv", "format": "classification"}


@pytest.mark.parametrize(
    ("data", "row", "word"),
    [
        (CHATS, {"messages": [U, {**A, "tool_calls": None}]}, ""),
        (CHATS, {"messages": [U, A], "tools": [WEATHER]}, "tools"),
        (CHATS, {"messages": [say("user", [{"type": "text", "text": "u"}]), A]}, "prepare_dataset"),
        ({**CHATS, "roles": {"bot": "assistant"}}, {"messages": [U, say("bot", "a")]}, "prepare_dataset"),
        ({**CHATS, "format": "sharegpt"}, {"conversations": [U, A]}, "prepare_dataset"),
        ({**CHATS, "format": "prompt_completion"}, {"prompt": "u", "completion": [A]}, ""),
        (
            {**CHATS, "format": "prompt_completion", "columns": {"prompt": "q"}},
            {"q": "u", "completion": "a"},
            "prepare_dataset",
        ),
        (CLASSES, {"text": "t", "label": 3}, ""),
        ({**CLASSES, "text_column": "body"}, {"body": "t", "label": "x"}, ""),
        ({**CLASSES, "label_names": ["no", "yes"]}, {"text": "t", "label": 1}, "prepare_dataset"),
        (CLASSES, {"premise": "t", "hypothesis": "u", "label": 1}, "prepare_dataset"),
        ({**CHATS, "format": "question_answering"}, squad("ab", "b", 1), ""),
        (
            {**CHATS, "format": "question_answering"},
            {"question": "q", "context": "ab", "answer": "b", "answer_start": 1},
            "prepare_dataset",
        ),
        ({**CHATS, "format": "kto"}, {"prompt": "u", "completion": "a", "label": 1}, ""),
    ],
)
def test_what_generated_scripts_would_not_see_alike(data, row, word):
    from peftsmith.plan_parts import Data

    stated = Data(**data)
    reason = normal.unprepared(row, to_example(row, Mapping.of_plan(stated)), stated)
    assert word in reason and bool(word) == bool(reason)
