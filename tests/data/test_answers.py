"""Questions about a context: windows, the places of answers in them, and what is wrong with whole sets."""

from __future__ import annotations

import json

import pytest

from peftsmith.data import audit, proof, show
from peftsmith.data.examples import Answered
from peftsmith.data.formats import detect, to_example
from peftsmith.data.labels import QuestionTooLong, Row, Settings, rows_of
from peftsmith.data.rendering import Renderer
from peftsmith.data.supervision import Supervision

CONTEXT = "the parcel never came and the money was taken twice, please send it back to me"


@pytest.fixture(scope="module")
def renderer(tiny_model):
    return Renderer.load(tiny_model)


def windows(renderer, example, **settings):
    return rows_of(renderer, [example], Settings("answers", **settings))[0]


def asked(answer, context=CONTEXT, question="what was taken"):
    return Answered(question, context, [answer], [context.index(answer)])


def told(renderer, row, example):
    """The words that the labels of a window point at."""
    return renderer.files.tokenizer.decode(row.ids[row.values[0] : row.values[1] + 1]).strip()


@pytest.mark.parametrize("answer", ["the parcel", "money", "back to me", "twice", CONTEXT, " money "])
def test_one_window_points_at_the_answer(renderer, answer):
    (row,) = windows(renderer, asked(answer), max_length=None)
    assert told(renderer, row, answer) == answer.strip()
    assert row.start == row.values[0]


@pytest.mark.parametrize("stride", [0, 4, 8])
def test_windows_cover_the_context_and_overlap(renderer, stride):
    example = asked("twice")
    (whole,) = windows(renderer, example, max_length=None)
    size = len(whole.ids) - 6
    made = windows(renderer, example, max_length=size, stride=stride)
    assert len(made) > 1
    assert all(isinstance(row, Row) and len(row.ids) <= size and row.length == len(whole.ids) for row in made)
    question = len(renderer.files.tokenizer.encode(example.question).ids)
    bodies = [row.ids[question:] for row in made]
    joined = bodies[0] + [token for body in bodies[1:] for token in body[stride:]]
    assert joined == whole.ids[question:]
    for row in made:
        assert (row.values == [0, 0]) if row.start is None else told(renderer, row, example) == "twice"


def test_a_question_without_room_is_named(renderer):
    (row,) = windows(renderer, asked("twice", question="what " * 40), max_length=44, stride=8)
    assert isinstance(row, QuestionTooLong)
    assert "places of 44" in row.cause


def test_what_a_proof_says_of_answers(renderer):
    settings = Settings("answers", max_length=24, stride=6, max_answer_tokens=2, unanswerable=False)
    seen = Supervision(renderer, settings)
    examples = [
        asked("please send it"),
        asked(CONTEXT),
        Answered("q", CONTEXT, [], []),
        asked("me", question="w " * 30),
    ]
    for number, example in enumerate(examples, start=1):
        seen.add(number, example, rows_of(renderer, [example], settings)[0])
    found = {each.id: each for each in seen.findings()}
    assert found["data.answers.long"].evidence["patch"] == {"training.max_answer_tokens": 10}
    assert found["data.answers.unsaid"].evidence["patch"] == {"data.unanswerable": True}
    assert found["data.answers.lost"].evidence["rows"] == [2]
    assert found["data.answers.question_long"].evidence["rows"] == [4]
    assert (seen.kept, seen.stopped_at) == (3, 4)
    assert seen.lengths.summary()["max"] > 24, "a row is as long as its whole context"


def write(path, examples):
    rows = [
        {"question": q, "context": c, "answers": {"text": a, "answer_start": s}}
        for q, c, a, s in (vars(each).values() for each in examples)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_an_audit_counts_question_and_context(tmp_path, tiny_model, renderer):
    examples = [asked("twice"), asked("the parcel", question="what never came")]
    report = audit.audit(write(tmp_path / "rows.jsonl", examples), model=str(tiny_model), max_length=24)
    lengths = [windows(renderer, each, max_length=None)[0].length for each in examples]
    assert report.tokens["max"] == max(lengths)
    assert report.tokens["total"] == sum(lengths)
    assert report.truncated_rows == 0, "a long context is read in windows"
    assert report.format == "question_answering"


def test_windows_are_shown_with_what_they_hold(tmp_path, tiny_model):
    path = write(tmp_path / "rows.jsonl", [asked("the parcel")])
    shown = show.show(path, tiny_model, max_length=24)
    assert [any(piece.trained and "parcel" in piece.text for piece in row.pieces) for row in shown.rows] == [
        True,
        *[False] * (len(shown.rows) - 1),
    ]
    assert "no answer here" in shown.rows[-1].note


def test_a_proof_needs_no_environment_to_count(tmp_path, tiny_model):
    path = write(tmp_path / "rows.jsonl", [asked("the parcel"), asked("twice")])
    mapping = detect(path).mapping
    source = proof.Source(path, lambda row: to_example(row, mapping))
    made = proof.prove(source, tiny_model, Settings("answers", max_length=24, stride=6), None)
    assert made.state == "unknown"
    assert made.counts["kept"] == 2
    assert "parcel" in made.shown[0]["trained"][0]
