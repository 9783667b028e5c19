"""Planted mistakes: how many are found, and how many clean cases stay without alarm.

Run as: python benchmarks/traps.py DIR   (DIR holds one folder per case, each with a case.yaml)

Knows: how to set up a case in a folder of its own and which function of peftsmith judges its stage.
Does not know: the mistakes; they are in the cases (format: docs/schema/case.schema.json).
"""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "mcp_server")]

from peftsmith import __version__, files, lock, plan
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding
from peftsmith.knowledge import case as cases
from tests.tiny import write_tiny_model

if TYPE_CHECKING:
    from peftsmith.model.anatomy import Anatomy

# SmolLM2-135M's shape: large enough for realistic shares, and without weights nothing has to be written.
SMALL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
}
ROWS = 12  # written where a project case brings no rows of its own


@dataclass(frozen=True)
class Outcome:
    """What one case showed. `alarms` are errors and warnings of a clean case."""

    name: str
    title: str
    planted: bool
    found: list[str]
    missed: list[str]
    alarms: list[str]
    seen: list[str]


def run_all(folder: Path) -> list[Outcome]:
    """Every case below `folder`, each in a temporary folder of its own, by name."""
    found = sorted(path.parent for path in folder.rglob(cases.CASE_FILE))
    if not found:
        raise PeftsmithError(
            "There is no case here", value=str(folder), next_step="Give a folder with case.yaml files."
        )
    with tempfile.TemporaryDirectory(prefix="peftsmith-traps-") as name:
        root = Path(name).resolve()
        models = {
            cases.TINY: write_tiny_model(root / "models" / cases.TINY),
            cases.SMALL: write_tiny_model(root / "models" / cases.SMALL, **SMALL),
        }
        (models[cases.SMALL] / "model.safetensors").unlink()
        return [run_case(each, root / f"{number:04}", models) for number, each in enumerate(found)]


def run_case(folder: Path, work: Path, models: Mapping[str, Path]) -> Outcome:
    """One case, judged in the new folder `work`."""
    case = cases.load(folder)
    work.mkdir(parents=True)
    try:
        findings = _judge(case, folder, work, models)
        seen = {each.id: each.severity for each in findings}
        rows = {row for each in findings for row in each.rows}
    except PeftsmithError as error:
        seen, rows = {"refused": "error"}, set()
        if "refused" not in case.expect:
            seen = {f"refused: {error}": "error"}
    found = [each for each in case.expect if each in seen or cases.row_of(each) in rows]
    alarms = [name for name, severity in seen.items() if severity in ("error", "warning")]
    return Outcome(
        name=folder.name,
        title=case.title,
        planted=bool(case.expect),
        found=found,
        missed=[each for each in case.expect if each not in found],
        alarms=[] if case.expect else sorted(alarms),
        seen=sorted(seen),
    )


def _judge(case: cases.Case, folder: Path, work: Path, models: Mapping[str, Path]) -> list[Finding]:
    model = _model(case, work, models)
    document = _merge(_good_plan(model), case.plan)
    if case.stage == "project":
        _write_project(work, document)
    for item in case.files:
        target = work / item.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / item.source, target)
    return {
        "data": _data,
        "model": _of_model,
        "plan": _plan,
        "project": _project,
        "script": _script,
        "run": _run,
        "adapter": _adapter,
    }[case.stage](case, document, work, model)


def _data(case: cases.Case, document: dict[str, Any], work: Path, model: str | None) -> list[Finding]:
    from peftsmith.data import audit

    data = document["data"]
    splits = {name: work / data[name] for name in ("test", "eval") if data.get(name) and (work / data[name]).exists()}
    report = audit.audit(
        work / data["train"],
        model=model,
        test=splits.get("test"),
        eval=splits.get("eval"),
        max_length=document["training"]["max_length"],
        text_column=data.get("text_column", "text"),
        label_column=data.get("label_column", "label"),
        system_prompt=data.get("system_prompt"),
    )
    return report.findings


def _of_model(case: cases.Case, document: dict[str, Any], work: Path, model: str | None) -> list[Finding]:
    from peftsmith.model import anatomy

    return list(anatomy.inspect(str(model)).findings)


def _plan(case: cases.Case, document: dict[str, Any], work: Path, model: str | None) -> list[Finding]:
    from peftsmith.advise import rules
    from peftsmith.model import anatomy
    from peftsmith.project import fitness

    made = plan.validate(document)
    body = anatomy.inspect(str(model), made.base.revision if model == made.base.model else None)
    return [*rules.check(made, body), *fitness.on_device(made, _device(case.gpu)), *_updates(made, body, work)]


def _device(gpu: str | None) -> dict[str, Any] | None:
    """The GPU as plan_finetune keeps it in the lock."""
    from peftsmith.model import speed

    if gpu is None:
        return None
    return {"kind": "cuda", "capability": [int(part) for part in speed.gpu(gpu).capability.split(".")]}


