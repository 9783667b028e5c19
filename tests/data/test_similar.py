"""Near duplicates: the estimate against the true similarity, what is found, and what is left alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftsmith.data.part import Part
from peftsmith.data.similar import LEAST, Lookup, keep, kept, like_rows, sketch
from peftsmith.data.views import View

JAPANESE = "注文の品がまだ届かないが配送状況を確認し私の携帯に連絡を頂けますか。" + "それと領収書の宛名の直し方も早めに"
VOCABULARY = [f"w{number}" for number in range(3000)]


def row(asked, answer=""):
    return View(asked, answer, f"{asked}\n{answer}")


def put(part, made):
    """Keep a sketch under the next number, from 0 on."""
    number = part.usable
    part["numbers"].append(number)
    keep(part, number, made)
    return number


def words(draw, size):
    return draw.choices(VOCABULARY, k=size)


def edited(draw, text, edits):
    changed = list(text)
    for place in draw.sample(range(len(changed)), edits):
        changed[place] = draw.choice(VOCABULARY)
    return changed


def shingles(text):
    return set(zip(text, text[1:], text[2:], strict=False))


def similarity(one, other):
    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second)


def test_recall_and_precision():
    """Of pairs well above 0.8 nearly all are found, of pairs well below nearly none."""
    draw = random.Random(5)
    above = found = below = alarms = 0
    for _ in range(1500):
        one = words(draw, draw.randint(30, 300))
        other = edited(draw, one, draw.randint(0, len(one) // 10))
        true = similarity(one, other)
        rows = Part()
        for text in (one, other):
            put(rows, sketch(row(" ".join(text), "yes")))
        hit = bool(like_rows(rows))
        if true >= 0.9:
            above, found = above + 1, found + hit
        elif true <= 0.6:
            below, alarms = below + 1, alarms + hit
    assert above > 200 and below > 100
    assert found / above > 0.97
    assert alarms / below < 0.03


def test_many_rows_in_one_set():
    draw = random.Random(6)
    texts = [words(draw, 60) for _ in range(2000)]
    rows = Part()
    for text in texts:
        put(rows, sketch(row(" ".join(text), "an answer")))
    assert like_rows(rows) == {}
    places = {
        put(rows, sketch(row(" ".join(edited(draw, texts[number], 1)), "an answer"))): number for number in range(50)
    }
    found = like_rows(rows)
    assert len(found) >= 45
    assert all(places[place] == earlier for place, earlier in found.items())


def test_questions_about_one_text_differ_by_their_answers():
    passage = " ".join(words(random.Random(7), 200))
    rows = Part()
    put(rows, sketch(row(f"{passage} who came first?", "the woman with the dog")))
    put(rows, sketch(row(f"{passage} who came last?", "nobody knows that")))
    assert like_rows(rows) == {}
    put(rows, sketch(row(f"{passage} who came at first?", "The woman with  the DOG")))
    assert like_rows(rows) == {2: 0}


@pytest.mark.parametrize(
    ("one", "other", "like"),
    [
        ("How do I reset my iPhone?", "How do I reset my Android?", False),
        ("HOW do i reset  my iPhone?", "How do I reset my iPhone?", True),
        ("yes", "no", False),
        ("", "", True),
        (f"{JAPANESE}教えてください", f"{JAPANESE}教えて下さい", True),
        ("電池を交換する方法を教えてください", "住所を変更する方法を教えてください", False),
    ],
)  # fmt: skip
def test_pairs(one, other, like):
    assert sketch(row(one)).like(sketch(row(other))) == like


def test_lookup():
    split = Lookup()
    split.add(3, sketch(row("where is the parcel that I ordered on Monday", "on its way")))
    assert split.find(sketch(row("Where is the parcel that I ordered on MONDAY", "On its way"))) == 3
    assert split.find(sketch(row("where is the parcel that I ordered on Monday", "lost"))) is None
    assert split.find(sketch(row("something else", "on its way"))) is None


@given(st.text(max_size=200), st.text(max_size=60))
def test_every_row_is_like_itself(asked, answer):
    own = sketch(row(asked, answer))
    assert own == sketch(row(asked, answer))
    assert own.like(own)
    rows = Part()
    assert put(rows, own) == 0
    assert [list(side) for side in kept(rows, 0)[:2]] == [own.asked, own.answer]
    assert own.like(kept(rows, 0)) and LEAST <= 1
