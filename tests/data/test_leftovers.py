"""What pipelines leave in rows by mistake, and what is meant to be there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftsmith.data import leftovers

WORDS = "the old river ran past a mill where nobody had worked since the war and children threw stones at gulls"


def test_markup():
    assert leftovers.markup("Yes,&nbsp;it is") == "&nbsp;"
    assert leftovers.markup("<p>Yes</p>") == "<p>"
    assert leftovers.markup('see <a href="x">this</a> <br/>') == "<br/>"
    for text in ("a < b and c > d", "R&D; AT&T", "`<p>` opens a paragraph", "<think>hm</think>", "List<String> names"):
        assert not leftovers.markup(text), text


def test_placeholders():
    for text in ("Dear {{name}},", "Dear {{ customer.name }},", "Hello [INSERT NAME]", "[Your Company Name] greets",
                 "{% if premium %}Thanks{% endif %}", "<YOUR ADDRESS>"):  # fmt: skip
        assert leftovers.placeholder(text), text
    for text in (r"\frac{{a}}{{b}}", "x^{{2}}", "{'a': {'b': 1}}", "[1] and [note 2]", "your name",
                 "{{ x }} is how Jinja prints x", "```\n{{ x }}\n```", "[your](https://a.example)"):  # fmt: skip
        assert not leftovers.placeholder(text), text


def test_excuses():
    for text in ("As an AI language model, I cannot", "I'm just an AI assistant", "Als KI-Sprachmodell kann ich",
                 "En tant qu'IA, je ne peux pas", "Como modelo de lenguaje, no puedo"):  # fmt: skip
        assert leftovers.excuse(text, text.lower()), text
    for text in ("An AI is a machine", "as a model of language", "como la casa", "training data is split in two"):
        assert not leftovers.excuse(text, text.lower()), text


@pytest.mark.parametrize("answer", ["N/A", "null", " None ", "nan", "TODO", "...", ".", "-"])
def test_nothing(answer):
    assert leftovers.holds_nothing(answer)


@pytest.mark.parametrize("answer", ["A", "7", "No", "はい", "nothing", "no error was found", "x" * 50])
def test_something(answer):
    assert not leftovers.holds_nothing(answer)


def test_loops():
    assert leftovers.repeats_itself("It works. " + "and then you press the button " * 20)
    assert leftovers.repeats_itself("好的。" + "我不知道" * 60)
    assert leftovers.repeats_itself(" ".join([WORDS, *["no"] * 200]))
    for text in (
        WORDS * 3,
        "ha ha ha ha",
        " ".join(map(str, range(300))),
        "0 0 1 0 " * 50,
        "、".join("あいうえおかきくけこさしすせそたちつてと" * 6),
    ):
        assert not leftovers.repeats_itself(text), text


@given(st.text(max_size=400))
def test_any_text(text):
    for look in (leftovers.markup, leftovers.placeholder):
        assert look(text) in text
    leftovers.holds_nothing(text)
    leftovers.repeats_itself(text)
