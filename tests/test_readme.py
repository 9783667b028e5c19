"""The README's commands run as they stand there, and what it names exists."""

import json
import re
import shlex
from pathlib import Path

import pytest

from peftsmith import cli

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("peftsmith ")
]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md"]


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
