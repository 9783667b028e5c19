"""How fast a data set is audited, against the tokenizers library alone on the same rendered text and cores.

Run as: python benchmarks/audit_speed.py [--rows 100000] [--rounds 2] [--model FOLDER]
        python benchmarks/audit_speed.py --rows 1000000 --memory     (one audit, for its memory)

Rows are made up (chat_rows.py), about 1 kB each. In every round `encode_batch` (1000 texts at a time, rendering not
counted), the whole audit, the audit without near duplicates and scans, and the whole audit of the same rows as Parquet
run one after the other in changing order, each in a process of its own. An audit's time counts reading, rendering, the
start of its processes, every check and the report. Reading is a fiftieth of an audit, less than two audits of one file
differ by; so Parquet and JSON lines are also read alone, in turn, five times, from the file to the rows of another
process. Prints rows a second, the ratios and the peak memory of all of an audit's processes together; exit code 1 when
something misses what must hold (Parquet: read alone).
"""

from __future__ import annotations

import argparse
import json
import marshal
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(REPOSITORY / "mcp_server")]

import chat_rows

FULL_AT_LEAST, LEAN_AT_LEAST, MEMORY_AT_MOST = 0.7, 0.9, 1.5 * 2**30
KINDS = ("encode_batch", "full", "lean", "parquet")
_LOT = 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", type=Path, default=REPOSITORY / ".cache" / "models" / "smollm2")
    parser.add_argument("--memory", action="store_true", help="only one audit of all rows, for its memory")
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure[0], Path(given.measure[1]), given.model)))
        return 0
    if not (given.model / "tokenizer.json").exists():
        print(f"no model in {given.model}: run `make demo-model`", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        return of_memory(given, Path(folder)) if given.memory else of_speed(given, Path(folder))


def of_speed(given: argparse.Namespace, folder: Path) -> int:
    sums = {kind: {"seconds": 0.0, "cpu": 0.0, "peak": 0.0} for kind in KINDS}
    for number in range(given.rounds):
        data = folder / "rows.jsonl"
        chat_rows.write(data, given.rows, seed=number)
        write_parquet(data, folder / "rows.parquet")
        for kind in (*KINDS[number % 4 :], *KINDS[: number % 4]):
            seen = run(kind, folder / "rows.parquet" if kind == "parquet" else data, given.model)
            assert seen["rows"] == given.rows, seen
            for name in ("seconds", "cpu"):
                sums[kind][name] += seen[name]
            sums[kind]["peak"] = max(sums[kind]["peak"], seen["peak"])
            print(f"round {number + 1}: {kind:13}{given.rows / seen['seconds']:9.0f} rows/s", flush=True)
    rows = given.rows * given.rounds
    for kind in KINDS:
        each = sums[kind]
        print(
            f"{kind:13}{rows / each['seconds']:9.0f} rows/s {each['cpu'] / rows * 1e6:7.0f} us of CPU a row "
            f"{each['peak'] / 2**20:6.0f} MiB"
        )
    ratios = {kind: sums["encode_batch"]["seconds"] / sums[kind]["seconds"] for kind in ("full", "lean")}
    of_cpu = {kind: sums["encode_batch"]["cpu"] / sums[kind]["cpu"] for kind in ("full", "lean")}
    whole = sums["full"]["seconds"] / sums["parquet"]["seconds"]
    lines, table = reading(folder / "rows.jsonl"), reading(folder / "rows.parquet")
    for _ in range(4):
        lines, table = lines + reading(folder / "rows.jsonl"), table + reading(folder / "rows.parquet")
    parquet = lines / table
    print(f"by CPU time: every check {of_cpu['full']:.3f}, without near duplicates and scans {of_cpu['lean']:.3f}")
    print(
        f"audit speed against encode_batch: every check {ratios['full']:.3f} (at least {FULL_AT_LEAST}), "
        f"without near duplicates and scans {ratios['lean']:.3f} (at least {LEAN_AT_LEAST}); "
        f"Parquet against JSON lines, read alone, {parquet:.3f} (at least 1; whole audits {whole:.3f})"
    )
    return 0 if ratios["full"] >= FULL_AT_LEAST and ratios["lean"] >= LEAN_AT_LEAST and parquet >= 1 else 1


def reading(path: Path) -> float:
    """Seconds of processor time from a file to rows in another process: lots, packed, unpacked, parsed."""
    from peftsmith.data.lots import Lot, lots

    began = time.process_time()
    for lot in lots(path):
        Lot(*marshal.loads(marshal.dumps(tuple(lot)))).rows()
    return time.process_time() - began


def write_parquet(lines: Path, path: Path) -> None:
    """The same rows as `datasets` would write them: Snappy, row groups of 1000 rows."""
    import pyarrow
    from pyarrow import json as tables
    from pyarrow import parquet

    table: pyarrow.Table = tables.read_json(lines, tables.ReadOptions(block_size=64 << 20))
    parquet.write_table(table, path, row_group_size=1000)


def of_memory(given: argparse.Namespace, folder: Path) -> int:
    data = folder / "rows.jsonl"
    chat_rows.write(data, given.rows)
    seen = run("full", data, given.model)
    assert seen["rows"] == given.rows, seen
    print(f"{given.rows} rows, {data.stat().st_size / 2**20:.0f} MiB: {given.rows / seen['seconds']:.0f} rows/s")
    print(f"peak memory {seen['peak'] / 2**30:.2f} GiB (at most {MEMORY_AT_MOST / 2**30:.1f})")
    return 0 if seen["peak"] <= MEMORY_AT_MOST else 1


def run(kind: str, data: Path, model: Path) -> dict[str, float]:
    """One measurement in a process of its own, with two threads for the tokenizer."""
    threads = os.environ.get("RAYON_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or "2"
    done = subprocess.run(
        [sys.executable, __file__, "--model", str(model), "--measure", kind, str(data)],
        env={**os.environ, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"},
        check=True,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(kind: str, data: Path, model: Path) -> dict[str, float]:
    """Rows, seconds, seconds of CPU (with the template's process) and peak bytes of one kind of work."""
    from peftsmith import files
    from peftsmith.data.audit import audit
    from peftsmith.data.formats import Mapping, read_rows, to_example
    from peftsmith.data.rendering import Renderer

    files.set_roots(["/"])
    if kind == "encode_batch":
        renderer = Renderer.load(model)
        source = (to_example(row.value, Mapping("messages")) for row in read_rows(data) if row.value is not None)
        texts = []
        while chats := list(islice(source, _LOT)):
            texts += renderer.texts([(each.prompt + each.completion, False) for each in chats])
        before = _cpu()
        began = time.perf_counter()
        for start in range(0, len(texts), _LOT):
            renderer.files.tokenizer.encode_batch(texts[start : start + _LOT], add_special_tokens=False)
        seconds = time.perf_counter() - began
        return {"rows": len(texts), "seconds": seconds, "cpu": _cpu() - before, "peak": _peak()}
    before = _cpu()
    began = time.perf_counter()
    checks = kind != "lean"
    report = audit(
        data, model=str(model), near_duplicates=checks, scans=checks, progress=_bar if sys.stderr.isatty() else None
    )
    seconds = time.perf_counter() - began
    return {"rows": report.usable_rows, "seconds": seconds, "cpu": _cpu() - before, "peak": _peak()}


def _cpu() -> float:
    """Seconds of this process and its ended children."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in spent)


def _peak() -> int:
    """Bytes: of this process, and of each process of its crew as large as the largest child, with their templates'."""
    from peftsmith.data import crew

    largest = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 2 * crew.cores() * largest


def _bar(done: int, total: int | None) -> None:
    print(f"\r{done} of {total or '?'} rows", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
