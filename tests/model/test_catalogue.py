"""The committed catalogue: how fast it is read, what an entry holds, and how widths are worked out."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest

from peftsmith.model import catalogue
from peftsmith.model.modules import KINDS


def entries():
    for kind in catalogue.types():
        for task in catalogue.tasks(kind):
            entry = catalogue.entry(kind, task)
            assert entry is not None
            yield entry


def rows_of(entry):
    yield from entry["modules"].values()
    for patch in entry["patches"].values():
        yield from patch["set"].values()


def test_at_least_a_hundred_types_are_complete():
    complete = {entry["key"].partition(":")[0] for entry in entries() if entry["complete"]}
    assert len(complete) >= 100


def test_an_entry_is_read_in_milliseconds():
    catalogue.entry("llama", "causal-lm")
    began = time.process_time()
    catalogue.entry("qwen3_next", "causal-lm")
    assert time.process_time() - began < 0.05


def test_the_whole_catalogue_is_indexed_in_a_quarter_second():
    catalogue._lines.cache_clear()
    began = time.process_time()
    assert len(catalogue.types()) >= 150
    assert time.process_time() - began < 0.25


def test_every_entry_is_of_one_form():
    for entry in entries():
        assert {"key", "architecture", "modules", "containers", "tied", "stacks", "patches", "fields", "aliases",
                "complete", "missing"} <= entry.keys(), entry["key"]  # fmt: skip
        assert all(row[0] in KINDS for row in rows_of(entry)), entry["key"]
        assert entry["complete"] == (not entry["missing"]), entry["key"]


def test_what_a_complete_entry_needs_is_in_it():
    """Every formula reads fields that have a default, and every stack of layers has a rule."""
    for entry in entries():
        if not entry["complete"]:
            continue
        read = {
            name for _, _, shapes, *_ in rows_of(entry) for dims in shapes.values() for text in dims
            for name in catalogue.fields_in(text)
        }  # fmt: skip
        assert read <= entry["fields"].keys(), entry["key"]
        assert all(name.partition("|")[0] in entry["stacks"] for name in entry["modules"] if "|" in name), entry["key"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("heads*dim+2*kv*dim", 128),
        ("3*dim/heads", 12),
        ("7", 7),
        ("dim/heads/kv", 2),
        ("-1*kv+dim", 14),
        ("kv/heads", Fraction(1, 2)),
    ],
)
def test_formulas(text, expected):
    assert catalogue.width(text, {"heads": 4, "kv": 2, "dim": 16}.__getitem__) == expected


def test_the_fields_of_a_formula():
    assert catalogue.fields_in("heads*text_config.dim+2*kv/4") == {"heads", "text_config.dim", "kv"}


def test_what_is_not_there_is_none():
    assert catalogue.entry("own", "causal-lm") is None and catalogue.tasks("own") == ()
    assert catalogue.entry("llama", "image-text") is None
