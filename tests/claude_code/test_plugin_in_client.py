"""The plugin inside the real clients: it validates, installs, and its parts arrive where they should."""

from __future__ import annotations

import pytest

from peftsmith.operations import OPERATIONS
from tests.claude_code.harness import PREFIX, converse, manage
from tests.claude_code.messages_api import Conversation, Talk, say, text_of, use
from tests.credentials import make

pytestmark = pytest.mark.system

AGENT = "You take a fine-tuning task from the user's data"


def test_validates(claude, tmp_path):
    for target in (".", ".claude-plugin/plugin.json"):
        done = manage(claude, tmp_path, "plugin", "validate", "--strict", target)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Validation passed" in done.stdout


def test_works_when_installed_from_the_marketplace(claude, tmp_path):
    home = tmp_path / "home"
    added = manage(claude, home, "plugin", "marketplace", "add", "./")
    assert added.returncode == 0, added.stdout + added.stderr
    installed = manage(claude, home, "plugin", "install", "peftsmith@peftsmith")
    assert "Successfully installed plugin: peftsmith@peftsmith" in installed.stdout, installed.stderr
    details = manage(claude, home, "plugin", "details", "peftsmith").stdout
    for part in ("Skills (2)", "Agents (1)", "Hooks (1)", "peft-specialist", "security-rules"):
        assert part in details

    def talk() -> Talk:
        [seen] = yield [use(PREFIX + "scan_secrets", path=".")]
        assert seen.json()["scanned_files"] == 0
        [refused] = yield [use("Write", file_path=str(tmp_path / "project" / "x.py"), content=make("github", 1).value)]
        assert "secret guard stopped" in refused.text

    conversation = Conversation(talk)
    allowed = ("Write", PREFIX + "scan_secrets")
    outcome = converse(claude, tmp_path, [conversation], allowed=allowed, installed=True)
    assert outcome.code == 0, outcome.stderr
    assert len(conversation.results) == 2


def test_the_client_sees_every_tool_and_part(claude, tmp_path):
    def talk() -> Talk:
        yield [say("Nothing to do.")]

    outcome = converse(claude, tmp_path, [Conversation(talk)], allowed=("Read",))
    assert outcome.code == 0, outcome.stderr
    assert {"name": "plugin:peftsmith:peftsmith", "status": "connected"}.items() <= outcome.init["mcp_servers"][
        0
    ].items()
    assert {name for name in outcome.init["tools"] if name.startswith(PREFIX)} == {PREFIX + name for name in OPERATIONS}
    assert "peftsmith:peft-specialist" in outcome.init["agents"]
    assert "peftsmith:peft" in outcome.init["skills"]


def test_the_subagent_has_the_rules_and_the_tools(claude, tmp_path):
    def main() -> Talk:
        task = {"description": "look", "prompt": "Look for secrets here.", "run_in_background": False}
        [answer] = yield [use("Agent", subagent_type="peftsmith:peft-specialist", **task)]
        assert not answer.is_error, answer.text
        assert "Looked: 1 file" in answer.text

    def specialist() -> Talk:
        [seen] = yield [use(PREFIX + "scan_secrets", path=".")]
        yield [say(f"Looked: {seen.json()['scanned_files']} file")]

    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "notes.txt").write_text("rank 16\n", encoding="utf-8")
    agent = Conversation(specialist, AGENT)
    outcome = converse(
        claude, tmp_path, [Conversation(main), agent], allowed=("Agent", "Task", PREFIX + "scan_secrets")
    )
    assert outcome.code == 0, outcome.stderr
    assert len(agent.results) == 1
    first = text_of(agent.requests[0]["system"]) + text_of(agent.requests[0]["messages"])
    assert "your_service_key_here" in first
    assert "{project}_{env}_your_key_here" in first
    offered = {tool["name"] for tool in agent.requests[0]["tools"]}
    assert {"Read", "Write", "Edit", "Bash", "Skill"} <= offered  # both clients search through Bash, without Grep
    assert {PREFIX + name for name in OPERATIONS} <= offered


def test_the_skill_approves_its_reading_tools(claude, tmp_path):
    """Nothing is in --allowedTools: what runs does so because the skill, called by slash, pre-approves it."""

    def unprepared() -> Talk:
        [refused] = yield [use(PREFIX + "scan_secrets", path=".")]
        assert refused.is_error
        assert "requested permissions" in refused.text

    def prepared() -> Talk:
        [reading] = yield [use(PREFIX + "scan_secrets", path=".")]
        assert reading.json()["findings"] == []
        [writing] = yield [use(PREFIX + "generate_project", project=".")]
        assert writing.is_error
        assert "requested permissions" in writing.text

    for name, talk, prompt, results in (("a", unprepared, "go", 1), ("b", prepared, "/peftsmith:peft", 2)):
        conversation = Conversation(talk)
        outcome = converse(claude, tmp_path / name, [conversation], allowed=("Glob",), prompt=prompt)
        assert outcome.code == 0, outcome.stderr
        assert len(conversation.results) == results


@pytest.mark.parametrize("guard", ["on", "off"])
def test_the_guard_stops_credentials_and_nothing_else(claude, tmp_path, guard):
    project = tmp_path / "project"
    token = make("huggingface", 20).value
    results = []

    def main() -> Talk:
        results.extend(
            (yield [use("Write", file_path=str(project / "ok.py"), content='token = os.environ["HF_TOKEN"]\n')])
        )
        results.extend((yield [use("Write", file_path=str(project / "leak.py"), content=f'token = "{token}"\n')]))
        marked = f'token = "{token}"  # peftsmith: allow-secret\n'
        results.extend((yield [use("Write", file_path=str(project / "marked.py"), content=marked)]))
        results.extend((yield [use(PREFIX + "scan_secrets", path=token)]))

    allowed = ("Write", PREFIX + "scan_secrets")
    outcome = converse(claude, tmp_path, [Conversation(main)], allowed=allowed, PEFTSMITH_GUARD=guard)
    assert outcome.code == 0, outcome.stderr
    plain, planted, marked, argument = results
    assert not plain.is_error
    assert not marked.is_error
    assert (project / "ok.py").exists()
    assert (project / "marked.py").exists()
    assert (project / "leak.py").exists() == (guard == "off")
    assert planted.is_error == (guard == "on")
    if guard == "on":
        for refused in (planted, argument):
            assert "peftsmith's secret guard stopped this" in refused.text
            assert token not in refused.text
        assert "huggingface token at line 1 of content" in planted.text
        assert "huggingface token at line 1 of path" in argument.text
    else:
        assert "secret guard" not in argument.text
