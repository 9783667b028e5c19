"""case.yaml: one planted mistake, or one clean situation that must not raise an alarm.

Knows: the format of a case, its limits, how it is read, its published JSON Schema.
Does not know: how a case is run (benchmarks/traps.py).
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from peftsmith import files
from peftsmith.errors import PeftsmithError

CASE_FILE = "case.yaml"
TINY, SMALL = "tiny", "small"
Stage = Literal["data", "model", "plan", "project", "script", "run", "adapter"]
# A finding's id, a row of the failure table, or the refusal of the input as a whole.
EXPECTED = r"^([a-z]+(\.[a-z0-9_]+)?\.[a-z0-9_]+|row:[1-9][0-9]*|refused)$"
_LARGEST = 1 << 20
_ROW = re.compile(r"row:([0-9]+)")


class CaseFile(BaseModel):
    """One input file: it is copied from `source` beside case.yaml to `path` in the case's working folder."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    path: Annotated[str, Field(min_length=1, max_length=200, description="Where it goes in the working folder.")]
    source: Annotated[str, Field(min_length=1, max_length=200, description="The file beside case.yaml.")]

    @field_validator("path", "source")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        parts = PurePosixPath(value)
        if parts.is_absolute() or ".." in parts.parts or "\\" in value or "\x00" in value:
            raise ValueError("must be a relative path without ..")
        return value


class Case(BaseModel):
    """What is given (`files`, `model`, `plan`), which stage judges it, and what it must find there.

    `expect` lists finding ids, `row:N` for any finding that covers row N of docs/findings.md's failure table, or
    `refused` where the stage must refuse the input with an error message; an empty list means that neither an error
    nor a warning may come. Findings beside the expected ones are allowed in a planted case.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    schema_version: Literal[1]
    stage: Stage
    title: Annotated[str, Field(min_length=5, max_length=200)]
    files: Annotated[list[CaseFile], Field(max_length=100)] = []
    model: Annotated[
        str | None,
        Field(
            description="A model folder among the files, a hub id, `tiny` (a complete Llama of 0.1 M parameters) or "
            "`small` (the configuration of one of 135 M, without weights). Default: none for data, script, run and "
            "adapter, else small."
        ),
    ] = None
    gpu: Annotated[str | None, Field(description="The GPU that the plan is for, by name; plan cases only.")] = None
    plan: Annotated[dict[str, Any], Field(description="Laid over a good plan, key by key.")] = {}
    expect: Annotated[list[Annotated[str, Field(pattern=EXPECTED)]], Field(max_length=20)] = []


def load(folder: Path) -> Case:
    """The case in a folder; PeftsmithError names what is wrong with it."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    text = files.read_text(folder / CASE_FILE, largest=_LARGEST)
    try:
        case = Case.model_validate(YAML(typ="safe", pure=True).load(text))
    except (YAMLError, ValidationError) as error:
        raise PeftsmithError(
            f"{folder.name}/{CASE_FILE} is not a valid case: {error}",
            next_step="Correct it; docs/schema/case.schema.json describes the format.",
        ) from error
    missing = [item.source for item in case.files if not (folder / item.source).is_file()]
    if missing:
        raise PeftsmithError(f"{folder.name} lacks files that its case names", value=missing, next_step="Add them.")
    return case


def row_of(expected: str) -> int | None:
    """N of `row:N`, else None."""
    match = _ROW.fullmatch(expected)
    return int(match[1]) if match else None


def json_schema() -> dict[str, Any]:
    """The published JSON Schema of case.yaml."""
    return Case.model_json_schema()
