"""The committed manifest equals what the real server says, in memory and over a real process's pipes."""

import json
import sys

import pytest

from peftsmith.server import manifest
from tests.wire import HANDSHAKE, Wire

pytestmark = pytest.mark.slow


def committed():
    return json.loads(manifest.FILE.read_text(encoding="utf-8"))


def recorded(document, version, method):
    result = document["answers"][version][method]
    return recorded(document, result, method) if isinstance(result, str) else result


def test_the_committed_manifest_is_up_to_date():
    assert manifest.FILE.read_text(encoding="utf-8") == manifest.text(), "run python -m peftsmith.server.manifest"


@pytest.mark.parametrize("version", ["2025-11-25", "2024-11-05", "2026-07-28"])
def test_a_real_server_process_gives_the_same_answers(version, tmp_path):
    document = committed()
    with Wire([sys.executable, "-P", "-m", "peftsmith.server"], cwd=tmp_path) as wire:
        for request in manifest.requests(version):
            reply = wire.ask(request["method"], request["params"])
            if request["method"] in document["answers"][version]:
                assert reply["result"] == recorded(document, version, request["method"])
            else:
                assert "error" in reply


def test_a_real_server_process_refuses_as_recorded(tmp_path):
    document = committed()
    with Wire([sys.executable, "-P", "-m", "peftsmith.server"], cwd=tmp_path) as wire:
        assert wire.ask("tools/list")["error"] == document["uninitialized"]
        assert (
            wire.ask("initialize", {**HANDSHAKE, "protocolVersion": "1999-01-01"})["result"]["protocolVersion"]
            == (document["handshake"][-1])
        )


def test_check_tells_a_stale_manifest(tmp_path, monkeypatch, capsys):
    stale = tmp_path / "manifest.json"
    stale.write_text(
        manifest.FILE.read_text(encoding="utf-8").replace("Inspect this machine", "Look"), encoding="utf-8"
    )
    monkeypatch.setattr(manifest, "FILE", stale)
    monkeypatch.setattr(sys, "argv", ["manifest", "--check"])
    assert manifest.main() == 1
    assert "differs from the server" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["manifest"])
    assert manifest.main() == 0
    monkeypatch.setattr(sys, "argv", ["manifest", "--check"])
    assert manifest.main() == 0
