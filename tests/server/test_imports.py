"""Neither the server nor the CLI ever imports a library of the training plane."""

import subprocess
import sys

import pytest

from tests.wire import HANDSHAKE, MCP_SERVER, Wire

pytestmark = pytest.mark.slow

TRAINING_PLANE = {"torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes", "sklearn"}
# Needed by single operations only; at start they would cost every client.
LATE = {"pyarrow", "tokenizers", "huggingface_hub", "ruamel", "numpy", "peftsmith.plan", "peftsmith.secrets"}


def imported(importtime: str) -> set[str]:
    lines = [line for line in importtime.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip() for line in lines}


def families(modules: set[str]) -> set[str]:
    return {module.split(".")[0] for module in modules}


def test_the_server_imports_no_training_library_even_after_a_call(tmp_path):
    (tmp_path / "rows.txt").write_text("nothing", encoding="utf-8")
    with Wire([sys.executable, "-X", "importtime", "-P", "-m", "peftsmith.server"], cwd=tmp_path) as wire:
        wire.ask("initialize", HANDSHAKE)
        wire.ask("tools/list")
        _, failed = wire.call("scan_secrets", {"path": "rows.txt"})
        wire.call("inspect_model", {"model": "."})
    modules = imported(wire.errors)
    assert failed is False
    assert {"mcp", "peftsmith.operations", "peftsmith.secrets"} <= modules
    assert not families(modules) & TRAINING_PLANE


def test_the_server_starts_without_what_single_operations_need(tmp_path):
    with Wire([sys.executable, "-X", "importtime", "-P", "-m", "peftsmith.server"], cwd=tmp_path) as wire:
        wire.ask("initialize", HANDSHAKE)
        wire.ask("tools/list")
    assert not imported(wire.errors) & LATE


@pytest.mark.parametrize("arguments", [["--help"], ["scan-secrets", "."], ["list-runs"]])
def test_the_cli_imports_no_training_library(arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-P", "-m", "peftsmith.cli", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(MCP_SERVER), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert not families(imported(done.stderr)) & TRAINING_PLANE
