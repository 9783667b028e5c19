"""A base model with the modules of its real classes, by way of the warm worker, kept on disk.

Knows: what identifies a skeleton (config, task, library versions), where it is cached, and when the classes are asked.
Does not know: how it is built (worker/jobs/skeleton.py), or how it is compared with the files (agreement.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftsmith import files
from peftsmith.finding import finding
from peftsmith.model import anatomy, source
from peftsmith.model.modules import Skeleton, from_json

if TYPE_CHECKING:
    from peftsmith.machine.environment import Environment

SECONDS = 120.0
_FORMAT = 1
_LARGEST = 64 << 20


def inspect(model: str, revision: str | None, project: Path, *, exact_modules: bool = False) -> anatomy.Anatomy:
    """The anatomy of a local folder or a hub model. The real classes are asked when `exact_modules` is set, or when the
    files do not tell the modules and `project` has a training environment.

    Raises PeftsmithError as source.open_model does, and when `exact_modules` is set and there is no environment.
    """
    opened = source.open_model(model, revision)
    found = anatomy.describe(opened)
    if (found.supported and not exact_modules) or not opened.config:
        return found
    from peftsmith.machine import environment

    usable = [each for each in environment.find(project) if each.usable]
    if not usable and not exact_modules:
        return found
    chosen = environment.best(usable) if usable else environment.require(project)
    from peftsmith.worker.client import JobFailed

    try:
        return anatomy.describe(opened, real=exact(opened.config, chosen))
    except JobFailed as error:
        note = finding("model.modules.not_built", f"The installed classes do not build this model: {error.cause}")
        return replace(found, findings=[*found.findings, note])


def exact(config: Mapping[str, Any], environment: Environment, task: str | None = None) -> Skeleton:
    """The skeleton of the class that `task` takes for this config.json (None: the config's own architecture).

    Raises client.JobFailed when the libraries cannot build it, PeftsmithError when no worker can be started.
    """
    key = files.sha256_json([_FORMAT, dict(config), task, environment.key])[:32]
    place = files.cache_folder("skeletons") / f"{key}.json"
    if place.is_file():
        try:
            return from_json(files.read_json(place, largest=_LARGEST))
        except (KeyError, TypeError, ValueError):
            place.unlink(missing_ok=True)  # of an older format or half a file: made again below
    from peftsmith.worker import client

    answer = client.call(environment, "skeleton", {"config": dict(config), "task": task}, timeout=SECONDS)
    files.write_text(place, json.dumps(answer["skeleton"]))
    return from_json(answer["skeleton"])
