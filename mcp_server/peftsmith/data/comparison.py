"""Computed batches against those of the real trainer, asked in the warm worker.

Knows: what is sent and how the answer is judged: equal, different, refused, or nobody to ask.
Does not know: which rows are compared, or what else a proof holds (proof.py).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peftsmith.data import batches, handover, labels
from peftsmith.data.examples import AnyExample
from peftsmith.data.labels import Row, Settings
from peftsmith.data.rendering import Renderer
from peftsmith.finding import Finding, finding
from peftsmith.worker import client

if TYPE_CHECKING:
    from peftsmith.machine.environment import Environment

TIMEOUT_SECONDS = 300.0
State = Literal["proven", "differs", "refused", "unknown"]


def compare(
    usable: Sequence[tuple[int, AnyExample, list[Row]]],
    folder: Path,
    renderer: Renderer,
    settings: Settings,
    environment: Environment,
    size: int,
    config: dict[str, Any] | None,
) -> tuple[State, list[Finding]]:
    """Whether the trainer's batches of (row number, example, computed rows) are the computed ones, and what it says."""
    numbers = [number for number, _, _ in usable]
    if settings.trainer == "answers":  # a batch holds windows, of which a row may have several
        numbers = [number for number, _, rows in usable for _ in rows]
    rows = [each for _, _, each in usable]
    request = handover.case(folder, [example for _, example, _ in usable], settings, size)
    if settings.flattens and config is not None:
        request["config"] = config
    try:
        answer = _ask(environment, request)
    except client.JobFailed as error:
        return "unknown", [finding("data.mask.unproven", error.cause, rows=numbers, log=error.log)]
    if "error" in answer:
        return "refused", [finding("data.mask.refused", client.shown(answer["error"]), rows=numbers)]
    found: list[Finding] = []
    leak = answer.get("leak")
    if leak is not None and leak["leaks"]:
        found.append(finding("data.packing.leaks", f"with attention {leak['attention']} on a small twin", **leak))
    ours = batches.batches(rows, settings, renderer.files, size)
    theirs = [handover.read(each, settings) for each in answer["batches"]]
    if ours == theirs:
        return "proven", found
    place = next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
    involved = numbers if settings.packing else numbers[place * size : (place + 1) * size] or numbers
    message = f"{len(theirs)} batches of the trainer, {len(ours)} computed; number {place + 1} is the first to differ"
    return "differs", [*found, finding("data.mask.differs", message, rows=involved, batch=place)]


def _ask(environment: Environment, request: dict[str, Any]) -> dict[str, Any]:
    work = Path(tempfile.mkdtemp(prefix="peftsmith-proof-")).resolve()
    try:
        answer = client.call(environment, "collate", {"work": str(work), "cases": [request]}, timeout=TIMEOUT_SECONDS)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    found: dict[str, Any] = answer["cases"][0]
    return found


def training_template(folder: Path, settings: Settings, environment: Environment) -> str | None:
    """TRL's own training template for this tokenizer, with generation blocks; None when TRL has none."""
    renderer = labels.renderer_for(Renderer.load(folder), settings)
    if renderer.files.template is None:
        return None
    renderer.text([{"role": "user", "content": "a"}])  # raises for a template that TRL must not try out
    request = {"tokenizer": str(folder), "template": settings.template, "want_template": True}
    found = _ask(environment, request).get("training_template")
    return found if isinstance(found, str) else None