def _updates(made: plan.FineTunePlan, body: Anatomy, work: Path) -> list[Finding]:
    """How often the plan updates its adapter, where the case brings the rows."""
    from peftsmith.advise import measure, updates
    from peftsmith.data import formats

    train = work / str(made.data.train)
    if not train.is_file():
        return []
    prompt = made.data.system_prompt
    rows = measure.measure(train, formats.detect(train), made.task, body, test=None, system_prompt=prompt).rows
    return updates.judge(made, rows.count, rows.total_tokens)


def _write_project(work: Path, document: dict[str, Any]) -> None:
    from peftsmith.project import generate

    made = plan.validate(document)
    text = plan.dump(made)
    files.write_text(work / plan.PLAN_FILE, text)
    for name in (made.data.train, made.data.test):
        if name:
            rows = [_row(made, number) for number in range(ROWS)]
            files.write_text(work / name, "".join(row + "\n" for row in rows))
    splits = {"train": made.data.train} | ({"test": made.data.test} if made.data.test else {})
    locked = lock.Lock(
        peftsmith=__version__,
        plan_sha256=files.sha256_text(text),
        base={"model": made.base.model, "commit": made.base.revision, "folder": made.base.model},
        data={
            split: lock.DataFile(path=name, sha256=files.sha256_file(work / name), rows=ROWS)
            for split, name in splits.items()
        },
        versions={},
        interpreter=None,
        estimate={},
        why={},
        files={},
    )
    lock.save(work, locked)
    generate.generate(work)


def _row(made: plan.FineTunePlan, number: int) -> str:
    import json

    if made.task == "classification":
        labels = made.data.labels
        return json.dumps({"text": f"ticket number {number}", "label": labels[number % len(labels)]})
    question, answer = f"what is in parcel {number}?", f"parcel {number} holds a lamp"
    return json.dumps(
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        if made.data.format == "messages"
        else {"prompt": question, "completion": answer}
    )


def _project(case: cases.Case, document: dict[str, Any], work: Path, model: str | None) -> list[Finding]:
    from peftsmith.project import vet

    return vet.vet(work, None)


def _script(case: cases.Case, document: dict[str, Any], work: Path, model: str | None) -> list[Finding]:
    """The first file is the script; the others lie beside it."""
    from peftsmith.project.foreign import check

    return check.look(work / case.files[0].path, None).findings


def _run(case: cases.Case, document: dict[str, Any], work: Path, model: str | None) -> list[Finding]:
    from peftsmith.diagnose import causes

    if case.plan:
        files.write_text(work / plan.PLAN_FILE, plan.dump(plan.validate(document)))
    return causes.diagnose(work, run_id=None, log=work / "log.txt").findings


def _adapter(case: cases.Case, document: dict[str, Any], work: Path, model: str | None) -> list[Finding]:
    from peftsmith.adapter import inspect

    return inspect.inspect(work / "adapter").findings


def _model(case: cases.Case, work: Path, models: Mapping[str, Path]) -> str | None:
    wanted = case.model or (None if case.stage in ("data", "script", "run", "adapter") else cases.SMALL)
    if wanted is None:
        return None
    if wanted in models:
        return str(models[wanted])
    inside = any(item.path == wanted or item.path.startswith(f"{wanted}/") for item in case.files)
    return str(work / wanted) if inside else wanted


def _good_plan(model: str | None) -> dict[str, Any]:
    return {
        "schema_version": plan.SCHEMA_VERSION,
        "name": "case",
        "task": "chat",
        "base": {"model": model or "owner/model"},
        "data": {"train": "data/train.jsonl", "test": "data/test.jsonl", "format": "messages"},
        "method": {"rank": 8, "alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
        "training": {"max_length": 512},
    }


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, dict by dict; a null removes the key."""
    merged = copy.deepcopy(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        elif value is None:
            merged.pop(key, None)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def report(outcomes: list[Outcome]) -> tuple[str, bool]:
    """The printed report, and whether nothing was missed and no clean case raised an alarm."""
    lines = []
    for each in outcomes:
        verdict = (["missed"] if each.missed else []) + (["false alarm"] if each.alarms else [])
        shown = ", ".join(verdict) or ("found" if each.planted else "clean")
        lines.append(f"{shown:12} {each.name}: {each.title}")
        if each.missed:
            lines.append(f"{'':12}   not found: {', '.join(each.missed)}; seen: {', '.join(each.seen) or 'nothing'}")
        if each.alarms:
            lines.append(f"{'':12}   alarm: {', '.join(each.alarms)}")
    planted = [each for each in outcomes if each.planted]
    clean = [each for each in outcomes if not each.planted]
    found = sum(not each.missed for each in planted)
    quiet = sum(not each.alarms for each in clean)
    lines.append(f"found {found} of {len(planted)} planted, {quiet} of {len(clean)} clean without alarm")
    return "\n".join(lines), found == len(planted) and quiet == len(clean)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, metavar="DIR")
    arguments = parser.parse_args(argv)
    files.set_roots(["/"])
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # cases bring their own models
    text, good = report(run_all(arguments.folder))
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PeftsmithError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
