"""The jail, atomic writes, and how untrusted text is shown."""

import os
import resource
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftsmith import files
from peftsmith.errors import PeftsmithError


def test_paths_stay_inside_the_roots_after_symlinks(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("x", encoding="utf-8")
    (inside / "link").symlink_to(outside / "secret")
    files.set_roots([inside])
    assert files.resolve(inside) == inside
    for path in (outside / "secret", inside / "link", inside / ".." / "out"):
        with pytest.raises(PeftsmithError, match="outside"):
            files.resolve(path)


@pytest.mark.parametrize("path", ["", "a\x00b", "a\nb"])
def test_unusable_paths_are_refused(path):
    with pytest.raises(PeftsmithError):
        files.resolve(path)


@pytest.mark.parametrize("name", ["owner/name", "name", "Qwen/Qwen2.5-0.5B", "a/b_c-d.e"])
def test_model_ids(name):
    assert files.is_model_id(name)


@pytest.mark.parametrize("name", ["", "../x", "a/b/c", 'x"; import os #', "-rf", "a b", "a\n", "/etc", "a--b", "a/..b"])
def test_what_is_no_model_id(name):
    assert not files.is_model_id(name)


def test_a_write_replaces_the_whole_file_and_leaves_no_rest(tmp_path):
    target = tmp_path / "new" / "x.json"
    files.write_json(target, {"a": "ü"})
    files.write_json(target, {"b": 1})
    assert files.read_json(target) == {"b": 1}
    assert os.listdir(target.parent) == ["x.json"]


def test_a_full_disk_keeps_the_old_file(tmp_path):
    """A file size limit stands in for the full disk: the write fails in the same place, after some bytes."""
    target = tmp_path / "x.txt"
    target.write_text("old", encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from peftsmith import files\n"
        "try: files.write_text(Path(sys.argv[1]), 'y' * 100_000)\n"
        "except OSError as error: print('refused', error.errno)\n"
    )

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = subprocess.run(
        [sys.executable, "-c", code, str(target)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(files.__file__).rsplit("/", 2)[0]),
    )
    assert "refused" in done.stdout, done.stderr
    assert target.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_broken_json_is_a_clear_error(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(PeftsmithError, match=r"x\.json"):
        files.read_json(tmp_path / "x.json")


def test_a_missing_or_huge_file_is_a_clear_error(tmp_path):
    with pytest.raises(PeftsmithError, match="missing"):
        files.read_text(tmp_path / "none")
    (tmp_path / "big").write_bytes(b"x" * 11)
    with pytest.raises(PeftsmithError, match="11 bytes"):
        files.read_text(tmp_path / "big", largest=10)


@given(st.text(max_size=300))
def test_shown_text_has_no_control_or_direction_characters(text):
    shown = files.clean(text, 50)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
    assert not any(c in "\u202e\u200b\ufeff\u2066" for c in shown)
    assert len(shown) <= 50 + len("... [1234567 more characters]")


def test_the_cache_lies_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTSMITH_HOME", str(tmp_path / "own"))
    assert files.cache_folder("a", "b") == tmp_path / "own" / "a" / "b"
