"""What a training is expected to take, for the project's README: memory, time and disk.

Knows: which of the lock's estimates still belong to the plan, and how a person reads bytes and seconds.
Does not know: how memory (model/memory.py) and time (model/speed.py) are estimated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from peftsmith.lock import Lock
from peftsmith.plan import FineTunePlan, flatten

GIB = 2**30
# Values on which no estimate rests.
_FREE = ("training.logging_steps", "training.save_steps", "training.learning_rate", "training.schedule")
_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
_SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_NOTHING: dict[str, dict[str, Any] | None] = {"memory": None, "time": None, "disk": None}


def expected(plan: FineTunePlan, lock: Lock) -> dict[str, dict[str, Any] | None]:
    """memory {likely, high: GiB, device}, time {likely, low, high: words, gpu}, disk {adapter, checkpoint: words};
    None for what was not estimated for the plan as it is.

    An estimate belongs to the values that were advised: once one of them is edited, nothing is said.
    """
    if _edited(plan, lock):
        return _NOTHING
    device = lock.device or {}
    return {
        "memory": _memory(lock.estimate.get("device"), device.get("kind")),
        "time": _time(lock.seconds, device.get("name")),
        "disk": None if plan.method.full else _disk(lock.estimate.get("trainable")),
    }


def _edited(plan: FineTunePlan, lock: Lock) -> bool:
    now = flatten(plan)
    return any(now[name] != why.value for name, why in lock.why.items() if name in now and name not in _FREE)


def _memory(peak: Any, kind: Any) -> dict[str, Any] | None:
    if not isinstance(peak, Mapping) or not all(_positive(peak.get(name)) for name in ("likely", "high")):
        return None
    sizes = {name: round(peak[name] / GIB, 1) for name in ("likely", "high")}
    return {**sizes, "device": "the GPU" if kind == "cuda" else "main memory"}


def _time(seconds: dict[str, int] | None, gpu: Any) -> dict[str, Any] | None:
    if not seconds or not gpu or not all(_positive(seconds.get(name)) for name in ("low", "likely", "high")):
        return None
    return {**{name: duration(seconds[name]) for name in ("low", "likely", "high")}, "gpu": gpu}


def _disk(trainable: Any) -> dict[str, Any] | None:
    """What trains is saved in the four-byte numbers in which it trains; Adam's two moments lie in a checkpoint too."""
    return {"adapter": size(4 * trainable), "checkpoint": size(12 * trainable)} if _positive(trainable) else None


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def duration(seconds: float) -> str:
    """In whole units, the largest of which there is one and a half: 100 -> "2 minutes", 80 -> "80 seconds"."""
    length, unit = next(each for each in _UNITS if seconds >= 1.5 * each[0] or each[1] == "second")
    count = max(1, round(seconds / length))
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


def size(count: float) -> str:
    """Bytes in whole decimal units: 19,537,920 -> "20 MB"."""
    length, unit = next(each for each in _SIZES if count >= 1.5 * each[0] or each[1] == "kB")
    return f"{max(1, round(count / length))} {unit}"
