"""A data set as one self-contained page: rows with their loss mask, lengths, duplicates.

Knows: the page's markup and style; everything that comes from data is escaped, and the page may load and run nothing.
Does not know: how rows were made (show.py).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from html import escape

from peftsmith.data.show import Shown, ShownRow

# Contrast on white: text 16:1, quiet text 7:1, marked text on its ground 12:1. Loss is underlined as well as coloured.
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2rem}h3{font-size:1rem;margin:1.5rem 0 .3rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:plaintext;text-align:start;border:1px solid #767676;
padding:.6rem;margin:0;color:#555;font:14px/1.6 ui-monospace,monospace}
mark{background:#c9efc9;color:#111;border-bottom:2px solid #1b5e20}
.note{color:#7a1f00;margin:.2rem 0}table{border-collapse:collapse}td,th{border:1px solid #767676;padding:.2rem .6rem;
text-align:start}svg{width:100%;height:auto}.bar{fill:#1f5fa8}.limit{stroke:#7a1f00;stroke-width:2;stroke-dasharray:6 4}
.axis{stroke:#1a1a1a}svg text{font:12px system-ui,sans-serif;fill:#1a1a1a}
"""
_WIDTH, _HEIGHT, _MARGIN = 720, 220, 40


def page(shown: Shown) -> str:
    """The whole page, as UTF-8 text."""
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{escape(shown.name)}: what carries loss</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f"<h1>What carries loss in <bdi>{escape(shown.name)}</bdi></h1>",
        *_counts(shown),
        f"<h2>Rows</h2>\n<p>Text that carries loss is <mark>marked</mark>. {len(shown.rows)} of them are shown.</p>",
        *(part for row in shown.rows for part in _row(row)),
        *_lengths(shown),
        *_duplicates(shown),
        *_findings(shown),
        "</body>\n</html>\n",
    ]
    return "\n".join(parts)


def _counts(shown: Shown) -> Iterator[str]:
    counts = shown.counts
    share = counts["share_trained"]
    rows = [
        ("rows", counts["rows"]),
        ("rows that cannot be used", counts["unusable"]),
        ("rows that the trainer keeps", counts["kept"]),
        ("tokens", counts["tokens"]),
        ("tokens that carry loss", counts["trained_tokens"]),
        ("share that carries loss", "unknown" if share is None else f"{share:.1%}"),
        ("trainer", shown.settings.trainer),
        ("max_length", "none" if shown.settings.max_length is None else shown.settings.max_length),
    ]
    yield "<table>"
    for name, value in rows:
        yield f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(value))}</td></tr>'
    yield "</table>"


def _row(row: ShownRow) -> Iterator[str]:
    part = f" ({escape(row.part)})" if row.part else ""
    yield f"<article><h3>Row {row.number}{part}: {row.trained_tokens} of {row.tokens} tokens carry loss</h3>"
    if row.note:
        yield f'<p class="note"><bdi>{escape(row.note)}</bdi></p>'
    text = "".join(f"<mark>{escape(each.text)}</mark>" if each.trained else escape(each.text) for each in row.pieces)
    # The line feed that the parser takes away behind <pre> is not one of the row's
    yield f'<pre dir="auto">\n{text}</pre></article>'


def _lengths(shown: Shown) -> Iterator[str]:
    yield "<h2>Lengths in tokens, before anything is cut</h2>"
    if not shown.histogram:
        yield "<p>No row has a length.</p>"
        return
    most = max(count for _, _, count in shown.histogram)
    last = shown.histogram[-1][1] + 1
    inner = _WIDTH - 2 * _MARGIN
    summary = shown.counts["lengths"] or {}
    described = f"Half of the rows have at most {summary.get('p50')} tokens, the longest has {summary.get('max')}."
    yield f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="lengths-title lengths-text">'
    yield f'<title id="lengths-title">Histogram of row lengths</title><desc id="lengths-text">{described}</desc>'
    base, height = _HEIGHT - _MARGIN, _HEIGHT - 2 * _MARGIN
    for first, end, count in shown.histogram:
        left, width = _MARGIN + inner * first / last, inner * (end + 1 - first) / last
        tall = height * count / most
        yield (
            f'<rect class="bar" x="{left:.1f}" y="{base - tall:.1f}" width="{max(width - 1, 1):.1f}" '
            f'height="{tall:.1f}"><title>{first} to {end} tokens: {count} rows</title></rect>'
        )
    limit = shown.settings.max_length
    if limit is not None and limit < last:
        place = _MARGIN + inner * limit / last
        yield f'<line class="limit" x1="{place:.1f}" x2="{place:.1f}" y1="{_MARGIN / 2}" y2="{base}"/>'
        yield f'<text x="{place + 4:.1f}" y="{_MARGIN / 2 + 4}">max_length {limit}</text>'
    yield f'<line class="axis" x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="{base}" y2="{base}"/>'
    yield f'<text x="{_MARGIN}" y="{base + 18}">0</text>'
    yield f'<text x="{_WIDTH - _MARGIN}" y="{base + 18}" text-anchor="end">{last} tokens</text>'
    yield f'<text x="{_MARGIN}" y="{_MARGIN - 6}">{most} rows</text></svg>\n<p>{described}</p>'


def _duplicates(shown: Shown) -> Iterator[str]:
    yield "<h2>Equal rows</h2>"
    if not shown.duplicates:
        yield "<p>No row occurs twice.</p>"
        return
    yield f"<p>{len(shown.duplicates)} groups of equal rows, by row number:</p>\n<ul>"
    for group in shown.duplicates:
        more = f" and {len(group) - 20} more" if len(group) > 20 else ""
        yield f"<li>{', '.join(map(str, group[:20]))}{more}</li>"
    yield "</ul>"


def _findings(shown: Shown) -> Iterator[str]:
    yield "<h2>Findings</h2>"
    if not shown.findings:
        yield "<p>None.</p>"
        return
    yield '<table>\n<tr><th scope="col">Severity</th><th scope="col">Finding</th><th scope="col">What to do</th></tr>'
    for each in shown.findings:
        yield (
            f"<tr><td>{escape(each.severity)}</td><td><code>{escape(each.id)}</code><br>"
            f"<bdi>{escape(each.message)}</bdi></td><td>{escape(each.fix)}</td></tr>"
        )
    yield "</table>"
