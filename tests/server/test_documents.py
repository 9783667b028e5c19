"""Resources, prompts and instructions, as a client reads them."""

import json
from pathlib import Path

import anyio
import pytest
from mcp import Client

from peftsmith import plan
from peftsmith.finding import catalogue
from peftsmith.operations import OPERATIONS
from peftsmith.server import app, documents

ERAS = ("legacy", "2026-07-28")


def with_client(mode, work):
    async def talk():
        async with Client(app.build(), mode=mode) as client:
            return await work(client)

    return anyio.run(talk)


def read(uri, mode="legacy"):
    result = with_client(mode, lambda client: client.read_resource(uri))
    return result.contents[0].text


def test_instructions_fit_and_name_only_tools_that_exist():
    assert len(documents.INSTRUCTIONS.encode("utf-8")) < 2048
    for name in OPERATIONS:
        assert name in documents.INSTRUCTIONS or name == "list_runs"
    assert "unknown is never a pass" in documents.INSTRUCTIONS


@pytest.mark.parametrize("mode", ERAS)
def test_the_plan_schema_is_the_plan_s_own(mode):
    assert json.loads(read("peftsmith://schema/plan", mode)) == plan.json_schema()


def test_every_finding_of_the_catalogue_can_be_read():
    body = json.loads(read("peftsmith://findings"))
    assert set(body) == set(catalogue())
    assert all(entry["severity"] and entry["title"] and entry["fix"] for entry in body.values())


def test_the_security_rules_are_the_shipped_ones():
    rules = Path(__file__).resolve().parents[2] / "docs" / "security" / "SECURITY-RULES.md"
    assert read("peftsmith://security-rules") == rules.read_text(encoding="utf-8")


@pytest.mark.parametrize("mode", ERAS)
def test_prompts_quote_what_the_user_gave(mode):
    made = with_client(mode, lambda client: client.get_prompt("fine_tune", {"model": 'a"\nb', "data": "rows.jsonl"}))
    text = made.messages[0].content.text
    assert '"a\\"\\nb"' in text
    assert "check_project" in text
    made = with_client(mode, lambda client: client.get_prompt("diagnose", {"run": "20260101-120000-train-abcd"}))
    assert "20260101-120000-train-abcd" in made.messages[0].content.text


def test_prompts_declare_their_arguments():
    listed = with_client("legacy", lambda client: client.list_prompts()).prompts
    declared = {prompt.name: [(argument.name, argument.required) for argument in prompt.arguments] for prompt in listed}
    assert declared == {"fine_tune": [("model", True), ("data", True)], "diagnose": [("run", True)]}
