"""What `claude plugin validate` does not see: misspelt fields, tools that do not exist, links that lead nowhere."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from peftsmith import plan, secrets
from peftsmith.finding import catalogue
from peftsmith.operations import OPERATIONS
from tests.conftest import REPOSITORY

PREFIX = "mcp__plugin_peftsmith_peftsmith__"
BUILT_IN = {"Read", "Write", "Edit", "Bash", "Grep", "Glob", "Skill"}
# what the clients honour in a plugin; permissionMode, hooks, mcpServers and initialPrompt are ignored there
AGENT_FIELDS = {"name", "description", "model", "effort", "maxTurns", "tools", "disallowedTools", "skills", "memory"}
AGENT_FIELDS |= {"background", "isolation", "color"}
SKILL_FIELDS = {"name", "description", "when_to_use", "argument-hint", "allowed-tools", "disable-model-invocation"}
SKILL_FIELDS |= {"user-invocable", "model", "context", "agent", "paths"}
COLOURS = {"red", "blue", "green", "yellow", "purple", "orange", "pink", "cyan"}
LISTING_LIMIT = 1536  # characters of description and when_to_use that the clients show

AGENTS = sorted((REPOSITORY / "agents").glob("*.md"))
SKILLS = sorted((REPOSITORY / "skills").glob("*/SKILL.md"))
PAGES = [
    *AGENTS,
    *sorted((REPOSITORY / "skills").rglob("*.md")),
    REPOSITORY / "SECURITY.md",
    REPOSITORY / "docs" / "security" / "SECURITY-RULES.md",
]


def page_id(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def parts(path: Path) -> tuple[dict[str, Any], str]:
    """Frontmatter and body of a markdown file."""
    text = path.read_text(encoding="utf-8")
    opening, front, body = text.split("---\n", 2)
    assert opening == ""
    return dict(YAML(typ="safe", pure=True).load(front)), body


def load(name: str) -> Any:
    return json.loads((REPOSITORY / name).read_text(encoding="utf-8"))


def test_manifest():
    manifest = load(".claude-plugin/plugin.json")
    package = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert manifest["name"] == package["name"] == "peftsmith"
    assert manifest["version"] == package["version"]
    assert manifest["license"] == package["license"]
    server = manifest["mcpServers"]["peftsmith"]
    assert server["command"] == "python3"
    (argument,) = server["args"]
    assert (REPOSITORY / argument.replace("${CLAUDE_PLUGIN_ROOT}/", "")).is_file()
    assert "env" not in server  # an unset option would arrive as the empty string and hide the user's own variable


def test_marketplace():
    marketplace = load(".claude-plugin/marketplace.json")
    (entry,) = marketplace["plugins"]
    assert (entry["name"], entry["source"]) == ("peftsmith", "./")
    assert "version" not in entry  # plugin.json has it


def test_nothing_at_the_root_that_disturbs_a_clone():
    for name in (".mcp.json", "CLAUDE.md", "settings.json"):
        assert not (REPOSITORY / name).exists()
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").split()) >= 40


def test_the_guard_sees_every_writing_tool_and_all_of_ours():
    (entry,) = load("hooks/hooks.json")["hooks"]["PreToolUse"]
    for tool in ("Write", "Edit", "MultiEdit", "NotebookEdit", *(PREFIX + name for name in OPERATIONS)):
        assert re.fullmatch(entry["matcher"], tool)
    for tool in ("Read", "Bash", "mcp__other__write"):
        assert not re.fullmatch(entry["matcher"], tool)


@pytest.mark.parametrize("path", AGENTS, ids=page_id)
def test_agent(path):
    front, body = parts(path)
    assert front.keys() <= AGENT_FIELDS
    assert front["name"] == path.stem
    assert front["color"] in COLOURS
    for tool in str(front["tools"]).split(", "):
        assert tool in BUILT_IN or tool == PREFIX + "*" or tool.removeprefix(PREFIX) in OPERATIONS
    for skill in front["skills"]:
        assert (REPOSITORY / "skills" / skill / "SKILL.md").is_file()
    assert "security-rules" in front["skills"]
    assert "@docs" not in body  # it would stay literal text
    assert len(body.split()) < 900


@pytest.mark.parametrize("path", SKILLS, ids=page_id)
def test_skill(path):
    front, body = parts(path)
    assert front.keys() <= SKILL_FIELDS
    assert front["name"] == path.parent.name
    assert len(front["description"]) + len(front.get("when_to_use", "")) <= LISTING_LIMIT
    assert len(body.splitlines()) < 500
    assert "!`" not in body  # a preloaded skill with a command keeps its agent from starting


def test_the_skill_approves_what_reads_and_nothing_else():
    front, _ = parts(REPOSITORY / "skills" / "peft" / "SKILL.md")
    reading = {PREFIX + name for name, operation in OPERATIONS.items() if operation.reads_only}
    assert set(front["allowed-tools"]) == reading
    assert len(front["allowed-tools"]) == len(reading)


def test_the_rules_skill_is_for_agents_and_says_what_the_document_says():
    front, body = parts(REPOSITORY / "skills" / "security-rules" / "SKILL.md")
    assert front["user-invocable"] is False
    document = (REPOSITORY / "docs" / "security" / "SECURITY-RULES.md").read_text(encoding="utf-8")
    for rule in (
        *("your_service_key_here", "{project}_{env}_your_key_here", 'os.environ["HF_TOKEN"]', ".env.example"),
        *(secrets.ALLOW_MARK, "https://huggingface.co/settings/tokens", "trust_remote_code", "safetensors"),
    ):
        assert rule in body
        assert rule in document


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_named_tools_and_findings_exist(path):
    text = path.read_text(encoding="utf-8")
    verbs = {name.split("_")[0] for name in OPERATIONS}
    for name in re.findall(r"`([a-z]+_[a-z_]+)`", text):
        assert name in OPERATIONS or name.split("_")[0] not in verbs, name
    stages = {id_.split(".")[0] for id_ in catalogue()}
    for id_ in re.findall(r"`([a-z]+\.[a-z0-9_]+(?:\.[a-z0-9_]+)?)`", text):
        known = id_ in catalogue() or (REPOSITORY / id_).exists() or id_.endswith((".yaml", ".json", ".py"))
        assert known or id_.split(".")[0] not in stages or id_ in plan.flatten_fields(plan.FineTunePlan), id_


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_pages_hold_no_credential(path):
    assert secrets.find_in_text(path.read_text(encoding="utf-8")) == []


def test_the_agent_knows_every_step():
    _, body = parts(REPOSITORY / "agents" / "peft-specialist.md")
    unnamed = {name for name in OPERATIONS if f"`{name}`" not in body}
    assert unnamed <= {"stop_run", "scan_secrets"}
    for heading in ("Summary", "Artefacts", "Usage", "Quality", "Next steps"):
        assert f"**{heading}**" in body
