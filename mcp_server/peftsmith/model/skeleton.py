"""The exact skeleton of a model from its real classes, by way of the warm worker, kept on disk.

Knows: what identifies a skeleton (config, task, library versions), and where it is cached.
Does not know: how it is built (worker/jobs/skeleton.py), or what it is used for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peftsmith import files
from peftsmith.model.modules import Skeleton, from_json
from peftsmith.worker import client

if TYPE_CHECKING:
    from peftsmith.machine.environment import Environment

SECONDS = 120.0
_FORMAT = 1
_LARGEST = 64 << 20


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
    answer = client.call(environment, "skeleton", {"config": dict(config), "task": task}, timeout=SECONDS)
    files.write_text(place, json.dumps(answer["skeleton"]))
    return from_json(answer["skeleton"])
