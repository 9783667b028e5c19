"""What the bottleneck adapters of the library `adapters` are called and take, read out of its config classes.

Knows: which of its classes is which plan method.
Does not know: how fields are described (jobs/methods.py), or what is wise or works (knowledge/methods.toml).
"""

from __future__ import annotations

from typing import Any

from peftsmith.worker.child import Report
from peftsmith.worker.jobs import methods

CONFIGS = {
    "BOTTLENECK_HOULSBY": "DoubleSeqBnConfig",
    "BOTTLENECK_PFEIFFER": "SeqBnConfig",
    "BOTTLENECK_PARALLEL": "ParBnConfig",
}


def run(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    """{"adapters", "transformers": versions, "methods": {name: as methods.method() describes one}}."""
    import adapters
    import transformers

    return {
        "adapters": adapters.__version__,
        "transformers": transformers.__version__,
        "methods": {name: _described(getattr(adapters, config)) for name, config in CONFIGS.items()},
    }


def _described(config: type[Any]) -> dict[str, Any]:
    return {
        "config": config.__name__,
        "prompt_learning": False,
        "mixed": False,
        "prefix": "adapters.",
        "bitsandbytes": False,
        "tasks": ["CAUSAL_LM"],
        "fields": methods.fields(config, without={"architecture"}),
    }
