"""What counts as a credential, in every place where people leave one, and what does not."""

from __future__ import annotations

import json
import os
import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftsmith import secrets
from peftsmith.errors import PeftsmithError
from peftsmith.finding import exit_code
from tests.credentials import CONTEXTS, HARMLESS, MAKERS, make

SAMPLES = 3


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_in_every_context(kind, context):
    for seed in range(SAMPLES):
        credential = make(kind, seed)
        text = CONTEXTS[context](credential)
        hits = secrets.find_in_text(text)
        assert hits, f"missed sample {seed}"
        where = text.index(credential.value)
        covering = [hit for hit in hits if hit.start <= where < hit.end]
        assert covering, "a hit that does not cover the value"
        assert covering[0].line == text[: covering[0].start].count("\n") + 1
        assert credential.value not in secrets.redact(text)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_kind_is_named(kind):
    credential = make(kind, 0)
    hits = secrets.find_in_text(CONTEXTS["train.py"](credential))
    assert {hit.kind for hit in hits} == {credential.kind}


def test_a_credential_over_a_border_goes_from_both_sides():
    token = make("huggingface", 0).value
    for cut in range(len(token) + 1):
        parts = ["my key is ", token[:cut], token[cut:], " and ", token, "\n"]
        made = secrets.redact_parts(parts)
        assert len(made) == len(parts)
        assert not any(token[place : place + 6] in "".join(made) for place in range(len(token) - 6))
        assert made[-1] == "\n"
    assert secrets.redact_parts(["a", "", "b"]) == ["a", "", "b"]


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_harmless_text_stays_silent(text):
    for shown in (
        text,
        f"    {text}\n",
        json.dumps({"source": [text + "\n"]}),
        f"wandb: step 3\n{text}\nwandb: done\n",
    ):
        assert [hit.kind for hit in secrets.find_in_text(shown)] == []
        assert secrets.redact(shown) == shown


def test_there_are_more_harmless_kinds_than_credentials():
    assert len(MAKERS) >= 20
    assert len(CONTEXTS) == 10
    assert len(HARMLESS) >= 2 * len(MAKERS)


@pytest.mark.parametrize("kind", MAKERS)
def test_redaction_says_what_was_there_and_is_stable(kind):
    credential = make(kind, 1)
    once = secrets.redact(f"a\n{credential.name}={credential.text}\nb\n")
    assert f"[redacted {credential.kind}]" in once
    assert once.startswith("a\n")
    assert once.endswith("b\n") or kind == "pem"
    assert secrets.redact(once) == once


def test_assignments_of_random_literals():
    value = make("comet", 5).value
    for text in (
        f'api_key = "{value}"',
        f"client_secret: {value}",
        f"SERVICE_PASSWORD={value}",
        f'{{\\"access_token\\": \\"{value}\\"}}',
        f"curl -H 'Authorization: Bearer {value}'",
        f"train --api-key {value}",
        f'os.environ.setdefault("SOME_TOKEN", "{value}")',
    ):
        assert [text[hit.start : hit.end] for hit in secrets.find_in_text(text)] == [value], text
    assert secrets.find_in_text('api_key = "' + "qWzXvBnMkLpOiUyTrEwQ" + '"')  # random letters need no digit
    assert secrets.find_in_text(f"checkpoint_name = '{value}'") == []
    assert secrets.find_in_text(f"the token {value}") == []


def test_lines_and_several_hits():
    first, second = make("huggingface", 1).value, make("github", 1).value
    hits = secrets.find_in_text(f"x\n{first}\n\n{second} {first}\n")
    assert [(hit.kind, hit.line) for hit in hits] == [
        ("huggingface-token", 2),
        ("github-token", 4),
        ("huggingface-token", 4),
    ]


def test_a_marked_line_is_allowed_and_only_that_line():
    value = make("huggingface", 2).value
    text = f"a = '{value}'  # {secrets.ALLOW_MARK}\nb = '{value}'\n"
    assert [secrets.allowed(text, hit) for hit in secrets.find_in_text(text)] == [True, False]


_PIECES = [
    "sk-",
    "hf_",
    "eyJ",
    "://",
    ":",
    "@",
    "token=",
    "password",
    "wandb ",
    "machine ",
    "-----BEGIN PRIVATE KEY-----",
    '"',
]


