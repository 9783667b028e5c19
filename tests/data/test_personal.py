"""Personal data: found by its check digits in several countries' forms, and not in what only looks like it."""

from __future__ import annotations

import random
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftsmith.data import personal

FOUND = {
    "e-mail address": ["write to klara.vogelsang@posteo.de", "a+b@mail.example-shop.co.uk!", "<j.r@uni-x.edu>"],
    "IBAN": ["DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819", "to FR14 2004 1010 0505 0001 3M02 606, please"],
    "payment card": ["4539 1488 0343 6467", "5500-0055-5555-5559", "paid with 371449635398431.", "3714 496353 98431"],
    "US social security number": ["my number is 536-22-8726."],
    "phone number": ["+49 30 9018 2247", "(212) 664-7665", "212-664-7665", "01 42 68 53 00", "Tel. 030/90182247"],
    "French social security number": ["1 84 12 76 451 089 46", "184127645108946"],
    "Spanish identity number": ["DNI 12345678Z", "X1234567L"],
    "Italian tax code": ["RSSMRA85T10A562S"],
    "German tax number": ["Steuer-ID 86095742719", "Steueridentifikationsnummer: 86 095 742 719"],
    "Dutch citizen number": ["BSN 111222333"],
    "British insurance number": ["AB 12 34 56 C", "NI number AB123456C"],
}
NOT_FOUND = [
    "info@shop.de, you@example.com, git@github.com:a/b.git, @decorator and 5 @ 3 euros",
    "DE89 3704 0044 0532 0130 01",
    "4539 1488 0343 6468 and 1234 5678 9012 3456",
    "on 2026-11-25 at 10:22:31, 1,234,567.89 euros, 978-3-16-148410-0, 192.168.17.44",
    "pi is 3.14159265358979323846, e is 2.718281828459045",
    "commit 4f2a91c0de4f2a91c0de4f2a91c0de4f2a91c0de, sha 86095742719",
    "order 123456789, order 111222333, tracking 00340434161094015902",
    "12345678A and AB123456C without a word, part no. 12 34 56",
    "+1 (555) 010-0123, 0123-456789-x, 1-2-3-4-5-6-7-8-9",
    "555-0100, 2024-2025-2026, 10.1038/s41586-020-2649-2, 1000-2000-3000",
    "x = 123456789012345678901234567890; y = 0x7fffffff; z = 1e-10",
    "RSSMRA85T10A562T, GHIJKL00A00A000A",
]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FOUND.items() for text in texts])
def test_found(kind, text):
    assert personal.kinds(text) == [kind]
    assert personal.kinds(f"Zuerst einmal: {text} (danke)") == [kind]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_not_found(text):
    assert personal.kinds(text) == []


def test_false_alarms_among_random_numbers():
    """Of numbers of any length and grouping fewer than one in a hundred looks like somebody's."""
    draw = random.Random(3)
    texts = []
    for _ in range(4000):
        digits = "".join(draw.choices(string.digits, k=draw.randint(5, 20)))
        grouped = re.sub(r"(\d{3})(?=\d)", rf"\1{draw.choice(['', '', ',', '.', '_'])}", digits)
        texts.append(f"{draw.choice(['order', 'part', 'lot', 'id', 'row'])} {grouped} is ready")
    assert sum(bool(personal.kinds(text)) for text in texts) < 40


def test_addresses():
    assert personal.addresses("the server at 84.17.52.201 was down")
    for text in (
        "192.168.0.1",
        "10.0.0.1",
        "203.0.113.9",
        "version 1.2.3.4",
        "127.0.0.1",
        "999.1.1.1",
        "1.2.3.4.5",
        "1.2.3",
    ):
        assert not personal.addresses(text), text


@given(st.text(max_size=300))
def test_any_text(text):
    assert set(personal.kinds(text)) <= set(FOUND)
    personal.addresses(text)
