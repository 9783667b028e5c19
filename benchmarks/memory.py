"""The memory estimate against published GPU peaks, beside other estimators on the same rows.

Run as: python benchmarks/memory.py ROWS.csv --configs DIR [--rows]

ROWS.csv has the columns of the published-measurements table (model_id, method, r, target_modules, quant, weight_dtype,
optimizer, per_device_batch, longest_batch_tokens, grad_ckpt, attention_impl, loss_impl, autocast, kbit_prepared,
adapter_dtype, lora_dropout, framework, note, peak_gb in GiB, peak_kind, grade, scored); DIR holds config.json files
named
after the model id, `/` written `__`. Only what a row says of the run is read: never its id, its source or its published
figure. What a row omits has one default for all rows: DEFAULTS. Prints a line per source and kind, then the figure.

--rows prints every row; --no-others leaves the other estimators out (benchmarks/estimators).
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import re
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "mcp_server"), str(ROOT)]

from benchmarks.estimators import compare  # noqa: E402
from peftsmith import files  # noqa: E402
from peftsmith.errors import PeftsmithError  # noqa: E402
from peftsmith.model import anatomy, memory  # noqa: E402

GIB = 1 << 30
LIMITS = {"allocated": 3.0, "reserved": 4.0, "device": 9.0}
WORST_DENSE_A, HELD, ABOVE_A, ABOVE_B = 12.0, 95.0, 15.0, 25.0
# What a row omits. A longest batch that is not stated is a full one; dropout as PEFT's default; the optimiser that
# transformers took by default before version 5; k-bit preparation off; adapters in PEFT's own default format.
DEFAULTS: dict[str, Any] = {
    "optimizer": "adamw_torch", "rank": 8, "attention": "sdpa", "loss": "stock", "gradient_checkpointing": False,
    "autocast": False, "kbit_prepared": False, "adapter_bytes": 4, "dropout": False, "precision": "bf16",
}  # fmt: skip
# Classes whose loss transformers 4 worked out in the model's own number format (modeling_<type>.py of 4.48); with
# adapters the dev rows of such a class do not bear that out, so it is taken for full fine-tuning only.
NARROW_LOSS = ("gpt_bigcode", "gpt2", "gpt_neox", "falcon", "bloom", "opt", "mpt")
KINDS = (("nvidia-smi", "device"), ("reserved", "reserved"), ("allocated", "allocated"))
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
        self.configs, self.scratch, self.known = configs, scratch, {}  # type: ignore[var-annotated]

    def get(self, model_id: str) -> anatomy.Anatomy:
        if model_id not in self.known:
            name = model_id.replace("/", "__")
            source = self.configs / f"{name}.json"
            folder = self.scratch / re.sub(r"[^A-Za-z0-9._-]", "_", name)
            folder.mkdir()
            (folder / "config.json").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
            self.known[model_id] = anatomy.inspect(str(folder))
        return self.known[model_id]


def score(rows: Iterable[Mapping[str, str]], models: Models, *, quiet: bool = False) -> list[Scored]:
    """Estimates for rows; one that cannot be estimated is reported on stderr with the reason (or left out if quiet)."""
    found = []
    for row in rows:
        kind = next((name for text, name in KINDS if text in row["peak_kind"]), None)
        try:
            truth = float(row["peak_gb"])
            if kind is None or not row["per_device_batch"] or row["n_gpus"] not in ("", "1"):
                continue
            body = models.get(row["model_id"])
            estimate = memory.estimate(body, request_of(row, body))
        except (PeftsmithError, OSError, ValueError, KeyError) as error:
            if not quiet:
                print(f"refused: {row['row_id']}: {error}", file=sys.stderr)
            continue
        size = getattr(estimate, kind)
        found.append(Scored(row, kind, truth, size.likely / GIB, size.high / GIB))
    return found


def case_of(each: Scored, body: anatomy.Anatomy) -> compare.Case:
    return compare.Case(each.row, each.kind, each.truth, each.likely, body, request_of(each.row, body))


def request_of(row: Mapping[str, str], body: anatomy.Anatomy) -> memory.Request:
    """The training job that a row describes for the model in it. Raises ValueError for one that cannot be told."""
    options = {key: value for key, value in _in_braces(row["note"]).items() if key != "init_weights"}
    method, optimizer = _method(row["method"], options)
    length = int(row["longest_batch_tokens"] or row["seq_len"])
    request = memory.Request(
        method=method,
        rank=int(options.get("init_r") or row["r"] or DEFAULTS["rank"]),
        targets=_targets(row["target_modules"]),
        batch_size=int(row["per_device_batch"]),
        sequence_length=length,
        precision=_precision(row["weight_dtype"]),
        gradient_checkpointing=_flag(row["grad_ckpt"], "gradient_checkpointing"),
        optimizer=optimizer or _optimizer(row["optimizer"]),
        loss=_loss(row["loss_impl"], row["framework"], narrow=method == "full" and body.model_type in NARROW_LOSS),
        quantization=_quantization(row["quant"]),
        options=options,
        autocast=_flag(row["autocast"], "autocast"),
        adapter_bytes={"float32": 4, "bfloat16": 2, "float16": 2}.get(row["adapter_dtype"], DEFAULTS["adapter_bytes"]),
        kbit_prepared=_flag(row["kbit_prepared"], "kbit_prepared"),
        dropout=float(row["lora_dropout"] or 0) > 0,
        attention=_attention(row["attention_impl"]),
        accumulates=int(row["grad_accum"] or 1) > 1,
    )
    return told_by_trainable(body, request, int(row["n_trainable"] or 0))


def told_by_trainable(body: anatomy.Anatomy, request: memory.Request, trainable: int) -> memory.Request:
    """The request with what its stated number of trainable parameters tells of options that the row does not give:
    DEFT without its second factor, the rank that OSF trains."""
    if request.method == "deft":
        without = replace(request, options={**request.options, "para": True})
        return without if memory.estimate(body, without).trainable == trainable else request
    if request.method == "osf" and trainable:
        modules = memory.adapted_modules(body, request)
        rank = trainable // sum(m.inputs + m.outputs + 1 for m in modules.values())
        kept = {m.leaf: min(m.inputs, m.outputs) - rank for m in modules.values()}
        return replace(request, options={**request.options, "rank_pattern": kept})
    return request


def _method(text: str, options: dict[str, Any]) -> tuple[str, str | None]:
    name = text.strip()
    if name.lower() in ("full", "full_ft", "full fine-tuning", "full_finetuning"):
        return "full", None
    if name.lower() in ("dora", "rslora"):
        options["use_" + name.lower()] = True
        return "lora", None
    return ("lora" if name.lower() == "qlora" else name.lower()), None


def _optimizer(text: str) -> str:
    name = text.lower()
    if "paged" in name:
        return "paged_adamw_8bit" if "8bit" in name else "paged_adamw_32bit"
    if "8bit" in name:
        return "adamw_8bit"
    if "adafactor" in name:
        return "adafactor"
    if "sgd" in name:
        return "sgd"
    return "adamw_torch_fused" if "fused" in name else DEFAULTS["optimizer"]


def _targets(text: str) -> str | list[str]:
    known = {"": "all-linear", "all linear": "all-linear", "all-linear": "all-linear", "q v": ["q_proj", "v_proj"]}
    if text in known:
        return known[text]
    names = text.replace(",", " ").split()
    short = {"q", "k", "v", "o", "gate", "up", "down"}
    return [f"{name}_proj" for name in names] if set(names) <= short else names


def _precision(text: str) -> str:
    start = text.lower()
    return "fp32" if start.startswith(("float32", "fp32", "torch.float32", "32")) else (
        "fp16" if start.startswith(("float16", "fp16")) else DEFAULTS["precision"]
    )  # fmt: skip


def _quantization(text: str) -> str:
    name = text.lower()
    if "nf4" in name or ("4bit" in name and "bnb" in name) or "fp4" in name:
        return "nf4_double" if "double" in name else "nf4"
    if "gptq" in name:
        return "gptq8" if "int8" in name else "gptq4"
    if "awq" in name:
        return "awq4"
    if "8-bit" in name or "int8" in name or "8bit" in name:
        return "int8"
    return "none"


def _loss(text: str, framework: str, *, narrow: bool) -> str:
    name = f"{text} {framework}".lower()
    if re.search(r"\bliger\b|cut.cross.entropy|\bcce\b", name) and "no liger" not in name:
        return "liger"
    if "chunk" in text.lower():
        return "trl_chunked"
    kind = "fused" if "fused kernels" in name or "unsloth" in name else DEFAULTS["loss"]
    return f"{kind}_narrow" if narrow and "transformers 4" in framework else kind


def _attention(text: str) -> str:
    name = text.lower()
    return "flash" if "flash" in name or "fa2" in name else "eager" if "eager" in name else DEFAULTS["attention"]


def _flag(text: str, name: str) -> bool:
    return {"true": True, "false": False}.get(text.strip().lower(), DEFAULTS[name])


def _in_braces(note: str) -> dict[str, Any]:
    """The options that a note gives as a Python dictionary."""
    found = re.search(r"\{.*?\}", note)
    try:
        value = ast.literal_eval(found.group(0)) if found else {}
    except (ValueError, SyntaxError):
        return {}
    return value if isinstance(value, dict) else {}


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
