"""From model, data and machine to plan.yaml and plan.lock.json.

Knows: what to inspect, in which order, what an answer would change, and how the parts become one plan.
Does not know: the rules behind the values (recommend.py), how a project folder comes to be (writing.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftsmith import __version__, files, lock, plan
from peftsmith.advise import (
    alternatives,
    document,
    measure,
    questions,
    recommend,
    rules,
    tasks,
    updates,
    worth,
    writing,
)
from peftsmith.advise.document import Wish
from peftsmith.advise.facts import Device, Intent
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding
from peftsmith.project import fitness, together

__all__ = ["Made", "Wish", "make"]

if TYPE_CHECKING:
    from peftsmith.data.formats import Detected
    from peftsmith.machine.environment import Environment
    from peftsmith.machine.hardware import Hardware
    from peftsmith.model.anatomy import Anatomy

# Left to the system and the page cache when training on the CPU, and to other processes on a GPU.
SHARE_OF_MEMORY = 0.9
_READ = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
# Findings about a base that only concern one that writes text.
_OF_TEXT = ("model.architecture.not_causal", "model.chat_template.", "model.tokenizer.end_of_turn")


@dataclass(frozen=True)
class Made:
    plan: plan.FineTunePlan
    why: dict[str, Any]
    estimate: dict[str, Any]
    alternatives: list[dict[str, Any]]
    questions: list[dict[str, Any]]
    findings: list[Finding]


@dataclass(frozen=True)
class _Situation:
    """What was inspected once, whatever the answers are."""

    project: Path
    wish: Wish
    anatomy: Anatomy
    detected: Detected
    measured: measure.Measured
    machine: Hardware


def make(project: Path, wish: Wish) -> Made:
    """Inspect, recommend, write plan.yaml and plan.lock.json into `project` with the data beside them.

    Raises PeftsmithError, leaving nothing behind, for a folder that is in use, a base model that is not supported,
    rows that training could not use, and a method that cannot work.
    """
    from peftsmith.machine import environment

    writing.refuse_used(project)
    with ThreadPoolExecutor(1) as pool:  # other Pythons answer slowly: they are asked while the rows are read
        searching = pool.submit(environment.find, writing.existing(project))
        return _make(project, wish, searching)


def _make(project: Path, wish: Wish, searching: Future[list[Environment]]) -> Made:
    from peftsmith.machine import environment, hardware
    from peftsmith.model import speed

    gpu = speed.gpu(wish.gpu) if wish.gpu else None
    body = _base_model(wish)
    detected, task = _task(wish, body)
    measured = _rows(wish, body, detected, task)
    if wish.others:
        measured = _together(wish, body, detected, task, measured)
    situation = _Situation(project, wish, body, detected, measured, hardware.probe(writing.existing(project)))
    intent = replace(wish.intent, task=task, labels=max(2, len(detected.labels)), datasets=tuple(wish.tasks()))
    made, advice, judged = _propose(situation, intent, wish.gpu)
    _refuse_impossible(made, body)
    text = plan.dump(made, {name: reason.reason for name, reason in advice.why.items()})
    environments = searching.result()
    working = [each for each in environments if each.usable]
    usable = environment.best(working) if working else None
    sources = document.sources(made, wish)
    device = _device(situation, wish.gpu)
    others = alternatives.compare(body, advice, measured.rows, device, serving=intent.serving, gpu=gpu)
    locked = lock.Lock(
        peftsmith=__version__,
        plan_sha256=files.sha256_text(text),
        base=document.base(body),
        data=writing.data_files(made, sources),
        versions={name: found for name, found in usable.versions.items() if found} if usable else {},
        interpreter=usable.interpreter if usable else None,
        device={"kind": device.kind, "capability": device.capability, "name": gpu.name if gpu else None},
        estimate=advice.fit.estimate.to_json(),
        seconds=others[0].get("seconds"),
        why=advice.why,
        files={},
    )
    asked = _questions(situation, intent, questions.Outcome(_values(made), _alarms(judged)))
    writing.write(project, text, locked, sources)
    findings = [*_notable(body, made), *measured.findings, *judged]
    if usable is None:
        findings += environment.judge(environments)
    why = {name: reason.model_dump(mode="json") for name, reason in advice.why.items()}
    return Made(made, why, locked.estimate, others, asked, _once(findings))


def _propose(
    situation: _Situation, intent: Intent, gpu: str | None
) -> tuple[plan.FineTunePlan, recommend.Recommendation, list[Finding]]:
    """Plan, reasons and findings for what the user says, or would say."""
    wish, body, rows = situation.wish, situation.anatomy, situation.measured.rows
    advice = recommend.recommend(body, rows, _device(situation, gpu), intent)
    apart = situation.measured.labels
    made = document.plan_of(situation.project, wish, body, situation.detected, intent, advice, apart)
    scores = {"base_score": wish.base_score, "wanted_score": wish.wanted_score}
    few = [
        together.about(each, name)
        for name, one in (situation.measured.apart or {"": rows}).items()
        for each in updates.judge(made, one.count, one.total_tokens)
    ]
    return made, advice, [*advice.findings, *worth.judge(intent, rows, **scores), *few, *rules.check(made, body)]


def _questions(situation: _Situation, intent: Intent, now: questions.Outcome) -> list[dict[str, Any]]:
    wish = situation.wish
    said = {"goal": intent.goal, "forgetting": intent.forgetting, "adapters": intent.adapters, "gpu": wish.gpu}
    answered = {name for name, value in said.items() if value is not None}
    if intent.serving != Intent().serving:
        answered.add("serving")
    if situation.machine.gpus or wish.memory_gib:
        answered.add("gpu")

    def outcome_of(sets: Mapping[str, Any]) -> questions.Outcome:
        changes = {name: value for name, value in sets.items() if name != "gpu"}
        goal = changes.get("goal", intent.goal)
        task = tasks.choose(situation.detected, situation.anatomy, wish.task, goal)
        made, _, judged = _propose(situation, replace(intent, **{**changes, "task": task}), sets.get("gpu", wish.gpu))
        return questions.Outcome(_values(made), _alarms(judged))

    return questions.ask(now, answered, outcome_of)


def _values(made: plan.FineTunePlan) -> dict[str, Any]:
    names = ("task", "serving")
    return {
        name: value
        for name, value in plan.flatten(made).items()
        if name in names or name.startswith(("method.", "training."))
    }


def _alarms(found: list[Finding]) -> frozenset[str]:
    return frozenset(each.id for each in found if each.severity in ("error", "warning"))


def _notable(body: Anatomy, made: plan.FineTunePlan) -> list[Finding]:
    """What matters of the base for this task; inspect_model shows the rest."""
    found = [each for each in body.findings if each.severity != "info"]
    if made.task_type == "CAUSAL_LM":
        return found
    return [each for each in found if not each.id.startswith(_OF_TEXT)]


def _once(found: list[Finding]) -> list[Finding]:
    """Each statement once: model, data and plan are judged by overlapping rules."""
    return list({(each.id, each.message): each for each in found}.values())


def _refuse_impossible(made: plan.FineTunePlan, body: Anatomy) -> None:
    for each in fitness.judge(made, {"model_type": body.model_type}):
        if each.severity == "error":
            raise PeftsmithError(each.message, value=made.method.peft_type, next_step=each.fix)


def _base_model(wish: Wish) -> Anatomy:
    """The base; that it writes no text is no fault before the task is known."""
    from peftsmith.model import anatomy

    body = anatomy.inspect(wish.model, wish.revision)
    refused = [each for each in body.findings if each.severity == "error"]
    if refused:
        raise PeftsmithError(refused[0].message, value=wish.model, next_step=refused[0].fix)
    return body


def _task(wish: Wish, body: Anatomy) -> tuple[Detected, plan.Task]:
    from peftsmith.data import formats

    mapping = formats.Mapping.of(text_column=wish.text_column, label_column=wish.label_column)
    detected = formats.detect(wish.data, mapping)
    if wish.data.suffix.lower() not in _READ:
        raise PeftsmithError(
            f"Training scripts do not read {detected.format} rows from this kind of file",
            value=str(wish.data),
            next_step="Run prepare_dataset first and plan with the rows that it writes.",
        )
    return detected, tasks.choose(detected, body, wish.task, wish.intent.goal)


def _rows(wish: Wish, body: Anatomy, detected: Detected, task: plan.Task) -> measure.Measured:
    """Lengths include the instruction that rows will have."""
    prompt = document.system_prompt(wish, detected, task)
    found = measure.measure(wish.data, detected, task, body, test=wish.test, system_prompt=prompt)
    if found.readable < found.total or not found.total:
        raise PeftsmithError(
            f"{found.total - found.readable} of {found.total} rows cannot be trained on",
            value=str(wish.data),
            next_step="audit_dataset names them; prepare_dataset puts them aside and writes the rest.",
        )
    return replace(found, rows=replace(found.rows, held_out=wish.eval is not None))


def _together(
    wish: Wish, body: Anatomy, detected: Detected, task: plan.Task, first: measure.Measured
) -> measure.Measured:
    """The rows of all adapters, as the settings that they share must suit them: the longest, the most; of a mixture all
    together. All are of the first one's format."""
    own = next(iter(wish.tasks()))
    seen, labels = [(own, first)], {own: sorted(detected.labels)}
    for name, path in wish.others.items():
        other = replace(wish, data=path, test=wish.other_tests.get(name), eval=None)
        found, other_task = _task(other, body)
        if (found.format, other_task) != (detected.format, task):
            raise PeftsmithError(
                f"The rows of {name} are {found.format} ({other_task}), the first's {detected.format} ({task})",
                value=str(path),
                next_step="Write both in one format with prepare_dataset, or plan a project for each.",
            )
        seen.append((name, _rows(other, body, found, task)))
        labels[name] = sorted(found.labels)
    every = [each.rows for _, each in seen]

    def most(name: str) -> int | None:
        known = [getattr(each, name) for each in every]
        return None if None in known else max(known)

    def together_or_most(name: str) -> int | None:
        """One adapter for all trains on the rows of all."""
        known = [getattr(each, name) for each in every]
        return sum(known) if wish.intent.mix and None not in known else most(name)

    rows = replace(
        first.rows,
        count=together_or_most("count") or 0,
        longest=most("longest"),
        loss_tokens=together_or_most("loss_tokens"),
        total_tokens=together_or_most("total_tokens"),
        target=most("target"),
    )
    findings = [together.about(each, name) for name, one in seen for each in one.findings]
    total = sum(each.total for _, each in seen)
    apart = {} if wish.intent.mix else {name: one.rows for name, one in seen}
    differ = any(each != labels[own] for each in labels.values())
    return measure.Measured(rows, total, total, findings, apart, labels if differ else {})


def _device(situation: _Situation, gpu: str | None) -> Device:
    """The named GPU, else this machine's largest, else its processor."""
    from peftsmith.model import speed

    memory = situation.wish.memory_gib
    if gpu is not None:
        named = speed.gpu(gpu)
        major, _, minor = named.capability.partition(".")
        capability = (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None
        return Device("cuda", memory or named.memory_gib * SHARE_OF_MEMORY, capability)
    machine = situation.machine
    if machine.gpus:
        largest = max(machine.gpus, key=lambda each: each.memory_gib)
        return Device("cuda", memory or largest.memory_gib * SHARE_OF_MEMORY, largest.capability)
    return Device("cpu", memory or machine.ram_available_gib * SHARE_OF_MEMORY)
