"""data show: brackets and colour in a terminal, and a page that data cannot take over."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftsmith import cli
from peftsmith.data import show, show_html, show_terminal
from peftsmith.data.mapping import Mapping
from peftsmith.data.show import Piece, Shown, ShownRow
from peftsmith.errors import PeftsmithError
from tests.credentials import make
from tests.data.random_rows import LABELS, TOOLS

INJECTED = [
    "<script>alert(1)</script>",
    "</pre></article><img src=x onerror=alert(1)>",
    "\u202etxet edisthgir\u202c",
    '"><svg onload=alert(1)>',
    "]]><!-- ",
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chats(*contents):
    return [
        {"messages": [{"role": "user", "content": each}, {"role": "assistant", "content": f"so {each}"}]}
        for each in contents
    ]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.marked: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        self.text.append(data)
        if "mark" in self._open:
            self.marked.append(data)


def read(page):
    tags = Tags()
    tags.feed(page)
    return tags


def test_trained_text_is_set_apart(tmp_path, tiny_model):
    path = write(tmp_path / "r.jsonl", chats("where is it", "Straße מרחבה 日本", "where is it"))
    seen = show.show(path, tiny_model, rows=2)
    assert [row.number for row in seen.rows] == [1, 2]
    for row, content in zip(seen.rows, ("where is it", "Straße מרחבה 日本"), strict=True):
        trained = "".join(piece.text for piece in row.pieces if piece.trained)
        assert trained == f"so {content}<|im_end|>\n"
        assert "".join(piece.text for piece in row.pieces).startswith(f"<|im_start|>user\n{content}<|im_end|>")
    assert seen.duplicates == [[1, 3]]
    assert sum(count for _, _, count in seen.histogram) == 3
    assert seen.counts["share_trained"] == pytest.approx(
        seen.counts["trained_tokens"] / seen.counts["tokens"], abs=1e-4
    )


@pytest.mark.parametrize("loss", ["answer", "all", "assistant"])
def test_where_the_loss_lies_is_a_choice(tmp_path, tiny_model, loss):
    seen = show.show(write(tmp_path / "r.jsonl", chats("a b c")), tiny_model, loss=loss)
    if loss == "assistant":  # the tiny model's template marks nothing
        assert seen.rows[0].note.startswith("the trainer stops here")
        assert "data.mask.no_generation" in {each.id for each in seen.findings}
    else:
        assert (seen.rows[0].trained_tokens == seen.rows[0].tokens) == (loss == "all")


def test_every_kind_of_row_is_shown(tmp_path, tiny_model):
    kinds = {
        "preference": {"prompt": "a", "chosen": "b", "rejected": "c"},
        "kto": {"prompt": "a", "completion": "b", "label": True},
        "text": {"text": "only text"},
        "classification": {"text": "a text", "label": LABELS[1]},
        "tags": {"tokens": ["the", "parcel"], "tags": ["O", "B"]},
        "seq2seq": {"source": "read this", "target": "write that"},
        "tools": {**chats("with tools")[0], "tools": TOOLS},
    }
    for name, row in kinds.items():
        seen = show.show(write(tmp_path / f"{name}.jsonl", [row, {**row}]), tiny_model)
        assert seen.rows, name
        assert any(piece.trained for piece in seen.rows[0].pieces), name
        assert read(show_html.page(seen)).marked, name
    parts = [row.part for row in show.show(tmp_path / "preference.jsonl", tiny_model, rows=1).rows]
    assert parts == ["chosen", "rejected"]


def test_command_prints_brackets_without_colour(tmp_path, tiny_model, capsys, monkeypatch):
    path = write(tmp_path / "r.jsonl", chats("where is it", *INJECTED))
    page = tmp_path / "out.html"
    code = cli.main(["data", "show", str(path), "--model", str(tiny_model), "--no-colour", "--html", str(page)])
    shown = capsys.readouterr().out
    assert code == 0
    assert "⟦so where is it<|im_end|>\n⟧" in shown
    assert "\x1b" not in shown
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert cli.main(["data", "show", str(path)]) == 2
    assert "--model" in capsys.readouterr().err


def test_colour_in_a_terminal_only_and_not_with_no_color(tmp_path, tiny_model, capsys, monkeypatch):
    rows = [ShownRow(1, [Piece("asked ", False), Piece("said", True)], 2, 1).to_json()]
    assert "said\x1b[0m" in show_terminal.text_of(rows, coloured=True)
    assert "⟦" not in show_terminal.text_of(rows, coloured=True)
    assert "asked ⟦said⟧" in show_terminal.text_of(rows, coloured=False)
    path = write(tmp_path / "r.jsonl", chats("a"))
    seen = []
    monkeypatch.setattr(show_terminal, "text_of", lambda rows, coloured: seen.append(coloured) or "")
    words = ["data", "show", str(path), "--model", str(tiny_model)]
    for terminal, no_color, more in ((True, "", []), (True, "1", []), (True, "", ["--no-colour"]), (False, "", [])):
        monkeypatch.setenv("NO_COLOR", no_color)
        monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal)
        cli.main([*words, *more])
    assert seen == [True, False, False, False]


def test_page_loads_and_runs_nothing_and_shows_data_as_text(tmp_path, tiny_model):
    path = write(tmp_path / "<script>x.jsonl", chats(*INJECTED, "a" * 300))
    page = show_html.page(show.show(path, tiny_model, rows=10, max_length=64))
    tags = read(page)
    assert not {"script", "img", "iframe", "link", "object", "embed", "form", "a", "base"} & set(tags.tags)
    assert not [name for name, _ in tags.attributes if name.startswith("on") or name in ("src", "href", "style")]
    assert "default-src 'none'" in dict(tags.attributes)["content"] or "default-src 'none'" in page
    assert "http://" not in page and "https://" not in page.replace("https://huggingface.co", "")
    assert "\u202e" not in page and "⟨U+202E⟩" in page
    assert "<script>alert(1)</script>" in "".join(tags.text)
    assert 'role="img"' in page and "<desc" in page and 'dir="auto"' in page
    assert tags.tags.count("rect") == len(re.findall(r"<rect[^>]*><title>\d+ to \d+ tokens: \d+ rows</title>", page))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.text(), st.booleans()), max_size=6), st.text(max_size=20))
def test_no_text_breaks_out_of_the_page(pieces, name):
    row = ShownRow(1, [Piece(show.visible(text), trained) for text, trained in pieces], 3, 1, note=show.visible(name))
    counts = {
        "rows": 1,
        "unusable": 0,
        "kept": 1,
        "tokens": 3,
        "trained_tokens": 1,
        "share_trained": 0.3,
        "lengths": None,
    }
    made = show_html.page(Shown(name, show.Settings(), [row], counts, [(0, 3, 1)], [[1, 2]], []))
    empty = show_html.page(
        Shown("", show.Settings(), [ShownRow(1, [], 3, 1, note="x")], counts, [(0, 3, 1)], [[1, 2]], [])
    )
    expected = read(empty).tags + ["mark"] * sum(trained for _, trained in pieces)
    with_note = row.note != ""
    found = read(made).tags
    if not with_note:
        expected.remove("p")
        expected.remove("bdi")
    assert sorted(found) == sorted(expected)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    ("front", "back"),
    [
        ("#1a1a1a", "#ffffff"),
        ("#555555", "#ffffff"),
        ("#111111", "#c9efc9"),
        ("#7a1f00", "#ffffff"),
        ("#1f5fa8", "#ffffff"),
    ],
)
def test_contrast_is_enough(front, back):
    """WCAG 2.2, 1.4.3: at least 4.5 to 1; the colours are those of the page."""
    short = {"#ffffff": "#fff", "#555555": "#555", "#111111": "#111"}
    style = show_html._STYLE
    assert short.get(front, front) in style and short.get(back, back) in style
    high, low = sorted((luminance(front), luminance(back)), reverse=True)
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_hostile_template_is_an_error(tmp_path, tiny_model, monkeypatch):
    from peftsmith.data import templating
    from tests.data.templates import with_template

    monkeypatch.setattr(templating, "BATCH_SECONDS", 2.0)
    folder = with_template(tiny_model, tmp_path / "m", "{{ 'x' * 10 ** 11 }}")
    with pytest.raises(PeftsmithError, match="stopped"):
        show.show(write(tmp_path / "r.jsonl", chats("a")), folder)


def test_a_secret_over_the_border_of_the_loss_is_shown_on_neither_side(tmp_path, tiny_model):
    """A prompt that ends inside of a credential: redacting each side by itself would find it in neither."""
    token = make("huggingface", 0).value
    path = write(tmp_path / "rows.jsonl", [{"prompt": f"key {token[:15]}", "text": f"{token[15:]} end"}])
    mapping = Mapping.of("text", {"prompt": "prompt", "text": "text"})
    shown = show.show(path, tiny_model, mapping=mapping)
    text = "".join(piece.text for row in shown.rows for piece in row.pieces)
    assert "[redacted" in text and "end" in text
    assert not any(token[place : place + 6] in text for place in range(len(token) - 6))
