"""The support table: what the benchmark of first runs has seen, as a compact file and as two Markdown tables.

Knows: which facts of a result are kept (docs/first_run.json), and how they read in README.md and docs/support.md.
Does not know: how a result came about (trying.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.first_runs import cases
from benchmarks.first_runs.cases import Case
from benchmarks.first_runs.trying import PROVEN, REFUSED, SWAPPED
from peftsmith import files
from peftsmith.errors import PeftsmithError

DATA, PAGE, README = "docs/first_run.json", "docs/support.md", "README.md"
BEGIN, END = "<!-- support: written by benchmarks/first_run.py --document -->", "<!-- end of support -->"
_QUANTIZATIONS = ("none", *cases.facts()["quantizations"])
Rows = list[dict[str, Any]]


def compact(chosen: list[Case], results: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a whole run: one small mapping a case, with `about` (date, seed, versions) above them."""
    commits = sorted({str(results[case.name]["commit"]) for case in chosen})
    return {**about, "commits": commits, "cases": [_kept(case, results[case.name]) for case in chosen]}


def _kept(case: Case, result: Mapping[str, Any]) -> dict[str, Any]:
    method = dict(case.plan["method"])
    quantization, peft_type = method.pop("quantization", None), method.pop("peft_type", "LORA")
    kept: dict[str, Any] = {
        "base": case.config["model_type"],
        "task": case.plan["task"],
        "method": peft_type,
        "options": method.get("config", {}),
        "quantization": _quantization(quantization),
        "outcome": result["outcome"],
    }
    several = _several(case.plan)
    kept |= {"several": several} if several else {}
    if case.refused:
        return kept | {"refused": case.refused}
    kept |= {name: result[name] for name in ("swaps", "lacks") if result[name]}
    return kept | ({} if result["outcome"] in (PROVEN, SWAPPED) else {"why": result["why"]})


def _several(document: Mapping[str, Any]) -> str | None:
    """How the plan has more than one data set: a mixture, or the types of its adapters."""
    if document.get("mixture"):
        return "one adapter, a mixture" + (" by weight" if "weight" in next(iter(document["mixture"].values())) else "")
    if not document.get("adapters"):
        return None
    own = [each["method"].get("peft_type", "LORA") for each in document["adapters"].values() if "method" in each]
    return " and ".join(own or [f"two of {document['method'].get('peft_type', 'LORA')}"])


def _quantization(value: Mapping[str, Any] | None) -> str:
    named = {json.dumps(each, sort_keys=True): name for name, each in cases.facts()["quantizations"].items()}
    return "none" if not value else named.get(json.dumps(value, sort_keys=True), json.dumps(value, sort_keys=True))


def text(run: Mapping[str, Any]) -> str:
    """docs/first_run.json: one line a case, so that two runs can be compared."""
    head = [f"{json.dumps(key)}: {json.dumps(value, sort_keys=True)}," for key, value in run.items() if key != "cases"]
    lines = ",\n".join(json.dumps(each, sort_keys=True) for each in run["cases"])
    return "\n".join(["{", *head, f'"cases": [\n{lines}\n]', "}", ""])


def summary(run: Mapping[str, Any]) -> str:
    """What README.md says: a sentence and one row a task."""
    wanted, refused = _parted(run)
    plain = sum(each["outcome"] == PROVEN for each in wanted)
    stopped = sum(each["outcome"] == REFUSED for each in refused)
    bases, methods = len(_values(wanted, "base")), len(_values(wanted, "method"))
    sentence = (
        f"On {run['date']} {_proven(wanted)} of {len(wanted)} plans over {bases} architectures and {methods} methods "
        "ran the first time: generated, vetted, and trained, saved, reloaded, resumed, merged and asked on a twin "
        f"({plain / max(1, len(wanted)):.0%} with nothing swapped for the processor); {stopped} of {len(refused)} "
        f"plans that cannot work were refused before a file was written ([every method and architecture]({PAGE})):"
    )
    rows = [
        [task, _share(some), len(_values(some, "base")), len(_values(some, "method")), _quantised(some)]
        for task, some in _grouped(wanted, "task")
    ]
    return f"{sentence}\n\n{_table(['task', 'proven', 'architectures', 'methods', 'of them quantised'], rows)}"


