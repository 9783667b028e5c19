"""From model, data and machine to plan.yaml and plan.lock.json.

Knows: what to inspect, in which order, and how a new project folder comes to be without half-written files.
Does not know: the rules behind the values (recommend.py) or the scripts (project/).
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftsmith import __version__, files, lock, plan
from peftsmith.advise import recommend, rules
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding

if TYPE_CHECKING:
    from peftsmith.data.audit import Report
    from peftsmith.data.formats import Detected
    from peftsmith.machine.hardware import Hardware
    from peftsmith.model.anatomy import Anatomy

# Left to the system and the page cache when training on the CPU, and to other processes on a GPU.
SHARE_OF_MEMORY = 0.9
_MANY_LABELS = 50
# What the generated scripts read; prepare_dataset writes the others so, where they are conversations.
_READ = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_WRITTEN = ("messages", "prompt_completion", "classification")


@dataclass(frozen=True)
class Wish:
    """What the user said: base model, rows, and what is to be done differently from the recommendation."""

    model: str
    data: Path
    test: Path | None = None
    revision: str | None = None
    method: recommend.Kind | None = None
    serving: str = "transformers"
    memory_gib: float | None = None
    system_prompt: str | None = None
    text_column: str = "text"
    label_column: str = "label"


@dataclass(frozen=True)
class Made:
    plan: plan.FineTunePlan
    why: dict[str, Any]
    estimate: dict[str, Any]
    findings: list[Finding]


def make(project: Path, wish: Wish) -> Made:
    """Inspect, recommend, write plan.yaml and plan.lock.json into `project` with the data beside them.

    Raises PeftsmithError, leaving nothing behind, for a folder that is in use, a base model that is not supported, and
    rows that training could not use.
    """
    from peftsmith.machine import environment, hardware

    _refuse_used(project)
    body = _base_model(wish)
    system_prompt, report = _rows(wish, body)
    device = _device(hardware.probe(_existing(project)), wish.memory_gib)
    facts = recommend.Rows(
        count=report.usable_rows,
        longest=report.tokens["max"] if report.tokens else None,
        loss_tokens=report.loss_tokens,
    )
    advice = recommend.recommend(body, facts, device, method=wish.method)
    made = _plan(project, wish, body, report, system_prompt, advice)
    text = plan.dump(made, {field: reason.reason for field, reason in advice.why.items()})
    environments = environment.find(_existing(project))
    working = [each for each in environments if each.usable]
    usable = environment.best(working) if working else None
    sources = {made.data.train: wish.data} | ({made.data.test: wish.test} if made.data.test and wish.test else {})
    locked = lock.Lock(
        peftsmith=__version__,
        plan_sha256=files.sha256_text(text),
        base=_base(body),
        data=_data_files(made, sources),
        versions={name: found for name, found in usable.versions.items() if found} if usable else {},
        interpreter=usable.interpreter if usable else None,
        estimate=advice.estimate.to_json(),
        why=advice.why,
        files={},
    )
    _write(project, text, locked, sources)
    notable = [each for each in body.findings if each.severity != "info"]  # inspect_model shows the rest
    findings = [*notable, *report.findings, *advice.findings, *rules.check(made, body)]
    if facts.count < recommend.FEWEST_ROWS:
        findings.append(finding("advise.data.too_small", rows=facts.count))
    if usable is None:
        findings += environment.judge(environments)
    return Made(
        made, {field: reason.model_dump(mode="json") for field, reason in advice.why.items()}, locked.estimate, findings
    )


def _refuse_used(project: Path) -> None:
    if project.exists() and not project.is_dir():
        raise PeftsmithError("The project must be a folder", value=str(project), next_step="Take another name.")
    if (project / plan.PLAN_FILE).exists():
        raise PeftsmithError(
            "This folder already holds a plan",
            value=str(project),
            next_step="Edit its plan.yaml, or take a new folder.",
        )


def _base_model(wish: Wish) -> Anatomy:
    from peftsmith.model import anatomy

    body = anatomy.inspect(wish.model, wish.revision)
    refused = [each for each in body.findings if each.severity == "error"]
    if refused:
        raise PeftsmithError(refused[0].message, value=wish.model, next_step=refused[0].fix)
    return body


def _rows(wish: Wish, body: Anatomy) -> tuple[str | None, Report]:
    """The system prompt that rows will have, and the audit of the rows with it: lengths include the instruction."""
    from peftsmith.data import audit, formats

    mapping = formats.Mapping.of(text_column=wish.text_column, label_column=wish.label_column)
    detected = formats.detect(wish.data, mapping)
    _refuse_unread(wish, detected)
    labels = sorted(detected.labels) if detected.format == "classification" else []
    system_prompt = wish.system_prompt or _instruction(labels)
    report = audit.audit(
        wish.data,
        model=wish.model,
        revision=wish.revision,
        test=wish.test,
        max_length=body.max_positions or 1 << 20,
        text_column=wish.text_column,
        label_column=wish.label_column,
        system_prompt=system_prompt,
    )
    if report.usable_rows < report.rows or not report.rows:
        raise PeftsmithError(
            f"{report.rows - report.usable_rows} of {report.rows} rows cannot be trained on",
            value=str(wish.data),
            next_step="audit_dataset names them; prepare_dataset puts them aside and writes the rest.",
        )
    return system_prompt, report


def _refuse_unread(wish: Wish, detected: Detected) -> None:
    """Scripts read three formats from text files, under the usual column names (those of classes can be named)."""
    usual = {"text": wish.text_column, "label": wish.label_column}
    other = [column for name, column in detected.mapping.columns.items() if column != usual.get(name, name)]
    if detected.format not in _WRITTEN or wish.data.suffix.lower() not in _READ or other:
        columns = f", column {files.clean(other[0], 60)!r}," if other else ""
        raise PeftsmithError(
            f"Training scripts do not read {detected.format} rows{columns} from this file ({detected.reason})",
            value=str(wish.data),
            next_step="Run prepare_dataset first, with format and columns where it guesses otherwise, and plan with "
            "what it writes: messages, prompt and completion, or text and label.",
        )


def _plan(
    project: Path,
    wish: Wish,
    body: Anatomy,
    report: Report,
    system_prompt: str | None,
    advice: recommend.Recommendation,
) -> plan.FineTunePlan:
    labels = sorted(report.labels) if report.format == "classification" else []
    return plan.validate(
        {
            "schema_version": plan.SCHEMA_VERSION,
            "name": _name(project),
            "task": "classification" if labels else "chat",
            "base": {"model": _portable_model(wish.model, body), "revision": body.commit},
            "data": {
                "train": f"data/train{wish.data.suffix.lower()}",
                "test": f"data/test{wish.test.suffix.lower()}" if wish.test else None,
                "format": report.format,
                "text_column": wish.text_column,
                "label_column": wish.label_column,
                "labels": labels,
                "system_prompt": system_prompt,
            },
            "method": advice.method,
            "training": advice.training,
            "serving": wish.serving,
        }
    )


def _write(project: Path, text: str, locked: lock.Lock, sources: dict[str, Path]) -> None:
    """Data first, plan.yaml last: a folder without plan.yaml is no project, and a failure leaves nothing of ours."""
    new_folders = [each for each in (project / "data", project) if not each.exists()]
    written: list[Path] = []
    try:
        for name, source in sources.items():
            target = project / name
            if target.exists():
                raise PeftsmithError(
                    "A data file is in the way", value=str(target), next_step="Move it or take a new folder."
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            written.append(target)
            files.copy(source, target)
        written.append(project / lock.LOCK_FILE)
        lock.save(project, locked)
        written.append(project / plan.PLAN_FILE)
        files.write_text(project / plan.PLAN_FILE, text)
    except BaseException:
        for each in written:
            each.unlink(missing_ok=True)
        for folder in new_folders:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _device(machine: Hardware, memory_gib: float | None) -> recommend.Device:
    if machine.gpus:
        gpu = max(machine.gpus, key=lambda each: each.memory_gib)
        return recommend.Device("cuda", memory_gib or gpu.memory_gib * SHARE_OF_MEMORY, gpu.capability)
    return recommend.Device("cpu", memory_gib or machine.ram_available_gib * SHARE_OF_MEMORY)


def _base(body: Anatomy) -> dict[str, Any]:
    return {
        "model": body.id,
        "commit": body.commit,
        "folder": str(body.folder) if body.folder else None,
        "config_sha256": files.sha256_file(body.folder / "config.json") if body.folder else None,
        "parameters": body.parameters,
        "model_type": body.model_type,
        "licence": body.licence,
    }


def _data_files(made: plan.FineTunePlan, sources: dict[str, Path]) -> dict[str, lock.DataFile]:
    from peftsmith.data import formats

    splits = {"train": made.data.train} | ({"test": made.data.test} if made.data.test else {})
    return {
        split: lock.DataFile(
            path=path,
            sha256=files.sha256_file(sources[path]),
            rows=sum(1 for _ in formats.read_rows(sources[path])),
        )
        for split, path in splits.items()
    }


def _portable_model(model: str, body: Anatomy) -> str:
    """A hub id stays one; a local folder becomes absolute, since the project's scripts run from elsewhere."""
    return str(body.folder) if body.folder and not body.commit else model


def _instruction(labels: list[str]) -> str | None:
    if not labels:
        return None
    if len(labels) > _MANY_LABELS:
        return "Classify the text. Answer with the label only."
    return f"Classify the text as one of: {', '.join(labels)}. Answer with the label only."


def _name(project: Path) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", project.name.lower()).strip("-")[:60]
    return name or "fine-tune"


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
