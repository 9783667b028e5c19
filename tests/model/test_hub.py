"""Hub models through the real huggingface_hub, against a hub on the loopback interface."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from peftsmith.errors import PeftsmithError
from peftsmith.model import anatomy, source
from tests.model.hub_server import COMMIT, serve

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


@pytest.fixture
def models(tiny_model, tmp_path):
    """tiny; gated (its files are refused); pickled (no safetensors); padded (a header longer than the first read)."""
    padded = shutil.copytree(tiny_model, tmp_path / "padded")
    content = (padded / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"]["note"] = "x" * 300_000
    text = json.dumps(header).encode()
    (padded / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    pickled = shutil.copytree(tiny_model, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    return {"own/tiny": tiny_model, "own/gated": tiny_model, "own/pickled": pickled, "own/padded": padded}


@pytest.fixture
def at(monkeypatch, tmp_path):
    """Point huggingface_hub (its constants are read at import) at a hub and at an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def point(url: str, *, offline: bool = False) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)

    return point


def test_a_gated_model_with_access_says_so(tiny_model, at):
    with serve({"own/granted": tiny_model, "own/tiny": tiny_model}) as hub:
        at(hub.url)
        granted, free = anatomy.inspect("own/granted"), anatomy.inspect("own/tiny")
    assert granted.gated is True and "model.access.gated" in {each.id for each in granted.findings}
    assert free.gated is False and "model.access.gated" not in {each.id for each in free.findings}


def test_a_hub_model_is_read_without_its_weights(models, at):
    with serve(models) as hub:
        at(hub.url)
        body = anatomy.inspect("own/tiny")
        paths = [path for _, path, _ in hub.seen]
    local = anatomy.inspect(str(models["own/tiny"]))
    assert body.id == "own/tiny" and body.commit == COMMIT and body.folder is None
    assert body.licence == "apache-2.0"
    assert (body.parameters, body.linear, body.eos_token_ids) == (local.parameters, local.linear, local.eos_token_ids)
    assert body.chat_template == local.chat_template
    weights = [(method, span) for method, path, span in hub.seen if path.endswith("model.safetensors")]
    assert weights == [("GET", "bytes=0-131071")]
    assert not [path for path in paths if "agent" in path or "telemetry" in path]


def test_a_long_header_takes_a_second_request(models, at):
    with serve(models) as hub:
        at(hub.url)
        found = source.open_model("own/padded", COMMIT)
        spans = [span for _, path, span in hub.seen if path.endswith("model.safetensors")]
    assert found.tensors.keys() == source.open_model(str(models["own/padded"])).tensors.keys()
    assert spans[0] == "bytes=0-131071" and spans[1].startswith("bytes=131072-") and len(spans) == 2


def test_a_server_that_ignores_ranges_gives_the_same(models, at):
    with serve(models, ranges=False) as hub:
        at(hub.url)
        found = source.open_model("own/padded")
    assert found.tensors.keys() == source.open_model(str(models["own/padded"])).tensors.keys()


@pytest.mark.parametrize(
    ("model", "revision", "said", "step"),
    [
        ("own/nothing", None, "no such model", "spelling"),
        ("own/gated", None, "gated", "hf auth login"),
        ("own/pickled", None, "pickle", "safetensors"),
        ("own/tiny", "9" * 40, "no such revision", "revision"),
        ("own/broken", None, "status 500", "again"),
    ],
)
def test_what_cannot_be_had_is_said(models, at, model, revision, said, step):
    with serve(models) as hub:
        at(hub.url)
        with pytest.raises(PeftsmithError) as caught:
            source.open_model(model, revision)
    assert said in str(caught.value) and step in caught.value.next_step


@pytest.mark.parametrize("revision", ["../x", "a b", "-x", ""])
def test_a_strange_revision_is_refused_before_anything_is_asked(models, at, revision):
    with serve(models) as hub:
        at(hub.url)
        with pytest.raises(PeftsmithError, match="revision"):
            source.open_model("own/tiny", revision)
        assert hub.seen == []


def test_without_network_the_cache_serves_and_says_so(models, at):
    with serve(models) as hub:
        at(hub.url)
        online = anatomy.inspect("own/tiny")
    at(NOBODY)
    unreachable = anatomy.inspect("own/tiny", COMMIT)
    at(NOBODY, offline=True)
    offline = anatomy.inspect("own/tiny", COMMIT)
    for body in (unreachable, offline):
        assert body.parameters == online.parameters and body.linear == online.linear
        assert {"model.source.cached", "model.weights.missing"} <= {each.id for each in body.findings}
    with pytest.raises(PeftsmithError, match="cannot be reached") as caught:
        source.open_model("own/never-seen")
    assert "HF_HUB_OFFLINE" in caught.value.next_step


def test_a_tokenizer_that_was_never_fetched_is_unknown_without_network(models, at):
    with serve(models) as hub:
        at(hub.url)
        source.open_model("own/tiny")
    at(NOBODY, offline=True)
    body = anatomy.inspect("own/tiny", COMMIT)
    assert [each.severity for each in body.findings if each.id == "model.tokenizer.missing"] == ["unknown"]
    with pytest.raises(PeftsmithError, match="tokenizer"):
        source.tokenizer_folder(source.open_model("own/tiny", COMMIT))


def test_the_users_own_variables_are_honoured(models, tmp_path):
    """HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE as huggingface_hub itself reads them, in a fresh process."""
    code = (
        "from peftsmith.model import source\n"
        "found = source.open_model('own/tiny')\n"
        "print(found.commit, len(found.tensors), found.small)"
    )
    package = Path(source.__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(package), "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_CACHE", None)

    def run(**added: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code], env={**environment, **added}, capture_output=True, text=True, check=False
        )

    with serve(models) as hub:
        done = run(HF_ENDPOINT=hub.url)
        assert done.returncode == 0, done.stderr
        asked = len(hub.seen)
        offline = run(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
        assert len(hub.seen) == asked
    commit, tensors, small = done.stdout.split()
    assert commit == COMMIT and int(tensors) == 20 and Path(small).is_relative_to(tmp_path / "home")
    assert "PeftsmithError" not in offline.stderr and offline.stdout.split()[:2] == [COMMIT, "0"]
