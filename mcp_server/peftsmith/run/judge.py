"""What a run's metrics, exit and artefacts say about it, as findings.

Knows: metrics.jsonl (read from its two ends, half-written lines tolerated), what a loss must not do, exit codes.
Does not know: whether the run lives (watch.py), or the inside of an adapter (adapter/).
"""

from __future__ import annotations

import json
import math
import signal
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding
from peftsmith.project import together
from peftsmith.run import host as hosts
from peftsmith.run import logs, store

_HEAD_BYTES, _TAIL_BYTES = 8 << 10, 56 << 10
_ETA_ROWS = 50
# Loss counts as flat only when it is clear: this many rows, past this share, and a fall below this part of itself.
_FLAT_ROWS, _FLAT_SHARE, _FLAT_FALL, _FLAT_LOSS = 20, 0.5, 0.02, 0.5

Row = dict[str, Any]
_OF_PART = {"adapter", "part", "parts"}  # what a row says of where it belongs, among several adapters


def read_metrics(host: hosts.Host, path: Path) -> list[Row]:
    """The rows of metrics.jsonl in order: all of a short file, the first 8 KiB and last 56 KiB of a long one."""
    text = hosts.tail(host, path, _HEAD_BYTES + _TAIL_BYTES)
    if path.exists() and path.stat().st_size > _HEAD_BYTES + _TAIL_BYTES:
        text = hosts.head(host, path, _HEAD_BYTES) + "\n" + hosts.tail(host, path, _TAIL_BYTES)
    rows = []
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def number(value: object) -> float | None:
    """A JSON number, or "nan" and "inf" written as text; None for anything else."""
    if isinstance(value, str) and value.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return float(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _measured(row: Row, name: str) -> float | None:
    """A logged number; null stands for one that was not finite (JSON has no NaN), a missing key for none."""
    return math.nan if name in row and row[name] is None else number(row.get(name))


def plain(row: object) -> dict[str, Any]:
    """A row for showing: JSON values only (NaN and infinity as text), strings cleaned."""

    def shown(value: object) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        if isinstance(value, dict):
            return {files.clean(str(key), 200): shown(item) for key, item in list(value.items())[:200]}
        if isinstance(value, list):
            return [shown(item) for item in value[:200]]
        return files.clean(value, 500) if isinstance(value, str) else value

    return shown(row) if isinstance(row, dict) else {}


def latest(rows: list[Row]) -> dict[str, Any]:
    """The newest value of every measurement: evaluation and training write rows of their own."""
    merged: Row = {}
    for row in rows[-_ETA_ROWS:]:
        merged.update(row)
    return plain(merged)


def progress(rows: list[Row], *, ended: bool) -> dict[str, Any]:
    """step, total, share of the work done (0 to 1), and the seconds left at the pace of the latest rows.

    Where several adapters are trained, step and total are those of the present one, share and seconds those of all.
    """
    steps = [(number(row.get("step")), number(row.get("seconds")), number(row.get("max_steps"))) for row in rows]
    known = [(step, seconds, total) for step, seconds, total in steps if step is not None and math.isfinite(step)]
    if not known:
        return {"step": None, "total": None, "share": None, "eta_seconds": None}
    step, seconds, total = known[-1]
    total = total if total and math.isfinite(total) and total > 0 else None
    eta = None
    before, began, _ = known[-_ETA_ROWS] if len(known) > _ETA_ROWS else known[0] if len(known) > 1 else (0.0, 0.0, None)
    if total and not ended and seconds is not None and began is not None and step > before and seconds >= began:
        eta = round((seconds - began) / (step - before) * max(0.0, total - step), 1)
    share = round(min(1.0, step / total), 4) if total else None
    part, parts = number(rows[-1].get("part")), number(rows[-1].get("parts"))
    if share is not None and part is not None and parts and math.isfinite(part) and 0 <= part < parts < math.inf:
        # One of several trainings in a row: how long the others take is only known from those that are done.
        share = round((part + share) / parts, 4)
        eta = round(seconds / share * (1 - share), 1) if seconds and share and not ended else None
    return {
        "step": int(step),
        "total": int(total) if total else None,
        "share": share,
        "eta_seconds": eta,
    }


def metrics(rows: list[Row], *, kind: str, state: str) -> list[Finding]:
    """What loss and gradient norm say. A zero loss counts with a dead gradient or from the first row on: a logged
    0.0 alone may be a small loss, rounded. A single infinite gradient norm is how fp16 loss scaling finds its scale."""
    found: list[Finding] = []
    names = list(dict.fromkeys(row["adapter"] for row in rows if isinstance(row.get("adapter"), str)))
    if len(names) > 1:  # each has a loss of its own, which begins high again
        for name in names:
            own = [{key: row[key] for key in row.keys() - _OF_PART} for row in rows if row.get("adapter") == name]
            ended = state if name == names[-1] else "done"
            found += [together.about(each, files.clean(name, 80)) for each in metrics(own, kind=kind, state=ended)]
        return found
    seen = [(row.get("step"), _measured(row, "loss"), _measured(row, "grad_norm")) for row in rows]
    losses = [(step, loss, norm) for step, loss, norm in seen if loss is not None]
    if not losses:
        if state == "done" and kind in ("smoke", "train"):
            found.append(finding("run.metrics.missing"))
        return found
    zero = [
        step
        for index, (step, loss, norm) in enumerate(losses)
        if loss == 0 and (index == 0 or (norm is not None and (norm == 0 or not math.isfinite(norm))))
    ]
    if zero:
        found.append(
            finding(
                "run.loss.zero", f"The loss was exactly 0 at {len(zero)} of {len(losses)} logged steps.", steps=zero[:5]
            )
        )
    broken = [step for step, loss, _ in losses if not math.isfinite(loss)]
    norms = [(step, norm) for step, _, norm in losses if norm is not None]
    wild = [step for step, norm in norms[-3:] if not math.isfinite(norm)]
    if broken:
        message = (
            f"The loss was NaN or infinite at {len(broken)} of {len(losses)} logged steps, first at step {broken[0]}."
        )
        found.append(finding("run.loss.not_finite", message, steps=broken[:5]))
    elif len(wild) == 3 and not zero:
        message = "The gradient norm was NaN or infinite at each of the last 3 logged steps, with a finite loss."
        found.append(finding("run.loss.not_finite", message, steps=wild))
    found += _flat([loss for _, loss, _ in losses if math.isfinite(loss)], rows, state)
    return found


def process(run: store.Run, state: str, status: Mapping[str, Any], done: Mapping[str, Any]) -> list[Finding]:
    """Why a run did not end well, as far as its exit and its log's last lines tell."""
    if state not in ("failed", "lost"):
        return []
    from peftsmith.diagnose import causes

    code = status.get("exit_code")
    report = causes.diagnose(run.project, run_id=run.id, log=None)
    if state == "lost":
        lost = finding(
            "run.process.lost",
            f"Run {run.id} ended without a trace: no process, no renewed lease, no done.json.",
            host=files.clean(str(status.get("host")), 100),
            pid=status.get("pid"),
            last_sign_of_life=status.get("lease_until"),
        )
        return [lost, *(cause for cause in report.findings if cause.severity != "unknown")]
    how = "Its script could not be started" if status.get("error") else how_it_ended(code)
    if code == 0:
        how = "It ended with exit code 0 but " + ("its done.json says it failed" if done else "wrote no done.json")
    return [
        finding(
            "run.process.failed",
            f"Run {run.id} failed. {how}.",
            exit_code=code,
            error=logs.show(str(status["error"]), 500) if status.get("error") else None,
            diagnosis=[cause.id for cause in report.findings],
        ),
        *report.findings,
    ]


def how_it_ended(code: object) -> str:
    """An exit code in words; a negative one is the signal that ended the process, as subprocess gives it."""
    if not isinstance(code, int):
        return "How its process ended is not known"
    if code >= 0:
        return f"Its process ended with exit code {code}"
    try:
        return f"Its process was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"Its process was killed by signal {-code}"


def artefacts(folder: Path) -> list[Finding]:
    """What a training run that says it is done has really left: an adapter that was trained, and lean checkpoints."""
    from peftsmith.adapter import inspect

    if (folder / "model" / "config.json").is_file():
        return []  # all weights were trained: there is no adapter to look into
    several = sorted(each for each in (folder / "adapters").glob("*") if each.is_dir())
    found = []
    for adapter in several or [folder / "adapter"]:
        checkpoints = folder / "checkpoints" / adapter.name if several else folder / "checkpoints"
        if not (adapter / "adapter_config.json").is_file():
            found.append(finding("run.adapter.missing", f"The run is done, but {adapter} holds no adapter."))
            continue
        found += inspect.check_checkpoints(checkpoints) if any(checkpoints.glob("checkpoint-*")) else []
        try:
            if inspect.lora_b_is_zero(adapter):
                found.append(finding("run.adapter.untouched", folder=str(adapter)))
        except PeftsmithError as error:
            found.append(finding("run.adapter.missing", f"{error.cause}.", folder=str(adapter)))
    return found


def _flat(losses: list[float], rows: list[Row], state: str) -> list[Finding]:
    at = progress(rows, ended=True)["share"] or 0.0
    if len(losses) < _FLAT_ROWS or (at < _FLAT_SHARE and state != "done"):
        return []
    part = len(losses) // 4
    first, last = statistics.median(losses[:part]), statistics.median(losses[-part:])
    if first < _FLAT_LOSS or first - last >= _FLAT_FALL * first:
        return []
    message = (
        f"The loss barely moves: median {first:.4g} in the first quarter of the logged steps, {last:.4g} in the last."
    )
    return [finding("run.loss.flat", message, first=round(first, 6), last=round(last, 6), rows_logged=len(losses))]
