"""The clients under test: PEFTSMITH_CLAUDE_BINS, or the oldest supported and the newest release from npm."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGES = ("2.1.197", "latest")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "claude" in metafunc.fixturenames:
        given = os.environ.get("PEFTSMITH_CLAUDE_BINS", "")
        clients = [entry for entry in given.split(os.pathsep) if entry] or list(PACKAGES)
        metafunc.parametrize(
            "claude", clients, indirect=True, ids=[_name(client) for client in clients], scope="session"
        )


@pytest.fixture(scope="session")
def claude(request: pytest.FixtureRequest) -> Path:
    """Path of one client; npm installs the two packages into .cache/claude when no others are given."""
    if request.param not in PACKAGES:
        binary = Path(request.param)
        if not binary.exists():
            pytest.fail(f"PEFTSMITH_CLAUDE_BINS names {binary}, which does not exist")
        return binary
    folder = REPOSITORY / ".cache" / "claude" / request.param
    binary = folder / "node_modules" / ".bin" / "claude"
    if not binary.exists():
        if not shutil.which("npm"):
            pytest.fail("npm is missing: install Node.js, or set PEFTSMITH_CLAUDE_BINS to claude executables")
        folder.mkdir(parents=True, exist_ok=True)
        package = f"@anthropic-ai/claude-code@{request.param}"
        subprocess.run(["npm", "install", "--prefix", str(folder), "--no-fund", "--no-audit", package], check=True)
    return binary


def _name(client: str) -> str:
    return client if client in PACKAGES else "-".join(Path(client).parts[-4:-3]) or client
