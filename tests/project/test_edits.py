"""Merging edits with what is generated: no line of either side is lost, and the same texts give the same result."""

from __future__ import annotations

import difflib
import errno
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftsmith import files, plan
from peftsmith.project import edits, generate
from tests.project.plans import make, write_project

pytestmark = pytest.mark.slow

BASE = "".join(f"line {number}\n" for number in range(10))
LINE = st.sampled_from(["a", "b", "", "# mine", "RANK = 4", "    x = 1"])
TEXT = st.lists(LINE, max_size=12).map(lambda lines: "".join(f"{line}\n" for line in lines))


@st.composite
def edited(draw, base):
    """A text with a few lines replaced, inserted and deleted."""
    lines = base.splitlines(keepends=True)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(lines)))
        lines[at : at + draw(st.integers(0, 2))] = [f"{each}\n" for each in draw(st.lists(LINE, max_size=2))]
    return "".join(lines)


def added(base: str, other: str) -> list[str]:
    """The lines that a text has and its base has not, in order."""
    matcher = difflib.SequenceMatcher(None, base.splitlines(), other.splitlines(), autojunk=False)
    lines = other.splitlines()
    return [line for tag, _, _, i, j in matcher.get_opcodes() if tag != "equal" for line in lines[i:j]]


def is_subsequence(short: list[str], long: list[str]) -> bool:
    rest = iter(long)
    return all(line in rest for line in short)


def change(text: str, at: int, *lines: str) -> str:
    parts = text.splitlines(keepends=True)
    parts[at : at + 1] = [f"{line}\n" for line in lines]
    return "".join(parts)


@given(TEXT, TEXT)
def test_one_sided_changes_are_taken_as_they_are(base, other):
    assert edits.merge(base, other, base).text == other
    assert edits.merge(base, base, other).text == other
    assert edits.merge(base, other, other).text == other


@given(edited(BASE), edited(BASE))
def test_no_line_of_either_side_is_lost_and_sides_are_equal(mine, new):
    merged, turned = edits.merge(BASE, mine, new), edits.merge(BASE, new, mine)
    assert merged.text == turned.text
    if merged.text is None:
        assert merged.clashes
        shown = [(each.line, each.base, each.new, each.mine) for each in merged.clashes]
        assert shown == [(each.line, each.base, each.mine, each.new) for each in turned.clashes]
        return
    lines = merged.text.splitlines()
    assert is_subsequence(added(BASE, mine), lines)
    assert is_subsequence(added(BASE, new), lines)
    untouched = {line for line in BASE.splitlines() if line in mine.splitlines() and line in new.splitlines()}
    assert untouched <= set(lines)


@pytest.mark.parametrize(
    ("mine", "new", "expected"),
    [
        (change(BASE, 2, "x"), change(BASE, 7, "y"), change(change(BASE, 2, "x"), 7, "y")),
        (change(BASE, 2, "x"), change(BASE, 3, "y"), change(change(BASE, 2, "x"), 3, "y")),  # side by side
        (change(BASE, 2, "x"), change(BASE, 2, "y"), None),
        (change(BASE, 2), change(BASE, 2, "y"), None),  # deleted here, changed there
        (change(BASE, 2, "x"), change(BASE, 2, "x"), change(BASE, 2, "x")),
        (change(BASE, 2, "line 2", "x"), change(BASE, 2, "line 2", "y"), None),  # which comes first?
        (change(BASE, 2, "line 2", "x"), change(BASE, 3, "y"), None),  # inserted where the other side changes
        (BASE.removesuffix("\n"), change(BASE, 0, "y"), change(BASE, 0, "y")),
    ],
)
def test_what_counts_as_the_same_place(mine, new, expected):
    assert edits.merge(BASE, mine, new).text == expected


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    project = write_project(tmp_path_factory.mktemp("edits") / "project", make())
    generate.generate(project)
    return project


def _state(project: Path) -> dict[str, bytes]:
    return {path.relative_to(project).as_posix(): path.read_bytes() for path in project.rglob("*") if path.is_file()}


def _restore(project: Path, state: dict[str, bytes]) -> None:
    for name in _state(project).keys() - state.keys():
        (project / name).unlink()
    for name, body in state.items():
        (project / name).write_bytes(body)


@settings(max_examples=12)
@given(data=st.data(), failing=st.none() | st.integers(0, 12))
def test_regenerating_never_loses_a_users_line_and_never_writes_half(generated, data, failing):
    """Random edits of two files, another plan, sometimes a disk that fills up in the middle."""
    start = _state(generated)
    try:
        mine = {}
        for name in ("train.py", "README.md"):
            path = generated / name
            mine[name] = data.draw(edited(path.read_text(encoding="utf-8")))
            path.write_text(mine[name], encoding="utf-8")
        text = files.read_text(generated / plan.PLAN_FILE)
        changed = {"method.rank": data.draw(st.sampled_from([4, 64])), "training.epochs": data.draw(st.integers(1, 3))}
        files.write_text(generated / plan.PLAN_FILE, plan.edit(text, changed))
        before = _state(generated)
        with pytest.MonkeyPatch.context() as patch:
            write, count = files.write_text, iter(range(100))

            def full(path, text):
                if next(count) == failing:
                    raise OSError(errno.ENOSPC, "No space left on device")
                write(path, text)

            patch.setattr(files, "write_text", full)
            try:
                written = generate.generate(generated)
            except OSError:
                assert _state(generated) == before
                return
        if not written.files:
            assert _state(generated) == before
            assert {each.id for each in written.findings} >= {"project.file.conflict"}
            return
        for name, edit in mine.items():
            own = added(start[name].decode("utf-8"), edit)
            assert is_subsequence(own, (generated / name).read_text(encoding="utf-8").splitlines())
        after = _state(generated)
        assert generate.generate(generated).files and _state(generated) == after
    finally:
        _restore(generated, start)
