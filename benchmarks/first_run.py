"""How many plans run the first time: combinations of architecture, task, method and quantisation, generated and proven.

Each valid case gets a project, is vetted, and its scripts run on the twin; each invalid one must be refused with the
right finding before a file is written. A seeded draw, so that two runs try the same cases:

    python benchmarks/first_run.py [--cases FILE] [--count N] [--seed N] [--shard I/N] [--results FILE] [--only TEXT]
        [--document]

With --results a run that was ended goes on where it was. --cases takes plans of other people instead (how they may be
written: first_runs/plans.py). --document runs what is missing of the whole and writes docs/first_run.json,
docs/support.md and README.md's table. The last line counts; the exit code is 0 when every case came out as it should.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "mcp_server")]

from benchmarks.first_runs import plans, several, support
from benchmarks.first_runs.cases import Case, invalid, valid
from benchmarks.first_runs.trying import PROVEN, REFUSED, SWAPPED, as_it_should, run
from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.machine import environment as environments

COUNT = 239  # with the 22 plans of several adapters nine shards of 29
LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes")
Results = dict[str, dict[str, Any]]


def chosen_cases(arguments: argparse.Namespace) -> list[Case]:
    """The cases of a call: its file's, or the draw and all that must be refused, as far as shard and text allow."""
    if arguments.cases:
        cases = plans.read(arguments.cases)
    else:
        drawn = valid(arguments.seed)
        cases = [*(next(drawn) for _ in range(arguments.count)), *several.valid()]
        cases += [] if arguments.only_valid else [*invalid(), *several.invalid()]
    part, parts = (int(each) for each in arguments.shard.split("/"))
    return [each for place, each in enumerate(cases) if place % parts == part % parts and arguments.only in each.name]


def try_all(
    cases: list[Case], results: Results, environment: environments.Environment | None, keep: Path | None
) -> None:
    """Run the cases that have no result yet, print a line for each and keep it at once."""
    commit = current_commit()
    for case in cases:
        if case.name in results:
            continue
        work = Path(tempfile.mkdtemp(prefix="first-run-"))
        try:
            result = run(case, work, environment)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        results[case.name] = {"refused": case.refused, "commit": commit, **result}
        print(f"{result['outcome']:18}{result['seconds']:6.1f} s  {case.name}", flush=True)
        if not as_it_should(case, result):
            print(f"    {result['why']}", flush=True)
        if keep:
            files.write_json(keep, results)


def current_commit() -> str:
    """The commit that is tried; "+" behind it says that files of the repository differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "mcp_server", "templates", "benchmarks")
    return (git("rev-parse", "--short=10", "HEAD") or "unknown") + ("+" if changed else "")


def report(cases: list[Case], results: Mapping[str, Mapping[str, Any]]) -> str:
    """What did not come out as it should, the counts, and last one line for machines."""
    seen = [(case, results[case.name]) for case in cases]
    wrong = [
        f"{each['outcome']}: {case.name}\n    {each['why']}" for case, each in seen if not as_it_should(case, each)
    ]
    counts = Counter(each["outcome"] for _, each in seen)
    wanted = [each for case, each in seen if not case.refused]
    plain = sum(each["outcome"] == PROVEN for each in wanted)
    swapped = sum(each["outcome"] == SWAPPED for each in wanted)
    stopped = [each["outcome"] == REFUSED for case, each in seen if case.refused]
    last = (
        f"proven {plain + swapped} of {len(wanted)} ({plain} without swaps, {plain / max(1, len(wanted)):.1%}), "
        f"refused {sum(stopped)} of {len(stopped)}"
    )
    return "\n".join([*wrong, *(f"{count:5} {outcome}" for outcome, count in sorted(counts.items())), last])


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, help="plans of others: .json, .jsonl, .yaml, or a folder of them")
    parser.add_argument("--count", type=int, default=COUNT, help="valid cases of one adapter to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard", default="0/1", help="I/N: every N-th case, beginning with I (from 0)")
    parser.add_argument("--only", default="", help="text that must be in a case's name")
    parser.add_argument("--only-valid", action="store_true")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--document", action="store_true")
    arguments = parser.parse_args(argv)
    if arguments.document and (arguments.cases or arguments.only or arguments.only_valid or arguments.shard != "0/1"):
        parser.error("--document is for the whole run: without --cases, --shard, --only and --only-valid")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    files.set_roots(["/"])
    try:
        cases = chosen_cases(arguments)
        results: Results = (
            files.read_json(arguments.results) if arguments.results and arguments.results.exists() else {}
        )
        environment = environments.require(REPOSITORY) if any(not each.refused for each in cases) else None
        try_all(cases, results, environment, arguments.results)
        if arguments.document:
            versions = {name: environment.versions[name] for name in LIBRARIES} if environment else {}
            about = {
                "date": str(datetime.datetime.now(tz=datetime.UTC).date()),
                "seed": arguments.seed,
                "versions": versions,
            }
            support.write(REPOSITORY, support.compact(cases, results, about))
    except PeftsmithError as error:
        print(error, file=sys.stderr)
        return 2
    print(report(cases, results))
    return 0 if all(as_it_should(each, results[each.name]) for each in cases) else 1


if __name__ == "__main__":
    sys.exit(main())
