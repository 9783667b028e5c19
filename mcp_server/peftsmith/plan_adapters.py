"""Several data sets in one plan: an adapter for each, or one adapter for the mixture of all.

Knows: the fields of `adapters` and `mixture`, which names PEFT and a folder both take.
Does not know: the rest of a plan (plan.py), or whether adapters can share a base (project/together.py).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftsmith.plan_method import Method, Part, ShortText, Text

MOST = 32
# It becomes a folder and a key in PEFT's module dictionaries, so that it has no dot.
AdapterName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=40)]
# What PEFT calls an adapter without a name and saves in another place, and what merge.py calls the sum of several.
RESERVED = frozenset(("default", "combined"))


class Adapter(Part):
    """One of several adapters: its rows, read as `data` says, and its own method where it has one.

    `method`, `system_prompt` and `labels` replace those of the plan for this adapter.
    """

    train: ShortText
    eval: ShortText | None = None
    test: ShortText | None = None
    system_prompt: Text | None = None
    labels: Annotated[list[ShortText], Field(max_length=1000)] | None = None
    method: Method | None = None


class Share(Part):
    """One of several data sets that one adapter learns from.

    `weight` is its share of the rows that are drawn, in proportion to the other weights, until every row of every set
    has been drawn; small sets are repeated. Without weights each row is taken once.
    """

    train: ShortText
    eval: ShortText | None = None
    test: ShortText | None = None
    weight: Annotated[float, Field(gt=0, le=1000)] | None = None
