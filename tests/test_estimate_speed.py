"""The memory estimate stays fast: what its command imports, and how long a very large model takes."""

import statistics
import subprocess
import sys

from benchmarks import estimate_speed
from peftsmith import operations
from tests.server.test_imports import TRAINING_PLANE, families, imported
from tests.wire import MCP_SERVER


def test_the_estimate_command_imports_only_what_it_needs(tmp_path):
    model = estimate_speed.model_folder(tmp_path / "model", estimate_speed.LLAMA_8B)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-P", "-m", "peftsmith.cli", "estimate", str(model)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(MCP_SERVER), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "terms_gib" in done.stdout, done.stderr[-500:]
    modules = imported(done.stderr)
    assert "peftsmith.model.memory" in modules
    late = {"mcp", "rich", "ruamel", "huggingface_hub", "tokenizers", "numpy", "jinja2", "anyio", "httpx"}
    assert not families(modules) & (TRAINING_PLANE | late)
    assert not modules & {"peftsmith.model.hub", "peftsmith.machine.environment", "peftsmith.worker.client"}


def test_an_estimate_of_a_very_large_model_takes_milliseconds(tmp_path, monkeypatch):
    """Processor time, since other tests share the machine; three times the limit of benchmarks/estimate_speed.py."""
    monkeypatch.chdir(tmp_path)
    model = str(estimate_speed.model_folder(tmp_path / "405B", estimate_speed.LLAMA_405B))
    operations.estimate_memory(model)
    took = [estimate_speed.call(model, alternatives=True)[1] for _ in range(7)]
    assert statistics.median(took) <= 3 * estimate_speed.MILLISECONDS
