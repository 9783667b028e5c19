"""The memory estimate against published GPU peaks, beside other estimators on the same rows.

Run as: python benchmarks/memory.py ROWS.csv --configs DIR [--rows]

ROWS.csv has the columns of the published-measurements table (model_id, method, r, target_modules, quant, weight_dtype,
optimizer, per_device_batch, longest_batch_tokens, grad_ckpt, attention_impl, loss_impl, autocast, kbit_prepared,
adapter_dtype, lora_dropout, framework, note, peak_gb in GiB, peak_kind, grade, scored); DIR holds config.json files
named after the model id, `/` written `__`. What a row means is measured.py's, which never reads its id, its source or
its published figure. Prints what was refused, with the reason, a line per source and kind, then the figure.

--rows prints every row; --no-others leaves the other estimators out (benchmarks/estimators).
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "mcp_server"), str(ROOT)]

from benchmarks.estimators import compare
from benchmarks.measured import contradicts_itself, request_of
from peftsmith import files
from peftsmith.model import anatomy, memory

GIB = 1 << 30
LIMITS = {"allocated": 3.0, "reserved": 4.0, "device": 9.0}
WORST_DENSE_A, HELD, ABOVE_A, ABOVE_B = 12.0, 95.0, 15.0, 25.0
KINDS = (
    ("smi", "device"), ("nvml", "device"), ("device", "device"), ("reserved", "reserved"), ("allocated", "allocated"),
)  # fmt: skip
DENSE = ("full", "lora", "qlora")


@dataclass(frozen=True)
class Scored:
    """One row with what was estimated for it; sizes in GiB."""

    row: Mapping[str, str]
    kind: str
    truth: float
    likely: float
    high: float

    @property
    def error(self) -> float:
        return 100 * (self.likely / self.truth - 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--configs", type=Path, required=True)
    parser.add_argument("--rows", action="store_true", help="print every scored row")
    parser.add_argument("--no-others", action="store_true", help="do not run the other estimators")
    arguments = parser.parse_args()
    files.set_roots(["/"])
    with arguments.table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    with tempfile.TemporaryDirectory() as folder:
        models = Models(arguments.configs, Path(folder))
        scored = score([row for row in rows if row["scored"] == "yes"], models)
        doubtful(scored, models)
        rest = score([row for row in rows if row["scored"] != "yes"], models, quiet=True)
    if arguments.rows:
        for each in sorted(scored, key=lambda found: -abs(found.error)):
            print(line_of(each))
    report("scored", scored)
    report("other rows (not scored)", rest)
    if not arguments.no_others:
        compare.report([case_of(each, models.get(each.row["model_id"])) for each in scored])
    return figure(scored, sum(row["scored"] == "yes" for row in rows))


class Models:
    """Anatomies by model id, from config.json files."""

    def __init__(self, configs: Path, scratch: Path) -> None:
        self.configs, self.scratch = configs, scratch
        self.known: dict[str, anatomy.Anatomy] = {}

    def get(self, model_id: str) -> anatomy.Anatomy:
        if model_id not in self.known:
            name = model_id.replace("/", "__")
            source = self.configs / f"{name}.json"
            config = source.read_text(encoding="utf-8")
            folder = self.scratch / re.sub(r"[^A-Za-z0-9._-]", "_", name)
            folder.mkdir()
            (folder / "config.json").write_text(config, encoding="utf-8")
            self.known[model_id] = anatomy.inspect(str(folder))
        return self.known[model_id]


def score(rows: Iterable[Mapping[str, str]], models: Models, *, quiet: bool = False) -> list[Scored]:
    """Estimates for rows; what cannot be estimated is reported on stderr with the reason, row by row (quiet: how many
    for each reason)."""
    found = []
    refused: Counter[str] = Counter()
    for row in rows:
        try:
            found.append(estimated(row, models))
        except Exception as error:  # whatever is wrong with one row must not end the benchmark: it is said, and counted
            refused[f"{type(error).__name__}: {error}"] += 1
            if not quiet:
                print(f"refused: {row.get('row_id')}: {type(error).__name__}: {error}", file=sys.stderr)
    if quiet:
        for reason, count in refused.most_common():
            print(f"refused, not scored: {count} rows: {reason}", file=sys.stderr)
    return found


def case_of(each: Scored, body: anatomy.Anatomy) -> compare.Case:
    return compare.Case(each.row, each.kind, each.truth, each.likely, body, request_of(each.row, body))


def estimated(row: Mapping[str, str], models: Models) -> Scored:
    """The estimate beside the row's peak. Raises ValueError for a row that tells no peak of one device."""
    kind = next((name for text, name in KINDS if text in row["peak_kind"].lower()), None)
    if kind is None or row["n_gpus"].strip() not in ("", "1", "1.0"):
        raise ValueError(f"no peak of one device: {row['peak_kind']!r} on {row['n_gpus']!r} devices")
    body = models.get(row["model_id"])
    size = getattr(memory.estimate(body, request_of(row, body)), kind)
    return Scored(row, kind, float(row["peak_gb"]), size.likely / GIB, size.high / GIB)


