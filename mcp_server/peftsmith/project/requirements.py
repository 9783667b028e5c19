"""requirements.txt of a generated project: the tested pins with their hashes, without what the plan does not need.

Knows: the layout of requirements/train.txt and which packages serve one kind of plan only.
Does not know: what is installed anywhere (machine/environment.py).
"""

from __future__ import annotations

import re
from functools import cache

from peftsmith import assets
from peftsmith.errors import PeftsmithError
from peftsmith.knowledge import methods
from peftsmith.plan import FineTunePlan

# Its build differs by machine (CPU, CUDA, Metal), so that no one hash fits all and it is not in requirements/train.txt.
TORCH = "2.13.0"
_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==")
_CLASSIFIER = {"joblib", "narwhals", "scikit-learn", "scipy", "threadpoolctl"}
_TENSORBOARD = {"absl-py", "grpcio", "markdown", "protobuf", "tensorboard", "tensorboard-data-server", "werkzeug"}
_CORDA = {"attrs"}  # PEFT's module imports it and does not ask for it
_QUANTISER = {"bitsandbytes"}
_HEADER = f"""\
# The versions that these scripts were tested with. Torch comes first and by version only,
# since its build differs by machine (https://pytorch.org/get-started):
#     pip install torch=={TORCH}
#     pip install --require-hashes --no-deps -r requirements.txt
"""


def torch_version() -> str:
    return TORCH


def pinned() -> str:
    """All shipped pins, one package with its hashes after the other."""
    return "".join(block for _, block in _pins())


def for_plan(plan: FineTunePlan) -> str:
    """The text of requirements.txt; PeftsmithError when the shipped pins are damaged."""
    if any(library(one) == "adapters" for one in plan.alone().values()):
        return _HEADER + "".join(block for _, block in _pins("bottleneck.txt"))
    unneeded: set[str] = set()
    # AdaMSS clusters with scikit-learn.
    clusters = any(one.method.peft_type == "ADAMSS" for one in plan.alone().values())
    if plan.task not in ("classification", "sequence_classification") and not clusters:
        unneeded |= _CLASSIFIER
    if plan.method.config.get("init_lora_weights") != "corda":
        unneeded |= _CORDA
    if plan.tracking != "tensorboard":
        unneeded |= _TENSORBOARD
    if not quantises(plan):
        unneeded |= _QUANTISER
    return _HEADER + "".join(block for name, block in _pins() if name not in unneeded)


def library(plan: FineTunePlan) -> str:
    """The package that has the plan's method: another one needs another environment."""
    return "peft" if plan.method.full else methods.method(plan.method.peft_type).library


def quantises(plan: FineTunePlan) -> bool:
    """True when the scripts need bitsandbytes: a quantised base, or an optimiser with 8-bit states."""
    return plan.method.quantization is not None or "8bit" in plan.training.optimizer


@cache
def _pins(name: str = "train.txt") -> tuple[tuple[str, str], ...]:
    """(package, its lines) in the order of the file; every one has a hash."""
    path = assets.folder("requirements") / name
    blocks: list[tuple[str, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        pin = _PIN.match(line)
        if pin:
            blocks.append((pin[1].lower(), line))
        elif line.startswith((" ", "\t")) and blocks:
            if not line.lstrip().startswith("#"):
                blocks[-1] = (blocks[-1][0], blocks[-1][1] + line)
        elif line.strip() and not line.startswith("#"):
            raise PeftsmithError(f"requirements/{name} holds a line that is no pin", value=line, next_step="Reinstall.")
    if not blocks or any("--hash=sha256:" not in block for _, block in blocks):
        raise PeftsmithError(f"requirements/{name} lacks pins or hashes", next_step="Reinstall peftsmith.")
    return tuple(blocks)
