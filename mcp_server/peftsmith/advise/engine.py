"""The rules behind recommended values, and which of them decides.

Knows: knowledge/rules.toml, what a condition means, that the first rule whose conditions hold decides.
Does not know: what the facts are or where they come from (facts.py), or what a decision is for (recommend.py).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from peftsmith.lock import Why

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """One table of knowledge/rules.toml; the file's head says what each field means."""

    id: str
    sets: str
    reason: str
    statement: str
    source: str
    strength: str
    conflicts: str
    would_change: str
    when: Facts
    value: Any = None
    value_of: str | None = None

    def holds(self, facts: Facts) -> bool:
        return all(_holds(facts[name], wanted) for name, wanted in self.when.items())


@dataclass(frozen=True)
class Decision:
    """The value of one field, and why."""

    value: Any
    rule: Rule

    def why(self, facts: Facts) -> Why:
        """The lock's entry; `facts` fill the rule's reason in."""
        rule = self.rule
        return Why(
            value=self.value,
            rule=rule.id,
            reason=rule.reason.format_map(facts),
            source=rule.source,
            strength=rule.strength,
            conflicts=rule.conflicts,
            would_change=rule.would_change,
        )


@cache
def rules() -> tuple[Rule, ...]:
    """Every rule, in the order of the file."""
    text = resources.files("peftsmith").joinpath("knowledge", "rules.toml").read_text(encoding="utf-8")
    return tuple(Rule(id=name, **{"when": {}, **body}) for name, body in tomllib.loads(text).items())


def decide(field: str, facts: Facts) -> Decision:
    """The value of a field by the first rule that sets it and holds. Every field ends with a rule without conditions.

    Raises KeyError for a fact that a condition asks for and nobody has worked out, LookupError for a field that no
    rule sets.
    """
    for rule in rules():
        if rule.sets == field and rule.holds(facts):
            return Decision(rule.value if rule.value_of is None else facts[rule.value_of], rule)
    raise LookupError(f"no rule sets {field}")


def _holds(fact: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return fact in wanted
    if isinstance(wanted, Mapping):
        return all(fact >= limit if name == "least" else fact < limit for name, limit in wanted.items())
    return bool(fact == wanted)
