"""A plan as it stands, which a person may have edited since plan_finetune, held against its base and every rule.

Knows: where the base is looked at, and that a base which cannot be read here leaves rules unanswered, not broken.
Does not know: the rules (advise/rules.py, fitness.py), the rows, or the scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftsmith.advise import rules
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding
from peftsmith.lock import Lock
from peftsmith.model import anatomy, source
from peftsmith.plan import FineTunePlan
from peftsmith.project import fitness

# What stands in the plan all the same has been decided: it works, whatever it costs.
_DECIDED = ("model.targets.share_too_high",)


def judge(plan: FineTunePlan, lock: Lock) -> list[Finding]:
    """Findings about the plan on the base that the lock names, if its files lie on this machine; nothing is fetched."""
    body, config = _base(lock)
    return _judge(plan, lock, body, config)


def judge_on(plan: FineTunePlan, lock: Lock, base: source.ModelFiles) -> list[Finding]:
    """The same on a base that has been opened."""
    return _judge(plan, lock, anatomy.describe(base), None)


def _judge(
    plan: FineTunePlan, lock: Lock, body: anatomy.Anatomy | None, config: Mapping[str, Any] | None
) -> list[Finding]:
    found = [*rules.check(plan, body, config), *fitness.on_device(plan, lock.device)]
    return [replace(each, severity="warning") if each.id in _DECIDED else each for each in found]


def _base(lock: Lock) -> tuple[anatomy.Anatomy | None, Mapping[str, Any] | None]:
    """The base, or else what the lock says of its config.json."""
    folder, model_type = lock.base.get("folder"), lock.base.get("model_type")
    known = {"model_type": model_type} if model_type else None
    if not folder or not Path(str(folder)).is_dir():
        return None, known
    try:
        return anatomy.describe(source.open_folder(Path(str(folder)))), None
    except PeftsmithError:
        return None, known  # rules that need it are then reported as unknown, and check_project says why
