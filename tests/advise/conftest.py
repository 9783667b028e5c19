"""Base models for tests of advice, inspected once a session."""

import pytest

from peftsmith import files
from peftsmith.model import anatomy
from tests.advise import models
from tests.tiny import write_tiny_model


@pytest.fixture(scope="session")
def bodies(tmp_path_factory):
    """Name -> anatomy. `plain` is the large Llama without a chat template."""
    root = tmp_path_factory.mktemp("advice")
    files.set_roots(["/"])
    folders = {name: models.write(root / name, config) for name, config in models.CONFIGS.items()}
    folders["plain"] = models.write(root / "plain", models.LLAMA_8B, template=False)
    folders["tiny"] = write_tiny_model(root / "tiny")
    return {name: anatomy.inspect(str(folder)) for name, folder in folders.items()}