def page(run: Mapping[str, Any]) -> str:
    """docs/support.md."""
    wanted, refused = _parted(run)
    versions = ", ".join(f"{name} {version}" for name, version in sorted(run["versions"].items()))
    methods = [
        [
            method,
            *(_share([each for each in some if each["quantization"] == name]) for name in _QUANTIZATIONS),
            ", ".join(sorted(_values(some, "task"))),
            _each(some, "merge"),
            _each(some, "resume"),
        ]
        for method, some in sorted(_grouped(wanted, "method"))
    ]
    bases = [
        [base, cases.kinds().get(base, ""), _share(some), ", ".join(sorted(_values(some, "task")))]
        for base, some in _grouped(wanted, "base")
    ]
    variants = [
        each for each in wanted if each["method"] == "LORA" and each["options"] and each["quantization"] == "none"
    ]
    named = [{**each, "variant": json.dumps(each["options"], sort_keys=True)} for each in variants]
    options = [[f"`{variant}`", _share(some)] for variant, some in sorted(_grouped(named, "variant"))]
    together = [
        [each["base"], each["task"], each["several"], each["quantization"], _share([each])]
        for each in wanted
        if "several" in each
    ]
    swapped = Counter(swap for each in wanted for swap in each.get("swaps", ()))
    stopped = Counter(str(each["refused"]) for each in refused if each["outcome"] == REFUSED)
    bad = [
        [
            each["base"],
            each["task"],
            each["method"],
            each["quantization"],
            each["outcome"],
            "; ".join(each["why"])[:300],
        ]
        for each in wanted
        if "why" in each
    ]
    parts = [
        "# What is proven to run",
        f"Written by `benchmarks/first_run.py --document` on {run['date']} (commit {', '.join(run['commits'])}, "
        f"{versions}, seed {run['seed']}); do not edit. A case is a plan whose project was generated, vetted and "
        "proven on a twin: a cut-down model of the same architecture that trains, saves, reloads with equal logits, "
        "resumes, merges and answers. *3 of 4* means that one was not proven; *-* means not tried, which says nothing "
        "against it.",
        f"Proven: {_share(wanted)}. Refused as they should be: {sum(stopped.values())} of {len(refused)}.",
        "## Methods",
        _table(["method", *_QUANTIZATIONS, "tasks", "merges", "resumes"], methods),
        "## Architectures",
        _table(["type", "kind", "proven", "tasks"], bases),
        "## Variants of LoRA",
        _table(["options", "proven"], options),
        "## Several data sets on one base" if together else "",
        _table(["type", "task", "adapters", "quantization", "proven"], together) if together else "",
        "## Swapped on the processor",
        _table(["what could not be proven without a GPU", "plans"], [[*each] for each in sorted(swapped.items())]),
        "## Not proven" if bad else "",
        _table(["type", "task", "method", "quantization", "outcome", "why"], bad) if bad else "",
        "## Refused before a file is written",
        _table(["finding", "plans"], [[f"`{name}`", count] for name, count in sorted(stopped.items())]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def readme(before: str, run: Mapping[str, Any]) -> str:
    """README.md with what stands between the markers written anew."""
    head, found, rest = before.partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not found or not closed:
        raise PeftsmithError("README.md has no place for the support table", next_step=f"Write {BEGIN} and {END}.")
    return f"{head}{BEGIN}\n{summary(run)}\n{END}{tail}"


def write(repository: Path, run: Mapping[str, Any]) -> None:
    """Put the results and both tables in place."""
    files.write_text(repository / DATA, text(run))
    files.write_text(repository / PAGE, page(run))
    files.write_text(repository / README, readme(files.read_text(repository / README), run))


def _parted(run: Mapping[str, Any]) -> tuple[Rows, Rows]:
    """(plans that must run, plans that must be refused)"""
    return [each for each in run["cases"] if "refused" not in each], [
        each for each in run["cases"] if "refused" in each
    ]


def _proven(rows: Iterable[Mapping[str, Any]]) -> int:
    return sum(each["outcome"] in (PROVEN, SWAPPED) for each in rows)


def _share(rows: Rows) -> str:
    """ "7" when all are proven, "6 of 7" when not, "-" when none was tried."""
    good = _proven(rows)
    return "-" if not rows else str(good) if good == len(rows) else f"{good} of {len(rows)}"


def _each(rows: Rows, proof: str) -> str:
    """Does the method give this proof: yes, no, or for how many of its plans?"""
    done = [each for each in rows if each["outcome"] in (PROVEN, SWAPPED)]
    having = sum(proof not in each.get("lacks", ()) for each in done)
    return "-" if not done else "yes" if having == len(done) else "no" if not having else f"{having} of {len(done)}"


def _quantised(rows: Rows) -> str:
    return _share([each for each in rows if each["quantization"] != "none"])


def _values(rows: Rows, key: str) -> set[str]:
    return {each[key] for each in rows if each["outcome"] in (PROVEN, SWAPPED)}


def _grouped(rows: Rows, key: str) -> list[tuple[str, Rows]]:
    return [(value, [each for each in rows if each[key] == value]) for value in dict.fromkeys(r[key] for r in rows)]


def _table(head: list[str], rows: Iterable[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
