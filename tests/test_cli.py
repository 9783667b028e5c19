"""The shell command: the same operations, exit codes, JSON everywhere."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftsmith import cli
from peftsmith.operations import OPERATIONS
from tests.conftest import REPOSITORY


def run(capsys, *arguments):
    code = cli.main([str(each) for each in arguments])
    return code, capsys.readouterr()


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_every_operation_is_a_command_with_help(capsys, name):
    with pytest.raises(SystemExit) as left:
        cli.main([name.replace("_", "-"), "--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0
    for parameter in inspect.signature(OPERATIONS[name].run).parameters:
        assert parameter in shown or parameter.replace("_", "-") in shown
    assert "--json" in shown


def test_every_operation_and_parameter_has_a_description():
    for name, operation in OPERATIONS.items():
        assert len(inspect.getdoc(operation.run) or "") > 40, name


def test_json_is_the_operations_result(capsys, tiny_model):
    code, shown = run(capsys, "inspect-model", tiny_model, "--json")
    assert json.loads(shown.out)["model"]["parameters"] == 99648
    assert code in (0, 1, 3)


def test_people_see_findings_with_their_fix(capsys, tiny_model, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "x", "label": "a"}\n{"text": 1}\n' * 3, encoding="utf-8")
    code, shown = run(capsys, "audit", tmp_path / "rows.jsonl", "--model", tiny_model)
    assert code == 1
    assert "data." in shown.out and "fix:" in shown.out


def test_a_refusal_is_exit_code_2_in_both_forms(capsys):
    code, shown = run(capsys, "inspect-model", "/no/such/folder")
    assert (code, shown.out) == (2, "")
    assert shown.err.startswith("peftsmith: ")
    code, shown = run(capsys, "inspect-model", "/no/such/folder", "--json")
    assert code == 2
    assert json.loads(shown.out)["error"]


@pytest.mark.parametrize("arguments", [("estimate", "x", "--rank", "0"), ("estimate", "x", "--fits-gib", "-1")])
def test_values_out_of_range_are_refused_with_their_name(capsys, arguments):
    code, shown = run(capsys, *arguments)
    assert code == 2
    assert arguments[2].strip("-").replace("-", "_") in shown.err


def test_an_unknown_choice_is_a_usage_error():
    with pytest.raises(SystemExit) as left:
        cli.main(["estimate", "x", "--precision", "int3"])
    assert left.value.code == 2


def test_output_has_no_colour_codes_when_it_is_not_a_terminal(tiny_model):
    package = Path(cli.__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "peftsmith.cli", "inspect-model", str(tiny_model)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(package)},
    )
    assert "llama" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_reader_that_has_seen_enough_is_no_error(tiny_model):
    command = f"{sys.executable} -m peftsmith.cli inspect-model {tiny_model} --json | head -c 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "mcp_server")},
    )
    assert "Traceback" not in done.stderr and done.stdout == "{"


def test_a_command_without_words_shows_what_there_is(capsys):
    for words in ((), ("data",)):
        code, shown = run(capsys, *words)
        assert code == 2
        assert "inspect-model" in shown.out and "data show" in " ".join(shown.out.split())


def test_what_is_not_understood_is_answered_by_the_command_itself(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["list-runs", ".", "--newest"])
    assert left.value.code == 2
    shown = capsys.readouterr().err
    assert "peftsmith list-runs" in shown and "--newest" in shown


def test_what_a_command_is_about_needs_no_option(capsys, tmp_path):
    (tmp_path / "plan.yaml").write_text("", encoding="utf-8")
    code, shown = run(capsys, "list-runs", tmp_path, "--json")
    assert (code, json.loads(shown.out)["runs"]) == (0, [])
    code, shown = run(capsys, "scan-secrets", tmp_path, "--json")
    assert (code, json.loads(shown.out)["scanned_files"]) == (0, 1)


def test_people_see_the_next_command(capsys, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "text {i}", "label": "{i % 2}"}}\n' for i in range(20)), encoding="utf-8")
    _, shown = run(capsys, "prepare", rows, tmp_path / "out")
    last = shown.out.splitlines()[-1]
    train, test = (str(tmp_path / "out" / f"{split}.jsonl") for split in ("train", "test"))
    assert last.startswith(f"next: peftsmith audit {train} --test {test} ")


def test_columns_and_label_names_on_the_command_line(capsys, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"q": "text {i}", "k": {i % 2}}}\n' for i in range(20)), encoding="utf-8")
    arguments = ["prepare", str(rows), str(tmp_path / "out"), "--json", "--columns", "text=q", "label=k"]
    assert cli.main([*arguments, "--label-names", "no", "yes"]) in (0, 1)
    prepared = json.loads(capsys.readouterr().out)["prepared"]
    assert prepared["format"] == "classification" and set(prepared["labels"]["train"]) == {"no", "yes"}
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--roles", "bot"])
    assert "is not NAME=VALUE" in capsys.readouterr().err


def test_operations_are_named_as_the_shell_has_them(capsys, tmp_path):
    (tmp_path / "plan.yaml").write_text("[]\n", encoding="utf-8")
    assert cli.main(["check", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "`peftsmith plan`" in said and "plan_finetune" not in said