def doubtful(scored: list[Scored], models: Models) -> None:
    """Say what rows whose columns contradict each other come to when the flag is believed and not the loss."""
    found = [each for each in scored if contradicts_itself(each.row, models.get(each.row["model_id"]))]
    if found:
        # Without the word "upcast" in it the loss's column contradicts nothing, and the flag stands.
        flagged = [estimated({**each.row, "loss_impl": "HF full logits"}, models) for each in found]
        read, stated = (statistics.mean(abs(each.error) for each in group) for group in (found, flagged))
        print(
            f"{len(found)} rows state a float32 loss without autocast for a class that has none; read with autocast "
            f"their mean |error| is {read:.2f} %, by their flag it would be {stated:.2f} %"
        )


def report(title: str, scored: list[Scored]) -> None:
    groups: dict[tuple[str, str, str], list[Scored]] = defaultdict(list)
    for each in scored:
        groups[each.row["source"], each.kind, each.row["grade"]].append(each)
    print(f"\n{title}: mean |error| %, worst, mean error, upper bound holds %, upper bound above the truth %")
    for (source, kind, grade), found in sorted(groups.items()):
        errors = [abs(each.error) for each in found]
        print(
            f"  {source:34} {kind:9} {grade} {len(found):4} rows  {statistics.mean(errors):6.2f} {max(errors):7.2f}"
            f" {statistics.mean(each.error for each in found):+7.2f} {held(found):6.1f} {above(found):6.1f}"
        )


def held(scored: list[Scored]) -> float:
    return 100 * statistics.mean(each.high >= each.truth for each in scored)


def above(scored: list[Scored]) -> float:
    return statistics.mean(100 * (each.high / each.truth - 1) for each in scored)


def line_of(each: Scored) -> str:
    row = each.row
    about = " ".join(row[name] for name in ("model_id", "method", "r", "quant", "per_device_batch", "seq_len", "grade"))
    return (
        f"{each.error:+7.2f} %  {each.kind:9} {each.likely:7.3f} of {each.truth:7.3f}, bound {each.high:7.3f}  {about}"
    )


def figure(scored: list[Scored], wanted: int) -> int:
    """The figure, last, and whether everything holds."""
    means = {
        kind: statistics.mean(abs(each.error) for each in scored if each.kind == kind)
        for kind in LIMITS if any(each.kind == kind for each in scored)
    }  # fmt: skip
    dense = [abs(each.error) for each in scored if each.row["grade"] == "A" and each.row["method"].lower() in DENSE]
    by_grade = {grade: [each for each in scored if each.row["grade"] == grade] for grade in ("A", "B")}
    bounds = {grade: above(found) for grade, found in by_grade.items() if found}
    holds = held(scored)
    ok = (
        all(mean <= LIMITS[kind] for kind, mean in means.items())
        and max(dense, default=0) <= WORST_DENSE_A
        and holds >= HELD
        and bounds.get("A", 0) <= ABOVE_A
        and bounds.get("B", 0) <= ABOVE_B
        and len(scored) == wanted
    )
    shown = ", ".join(f"{kind} {mean:.2f} % (limit {LIMITS[kind]:.0f})" for kind, mean in means.items())
    print(
        f"\n{'OK' if ok else 'NOT REACHED'}: {len(scored)} of {wanted} scored rows; {shown}; worst dense grade A "
        f"{max(dense, default=0):.1f} % (limit {WORST_DENSE_A:.0f}); upper bound holds {holds:.1f} % (at least "
        f"{HELD:.0f}), above the truth by " + ", ".join(f"{grade} {mean:.1f} %" for grade, mean in bounds.items())
    )
    print(json.dumps({"mean_error_percent": {kind: round(mean, 2) for kind, mean in means.items()}, "ok": ok}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
