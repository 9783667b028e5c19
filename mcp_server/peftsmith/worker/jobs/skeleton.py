"""The exact skeleton of a base model: its real classes on the meta device.

Knows: the job's arguments and limits. Does not know: how a table is made (worker/table.py), or who caches it.
"""

from __future__ import annotations

from typing import Any

from peftsmith.worker import table
from peftsmith.worker.child import Report

LARGEST = {"num_hidden_layers": 2000, "num_layers": 2000, "n_layer": 2000, "vocab_size": 10_000_000}


def run(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    """`{"config": config.json as a dict, "task": None or a key of table.TASKS}` -> skeleton (JSON), versions.

    Raises ValueError for a model type that is not installed or a size that no model has.
    """
    document = dict(arguments["config"])
    for name, most in LARGEST.items():
        value = document.get(name)
        if isinstance(value, int) and not 0 < value <= most:
            raise ValueError(f"{name} is {value}; it must lie between 1 and {most}")
    report("build", {})
    config = table.config_of(document)
    return {"skeleton": table.table(table.build(config, arguments.get("task"))), "versions": table.versions()}
