"""What is committed about packed rows is what the installed transformers does."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from peftsmith.knowledge import packing
from tests.conftest import REPOSITORY

# A mask of transformers' own making, one made by the class, a layer with a state, one that refuses, a mixture
TRIED = ("llama", "opt", "mamba", "falcon_h1", "mixtral")


@pytest.mark.training
def test_the_committed_experiment_comes_out_the_same(training_python, tmp_path):
    output = tmp_path / "packing.json"
    argv = [str(training_python), "-m", "peftsmith.worker.apart", str(output), "--types", ",".join(TRIED)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "mcp_server")}
    done = subprocess.run(argv, capture_output=True, encoding="utf-8", env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    types = json.loads(output.read_text(encoding="utf-8"))["types"]
    assert types == {name: packing._types()[name] for name in TRIED}


def test_the_control_plane_reads_it():
    assert [packing.keeps_apart(name) for name in ("llama", "mamba", "unheard_of")] == [True, False, None]
    refusal = packing.keeps_apart("falcon_h1")
    assert isinstance(refusal, str) and "causal_conv1d" in refusal
    assert [packing.labelled(name) for name in ("llama", "mixtral", "unheard_of")] == [True, False, None]
