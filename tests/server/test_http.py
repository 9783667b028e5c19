"""Streamable HTTP: loopback only, a token for every request, clear words when it cannot start."""

import http.client
import json
import socket
import subprocess
import sys

import pytest

from peftsmith.errors import PeftsmithError
from tests.wire import HANDSHAKE, MCP_SERVER

pytestmark = pytest.mark.slow

TOKEN = "t" * 32
SERVE = [sys.executable, "-P", "-m", "peftsmith.server", "--http"]


def environment(folder, **more):
    return {"PYTHONPATH": str(MCP_SERVER), "PATH": "/usr/bin:/bin", "HOME": str(folder), **more}


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    folder = tmp_path_factory.mktemp("http")
    with subprocess.Popen(
        [*SERVE, "0"],
        cwd=folder,
        env=environment(folder, PEFTSMITH_HTTP_TOKEN=TOKEN),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        address = process.stderr.readline()
        assert address.startswith("peftsmith: listening on http://127.0.0.1:"), address + process.stderr.read()
        yield int(address.rsplit(":", 1)[1].split("/")[0])
        process.terminate()
        assert process.wait(10) is not None


def post(port, token=TOKEN, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HANDSHAKE})
    sent = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream", **headers}
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    connection.request("POST", "/mcp", body=body, headers=sent)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response, text


def test_with_the_token_the_handshake_works(port):
    response, text = post(port)
    assert response.status == 200
    assert '"name":"peftsmith"' in text


@pytest.mark.parametrize("token", [None, "", "t" * 31, "t" * 33, "T" * 32])
def test_without_the_right_token_nothing_is_served(port, token):
    response, text = post(port, token)
    assert response.status == 401
    assert response.getheader("WWW-Authenticate").startswith("Bearer")
    assert "peftsmith" not in text


@pytest.mark.parametrize("header", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_a_rebound_name_is_refused_even_with_the_token(port, header):
    response, _ = post(port, **header)
    assert response.status in (403, 421)


def test_it_listens_on_loopback_only(port):
    addresses = {item[4][0] for item in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in addresses - {"127.0.0.1", "127.0.1.1"}:
        with socket.socket() as probe:
            probe.settimeout(2)
            assert probe.connect_ex((address, port)) != 0


def test_it_does_not_start_without_a_token(tmp_path):
    done = subprocess.run(
        [*SERVE, "0"], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "PEFTSMITH_HTTP_TOKEN" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("token", ["", "short", "t" * 15])
def test_a_short_token_is_none(token):
    from peftsmith.server.http import serve_http

    with pytest.raises(PeftsmithError, match="at least 16 characters"):
        serve_http(0, token)


def test_a_port_in_use_is_one_clear_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        done = subprocess.run(
            [*SERVE, str(number)],
            cwd=tmp_path,
            env=environment(tmp_path, PEFTSMITH_HTTP_TOKEN=TOKEN),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == f"peftsmith: Port {number} is in use. Choose another one with --http PORT.\n"