@settings(max_examples=25, deadline=None)
@given(
    pieces=st.lists(
        st.one_of(
            st.sampled_from(_PIECES),
            st.text(string.printable, max_size=5),
            st.sampled_from(["a", "A1", "0f", "\\n", " "]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_time_grows_with_length_only(pieces):
    unit = "".join(pieces) or "a"
    text = unit * (100_000 // len(unit))
    started = time.process_time()
    secrets.find_in_text(text)
    assert time.process_time() - started < 1.5


@pytest.mark.parametrize(
    "unit",
    [
        *("a", "A1b2", "0f", "sk-", "hf_", "token=", "token='", "://a:", "eyJ.", "wandb ", "machine ", "password: "),
        *("eyJaaaaaaaaaaaa.", "-----BEGIN PRIVATE KEY-----", "api_key=A1b2C3d4(", "AccountKey=", "xoxb-", "\\n"),
        "0123456789abcdef0123456789abcdef01234567 wandb ",
    ],
)
def test_a_line_of_a_megabyte(unit):
    text = (unit * (1_000_000 // len(unit) + 1))[:1_000_000]
    started = time.process_time()
    secrets.find_in_text(text)
    assert time.process_time() - started < 3


@given(st.text(max_size=400))
def test_redaction_keeps_everything_else(text):
    hits = secrets.find_in_text(text)
    redacted = secrets.redact(text)
    assert (redacted == text) == (not hits)
    for hit in hits:
        assert text[: hits[0].start] == redacted[: hits[0].start]
        assert 0 <= hit.start < hit.end <= len(text)


def test_scan_of_a_folder(tmp_path):
    values = {}
    for kind, context in zip(MAKERS, [*CONTEXTS, *CONTEXTS], strict=False):
        credential = make(kind, 3)
        folder = tmp_path / kind
        folder.mkdir()
        (folder / context).write_text(CONTEXTS[context](credential), encoding="utf-8")
        values[f"{kind}/{context}"] = credential.value
    report = secrets.scan(tmp_path)
    found = {f.evidence["file"] for f in report.findings if f.id == "secrets.file.credential"}
    assert found == set(values)
    assert report.scanned == len(values)
    shown = json.dumps([f.to_json() for f in report.findings])
    assert not [value for value in values.values() if value in shown]
    assert exit_code(report.findings) == 1


def test_scan_leaves_out_what_is_no_source(tmp_path):
    value = make("huggingface", 4).value
    for name in (".git/config", "node_modules/x/index.js", "env/lib/site.py", "lib/site-packages/a.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.write_text(value, encoding="utf-8")
    (tmp_path / "env" / "pyvenv.cfg").write_text("home = /usr\n", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00\x00" + value.encode())
    (tmp_path / "link.txt").symlink_to(tmp_path / ".git" / "config")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "ok.py").write_text("rank = 16\n", encoding="utf-8")
    report = secrets.scan(tmp_path)
    assert report.scanned == 1
    assert [f.id for f in report.findings] == ["secrets.files.left_out"]
    assert report.findings[0].evidence["counts"] == {
        "binary files": 1,
        "folders of tools and virtual environments": 4,
        "special files": 1,
        "symbolic links": 1,
    }
    assert exit_code(report.findings) == 0


def test_scan_reads_utf16_and_broken_utf8(tmp_path):
    value = make("huggingface", 6).value
    (tmp_path / "windows.txt").write_text(value, encoding="utf-16")
    (tmp_path / "broken.txt").write_bytes(b"\xff\xc3 " + value.encode())
    assert [f.id for f in secrets.scan(tmp_path).findings] == ["secrets.file.credential"] * 2


def test_what_could_not_be_looked_through_is_unknown(tmp_path, monkeypatch):
    from peftsmith import secret_files

    monkeypatch.setattr(secret_files, "LARGEST_FILE", 1000)
    (tmp_path / "long.log").write_text("a\n" * 2000, encoding="utf-8")
    report = secrets.scan(tmp_path)
    assert [(f.id, f.severity) for f in report.findings] == [("secrets.file.partial", "unknown")]
    assert exit_code(report.findings) == 3

    file = tmp_path / "gone.txt"
    file.write_text("x", encoding="utf-8")
    monkeypatch.setattr(secret_files, "_walk", lambda path: iter([(path / "never-there.txt", "")]))
    report = secrets.scan(tmp_path)
    assert [(f.id, f.severity) for f in report.findings] == [("secrets.file.unread", "unknown")]


def test_a_locked_folder_is_unknown(tmp_path, monkeypatch):
    """Refused in Python, because root, as which some run the tests, is never refused by the file system."""
    locked = tmp_path / "locked"
    locked.mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path) == str(locked):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = secrets.scan(tmp_path)
    assert [(f.id, f.severity) for f in report.findings] == [("secrets.file.unread", "unknown")]
    assert report.findings[0].evidence == {"file": "locked"}


def test_scan_counts_marked_lines_and_caps_its_list(tmp_path):
    value = make("huggingface", 7).value
    (tmp_path / "a.py").write_text(f"x = '{value}'  # {secrets.ALLOW_MARK}\n", encoding="utf-8")
    (tmp_path / "b.py").write_text(f"x = '{value}'\n" * 230, encoding="utf-8")
    report = secrets.scan(tmp_path)
    found = [f for f in report.findings if f.id == "secrets.file.credential"]
    assert len(found) == 201
    assert found[-1].evidence == {"more": 30}
    assert [f.evidence["count"] for f in report.findings if f.id == "secrets.mark.allowed"] == [1]


def test_scan_of_one_file_and_of_nothing(tmp_path):
    file = tmp_path / "one.env"
    file.write_text("HF_TOKEN=" + make("huggingface", 8).value, encoding="utf-8")
    (finding,) = secrets.scan(file).findings
    assert (finding.evidence["file"], finding.evidence["line"]) == ("one.env", 1)
    with pytest.raises(PeftsmithError, match="no such file"):
        secrets.scan(tmp_path / "missing")
