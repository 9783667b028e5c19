"""Training environments: where they are looked for, what is wrong with them, which one is taken."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from pathlib import Path

import pytest

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.machine import environment, install
from tests.machine.fake_python import GOOD, fake_environment

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch, tmp_path):
    """No environment but those that a test makes."""
    for name in ("PEFTSMITH_TRAIN_PYTHON", "VIRTUAL_ENV", "CONDA_PREFIX", "JUPYTER_PATH", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PEFTSMITH_HOME", str(tmp_path / "peftsmith"))
    monkeypatch.setenv("PATH", "/bin")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(environment, "_kernels", lambda: iter(()))
    monkeypatch.setattr(environment.sys, "prefix", str(tmp_path / "control" / ".venv"))


@pytest.fixture
def project(tmp_path):
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def ids(found) -> dict[str, str]:
    return {each.id: each.severity for each in found}


def test_none_is_a_warning_that_offers_to_make_one(project):
    found = environment.find(project)
    assert not [each for each in found if each.usable]
    (missing,) = [each for each in environment.judge(found) if each.id == "machine.environment.missing"]
    assert missing.severity == "warning" and "make_environment" in missing.fix
    with pytest.raises(PeftsmithError, match="no training environment") as caught:
        environment.require(project)
    assert "make_environment" in caught.value.next_step


def test_a_good_one_is_found_and_has_no_problems(project):
    python = fake_environment(project / ".venv-train")
    (found,) = environment.find(project)
    assert found.interpreter == str(python) and found.usable and found.problems == []
    assert found.versions == {**GOOD, "adapters": None} and found.python == "3.11.7"
    assert environment.judge([found]) == [] and environment.require(project) == found
    assert json.loads(json.dumps(found.to_json()))["key"] == found.key


def test_order_and_who_is_taken(project, tmp_path, monkeypatch):
    named = fake_environment(tmp_path / "named", trl="1.0.0")
    train = fake_environment(project / ".venv-train", peft=None)
    plain = fake_environment(project / ".venv", transformers="4.57.0")
    active = fake_environment(tmp_path / "active")
    made = fake_environment(files.cache_folder("environments") / "e1")
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "active"))
    found = environment.find(project)
    assert [each.interpreter for each in found] == [str(p) for p in (train, plain, active, made)]
    assert environment.require(project).interpreter == str(active)
    monkeypatch.setenv("PEFTSMITH_TRAIN_PYTHON", str(named))
    asked = []
    monkeypatch.setattr(
        environment, "ask", lambda path, origin, ask=environment.ask: asked.append(path) or ask(path, origin)
    )
    assert environment.require(project).interpreter == str(named)
    assert asked == [str(named)]  # whatever the others answer, it would be this one
    assert ids(environment.judge(environment.find(project))) == {
        "machine.environment.unusable": "info",
        "machine.environment.untested": "warning",
    }


def test_the_one_beside_the_venv_of_peftsmith_is_found_from_anywhere(project, tmp_path):
    python = fake_environment(tmp_path / "control" / ".venv-train")
    assert environment.require(project).interpreter == str(python)


def test_jupyter_kernels_are_looked_at(project, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    monkeypatch.setenv("PEFTSMITH_HOME", str(tmp_path / "peftsmith"))
    python = fake_environment(tmp_path / "kernel")
    for name, argv in (("one", [str(python), "-m", "ipykernel"]), ("two", ["relative"]), ("three", "no list")):
        folder = tmp_path / "share" / "kernels" / name
        folder.mkdir(parents=True)
        (folder / "kernel.json").write_text(json.dumps({"argv": argv}), encoding="utf-8")
    assert ("jupyter kernel", str(python)) in [(each.origin, each.interpreter) for each in environment.find(project)]


@pytest.mark.parametrize(
    ("python", "versions", "usable", "said"),
    [
        ("3.11.7", {}, True, None),
        ("3.9.2", {}, False, "Python 3.9.2 is older than 3.10"),
        ("3.12.0", {"torch": None}, False, "Missing: torch"),
        ("3.12.0", {"peft": None, "trl": None}, False, "Missing: peft, trl"),
        ("3.12.0", {"transformers": "4.57.1"}, True, "transformers 4.57.1 was not tested (tested: >=5.23,<6)"),
        ("3.12.0", {"peft": "0.22.0"}, True, "peft 0.22.0 was not tested"),
        ("3.12.0", {"torch": "2.13.1+cu130"}, True, None),
        ("3.12.0", {"trl": "1.17.0.dev0"}, True, None),
        ("3.12.0", {"bitsandbytes": None}, True, "no QLoRA"),
    ],
)
def test_problems(python, versions, usable, said):
    problems, can = environment.problems_of(python, {**GOOD, **versions})
    assert can is usable
    assert (problems == []) if said is None else any(said in each for each in problems)


def test_ranges_and_torch_are_those_of_pyproject():
    extra = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    stated = {line.split("=")[0].rstrip("<>"): line for line in extra["train"]}
    assert stated["torch"] == install.TORCH
    for name, (low, high) in environment.TESTED.items():
        if name != "torch":
            assert stated[name] == f"{name}>={'.'.join(map(str, low))},<{'.'.join(map(str, high))}"


@pytest.mark.parametrize("text", ["", "not json", '{"python": "3.11"}', '{"versions": []}'])
def test_what_is_no_python_is_passed_over(tmp_path, text):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho '{text}'\n", encoding="utf-8")
    program.chmod(0o755)
    assert environment.ask(str(program), "test") is None
    assert environment.ask(str(tmp_path / "missing"), "test") is None


def test_a_real_interpreter_without_the_libraries(project):
    found = environment.ask(sys.executable, "test")
    assert found is not None and not found.usable and "Missing: torch" in found.problems[0]
    assert found.python.startswith(f"3.{sys.version_info.minor}.")


def test_the_key_changes_with_versions(tmp_path):
    first = environment.ask(str(fake_environment(tmp_path / "a")), "test")
    second = environment.ask(str(fake_environment(tmp_path / "b", peft="0.21.3")), "test")
    assert first is not None and second is not None and first.key != second.key


@pytest.mark.training
def test_the_real_training_environment(training_python):
    found = environment.ask(training_python, "test")
    assert found is not None and found.usable and found.problems == []


def test_a_venv_is_asked_again_once_something_was_installed(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(environment, "_asked", lambda path, ask=environment._asked: asked.append(path) or ask(path))
    python = fake_environment(tmp_path / "venv")
    packages = tmp_path / "venv" / "lib" / "python3.11" / "site-packages"
    assert environment.ask(str(python), "test") == environment.ask(str(python), "test")
    assert len(asked) == 2  # no venv yet: nothing shows whether it changed
    packages.mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").write_text("", encoding="utf-8")
    first = environment.ask(str(python), "test")
    assert first == environment.ask(str(python), "test") and len(asked) == 3
    os.utime(packages, ns=(1, 1))
    assert environment.ask(str(python), "other") is not None and len(asked) == 4
    python.unlink()
    assert environment.ask(str(python), "test") is None
