"""Documents that are made from the code, so that they agree with it: `python -m peftsmith.knowledge.document`.

Knows: docs/findings.md and the JSON Schemas of plan.yaml and case.yaml.
Does not know: the documents that people write.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path

from peftsmith import files, plan
from peftsmith.finding import Entry, catalogue
from peftsmith.knowledge import case

_OPENING = """# Findings

Made by `make docs` from the catalogue in `mcp_server/peftsmith/knowledge/`; do not edit.

A finding is the one way in which peftsmith says that something is wrong, noteworthy or unknown. Its id is
`stage.object.fault` and is never renamed. `error` closes the way to a digest, `warning` and `info` do not; `unknown`
says what could not be checked, and is never a pass. Exit codes of the command line: 0 clean, 1 errors or warnings,
2 wrong usage, 3 nothing wrong but something unknown.
"""


@cache
def failures() -> Mapping[int, str]:
    """The failure table: row number -> symptom, as in knowledge/failures.toml."""
    text = resources.files("peftsmith").joinpath("knowledge", "failures.toml").read_text(encoding="utf-8")
    return {int(number): str(symptom) for number, symptom in tomllib.loads(text)["rows"].items()}


def findings_markdown() -> str:
    """docs/findings.md: every finding by stage, then the failure table with the findings that cover each row."""
    entries = sorted(catalogue().values(), key=lambda entry: entry.id)
    parts = [_OPENING]
    for stage in sorted({entry.id.split(".")[0] for entry in entries}):
        parts += [f"## {stage}\n", _head("Id", "Severity", "What", "What to do", "Source", "Rows")]
        parts += [_line(_cells(entry)) for entry in entries if entry.id.split(".")[0] == stage]
        parts.append("")
    covering: dict[int, list[str]] = {}
    for entry in entries:
        for row in entry.rows:
            covering.setdefault(row, []).append(f"`{entry.id}`")
    parts += [
        "## Known failures of fine-tuning\n",
        "`silent` means that no error is raised. Rows without a finding are known and not covered yet.\n",
        _head("Row", "Symptom", "Found by"),
    ]
    parts += [
        _line([str(row), symptom, ", ".join(covering.get(row, ["not covered yet"]))])
        for row, symptom in sorted(failures().items())
    ]
    return "\n".join(parts) + "\n"


def documents() -> dict[str, str]:
    """Path below docs/ -> text, for everything that this module makes."""
    return {
        "findings.md": findings_markdown(),
        "schema/plan.schema.json": json.dumps(plan.json_schema(), indent=2, ensure_ascii=False) + "\n",
        "schema/case.schema.json": json.dumps(case.json_schema(), indent=2, ensure_ascii=False) + "\n",
    }


def main(argv: list[str] | None = None) -> int:
    """Write the documents into `docs` of the repository, or of the folder given as the only argument."""
    arguments = sys.argv[1:] if argv is None else argv
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[3]
    for name, text in documents().items():
        files.write_text(root / "docs" / name, text)
    return 0


def _cells(entry: Entry) -> list[str]:
    rows = ", ".join(str(row) for row in entry.rows)
    return [f"`{entry.id}`", entry.severity, entry.title, entry.fix, entry.source, rows]


def _head(*names: str) -> str:
    return _line(names) + "\n" + _line(["---"] * len(names))


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
