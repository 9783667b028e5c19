"""The README's commands run as they stand there; commands, files, tools and counts that a document names exist."""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from peftsmith import cli, plan
from peftsmith.operations import OPERATIONS

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("peftsmith ")
]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md"]
SKILLS = [path.relative_to(REPOSITORY).as_posix() for path in sorted((REPOSITORY / "skills").rglob("*.md"))]
DECISIONS = [path.relative_to(REPOSITORY).as_posix() for path in sorted((REPOSITORY / "docs").rglob("*.md"))]
EVERY = sorted({*DOCUMENTS, *SKILLS, *DECISIONS, "CHANGELOG.md", "agents/peft-specialist.md", "docs/benchmarks.md"})
FOLDERS = ("mcp_server", "docs", "templates", "tests", "benchmarks", "examples", "requirements", "agents", "hooks")
# Files of a project or a library, which are no part of the repository.
PROJECT = {
    "infer.py",
    "merge.py",
    "train.py",
    "evaluate.py",
    "done.json",
    "metrics.jsonl",
    "plan.lock.json",
    "plan.yaml",
    "prepared.json",
    "rejects.jsonl",
    "run.json",
    "status.json",
}
LIBRARY = {"loss/loss_utils.py", "optimizers/lorafa.py", "run_qa.py", "trainable_tokens/layer.py"}
OTHERS = PROJECT | LIBRARY
NAMES = {"ten": 10, "eleven": 11, "twelve": 12}
# Tools that decision 4 says are missing on purpose.
MISSING_ON_PURPOSE = {"merge_adapters", "export_model"}


@pytest.mark.training
def test_the_commands_run_one_after_the_other(tmp_path, monkeypatch, capsys, smollm2, training_python):
    (tmp_path / ".cache" / "models").mkdir(parents=True)
    (tmp_path / ".cache" / "models" / "smollm2").symlink_to(smollm2)
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    monkeypatch.chdir(tmp_path)
    results = {}
    for command in COMMANDS:
        arguments = shlex.split(command)[1:]
        code = cli.main([*arguments, "--json"])
        results[arguments[0]] = result = json.loads(capsys.readouterr().out)
        errors = [each for each in result.get("findings", []) if each["severity"] == "error"]
        assert code in (0, 1) and not errors, (command, result)
    assert list(results) == ["inspect-model", "audit", "data", "estimate", "plan", "generate", "check"]
    assert results["check"]["digest"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    folder = (REPOSITORY / document).parent
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (folder / target).exists(), (document, target)


def test_make_targets_that_are_named_exist():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    text = README + (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"make ([a-z-]+)", text))
    assert {"demo", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_gate_calls_the_readmes_test_command():
    assert "make test" in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")


def code_in(text: str) -> list[str]:
    """What a markdown text sets as code: fenced and indented lines, and spans."""
    fenced = [line for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    indented = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return [*fenced, *indented, *re.findall(r"`([^`\n]+)`", text)]


@pytest.mark.parametrize("document", EVERY)
def test_commands_that_are_named_exist_with_their_options(document):
    for code in code_in((REPOSITORY / document).read_text(encoding="utf-8")):
        words = shlex.split(code, comments=True) if code.startswith("peftsmith ") else []
        if words[1:]:
            command = cli.GROUPS.get((words[1], words[2] if words[2:] else ""), words[1])
            known = cli._parser([command])._subparsers._group_actions[0].choices
            assert command in known, (document, code)
            options = {option for action in known[command]._actions for option in action.option_strings}
            assert {word for word in words if word.startswith("--")} <= options, (document, code)


@pytest.fixture(scope="module")
def repository_files() -> list[str]:
    found = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*") if "__pycache__" not in path.parts]
    return [f"/{path.relative_to(REPOSITORY).as_posix()}" for path in (*found, *REPOSITORY.glob("*.*"))]


@pytest.mark.parametrize("document", EVERY)
def test_files_that_are_named_exist(document, repository_files):
    for code in code_in((REPOSITORY / document).read_text(encoding="utf-8")):
        for name in re.findall(
            r"(?<![\w/.*<-])((?:[\w-]+/)*[\w.-]+\.(?:py|toml|md|json|jsonl|j2|yaml))(?![\w*])", code
        ):
            there = any(path.endswith(f"/{name}") for path in repository_files)
            assert there or name in OTHERS, (document, name)


@pytest.mark.parametrize("document", EVERY)
def test_tools_that_are_named_exist(document):
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    verbs = {name.split("_")[0] for name in OPERATIONS}
    named = {name for name in re.findall(r"`([a-z]+_[a-z_]+)`", text) if name.split("_")[0] in verbs}
    assert named - MISSING_ON_PURPOSE <= OPERATIONS.keys(), document


def test_counts_in_the_readme_are_those_of_the_code():
    text = " ".join(README.split())
    (formats,) = re.findall(r"Data is read in (\w+) formats", text)
    assert NAMES[formats] == len(get_args(plan.DataFormat))
    package = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (python,) = re.findall(r"Python (3\.\d+) or newer", text)
    assert package["requires-python"] == f">={python}"
