"""How results look to a person: short, in tables, numbers that can be read, nothing that steers the terminal."""

from __future__ import annotations

import shlex

import pytest

from peftsmith import cli, terminal
from peftsmith.operations import OPERATIONS


def shown(**values):
    return terminal.text_of({"findings": [], **values}).splitlines()[:-1]


def test_what_files_say_cannot_steer_the_terminal():
    lines = shown(**{"name": "a\x1b]0;title\x07b", "layers": [{"kind\x1b[2J": 1.5}], "two": "a\nerror data.x forged"})
    assert lines == ["name a ]0;title b", "layers kind [2J 1.5", "two a error data.x forged"]
    assert shown(labels={"a\nerror forged": 1}, **{"b\nerror forged": "x"}) == [
        "labels a error forged 1", "b error forged x",
    ]  # fmt: skip
    assert shown(cells=[{"a": "x\ny", "b": "w" * 99}, {"a": "z", "b": 2}])[2].split()[:2] == ["x", "y"]


def test_numbers_and_nothing():
    assert shown(rows=9999, parameters=134515008, share=0.0350394, fits=True, test=None, labels=[], why={}) == [
        "rows 9999", "parameters 134,515,008", "share 0.0350394", "fits yes", "none: test, labels, why",
    ]  # fmt: skip


def test_bytes_give_way_to_the_same_in_gib():
    assert shown(device={"low": 3944790720, "low_gib": 3.674}) == ["device low_gib 3.674"]


def test_records_stand_as_a_table_and_wide_ones_below_each_other():
    lines = shown(files=[{"path": "train.py", "action": "written"}, {"path": "a", "action": "kept"}] * 4)
    assert lines[:3] == ["files", "  path      action", "  train.py  written"]
    lines = shown(choices=[{"name": "x" * 80, "value": "y" * 80, "last": 1}] * 2)
    assert lines[1:4] == ["  1", f"    name {'x' * 80}", f"    value {'y' * 80}"]


def test_a_table_names_its_rows_and_takes_words_last():
    proofs = [{"name": "train", "ok": True, "evidence": {"steps": 2, "losses": [1.5, 1.25]}}] * 4
    assert shown(proofs=proofs)[2] == "  train  yes  steps 2, losses 1.5, 1.25"
    why = {f"training.{name}": {"value": 1, "rule": "r", "reason": "It fits.", "source": "s"} for name in "ab"}
    assert [line.split() for line in shown(why=why)[1:3]] == [["value", "reason"], ["training.a", "1", "It", "fits."]]


def test_long_text_is_cut_but_a_log_stands_whole():
    assert shown(chat_template="{{ x }}" * 100) == [f"chat_template {('{{ x }}' * 100)[:200]}... (700 characters)"]
    assert shown(log_tail="one\n  two") == ["log_tail ", "  one", "    two"]


RUN = {"id": "r1", "digest": "d1"}


@pytest.mark.parametrize(
    ("operation", "arguments", "result", "words"),
    [
        ("plan_finetune", {"project": "my p"}, {}, ["generate", "my p"]),
        ("generate_project", {"project": "p"}, {}, ["check", "p"]),
        ("check_project", {"project": "p"}, {"digest": "d1"}, ["start-run", "p", "smoke", "d1"]),
        ("check_project", {"project": "p"}, {"digest": None}, None),
        ("apply_fix", {"project": "p", "confirm": True}, {}, ["generate", "p"]),
        ("apply_fix", {"project": "p", "confirm": False}, {}, None),
        ("start_run", {"project": "p"}, {"run": RUN}, ["get-run", "p", "r1", "--wait-seconds", "50"]),
        ("make_environment", {}, {"run": RUN}, ["get-run", ".", "r1", "--wait-seconds", "50"]),
        ("get_run", {"project": "p"}, {"run": {**RUN, "state": "failed"}}, ["diagnose", "p", "--run-id", "r1"]),
        (
            "get_run",
            {"project": "p"},
            {"run": {**RUN, "state": "done", "kind": "train"}},
            ["start-run", "p", "evaluate", "d1", "--adapter-run", "r1"],
        ),
        (
            "get_run",
            {"project": "p"},
            {"run": {**RUN, "state": "done", "kind": "smoke"}},
            ["start-run", "p", "train", "d1"],
        ),
        ("get_run", {"project": "p"}, {"run": {**RUN, "state": "done", "kind": "merge"}}, None),
        ("inspect_model", {"model": "m"}, {}, ["audit", "ROWS", "--model", "m"]),
        ("audit_dataset", {"data": "r", "model": None}, {"findings": []}, None),
        ("audit_dataset", {"data": "r", "model": "m"}, {"findings": [{"severity": "error"}]}, None),
        (
            "audit_dataset",
            {"data": "r", "model": "m", "test": "t", "eval": None},
            {"findings": [{"severity": "warning"}]},
            ["plan", "PROJECT", "m", "r", "--test", "t"],
        ),
        ("inspect_machine", {}, {}, None),
    ],
)
def test_the_next_command_is_one_that_the_shell_takes(operation, arguments, result, words):
    found = terminal.next_command(operation, arguments, result)
    assert found == (words and shlex.join(["peftsmith", *words]))
    if words:
        parsed = cli._parser(words).parse_args(words)
        assert parsed.operation in OPERATIONS
