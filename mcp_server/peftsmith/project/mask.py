"""The loss-mask proof of a project: its plan's rows as its train.py hands them to the trainer.

Knows: which settings and rows the generated script stands for, what start_run compares before it spends anything.
Does not know: how labels are made and compared (data/proof.py).
"""

from __future__ import annotations

from collections.abc import Mapping as Lookup
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftsmith import files, lock, plan
from peftsmith.advise.updates import judge as judge_updates
from peftsmith.data import faults, proof
from peftsmith.data.convert import as_chat, to_example
from peftsmith.data.examples import AnyExample, Plain
from peftsmith.data.faults import RowFault
from peftsmith.data.labels import Settings
from peftsmith.data.mapping import Mapping
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding
from peftsmith.model import source
from peftsmith.project import together

if TYPE_CHECKING:
    from peftsmith.machine.environment import Environment

PROOF = "mask"


def prove(
    project: Path, wanted: plan.FineTunePlan, environment: Environment | None
) -> tuple[dict[str, Any], list[Finding]]:
    """(what the lock keeps, findings) for a plan of one adapter. Raises PeftsmithError when the model's tokenizer
    cannot be read."""
    if wanted.base.trust_remote_code:
        reason = "the base model brings its own code, which the proof does not run"
        return {"state": "unknown"}, [finding("data.mask.unproven", reason, reason=reason)]
    opened = source.open_model(wanted.base.model, wanted.base.revision)
    seen = proof.prove(
        rows_of(project, wanted),
        source.tokenizer_folder(opened),
        settings_of(project, wanted),
        environment,
        batch_size=min(wanted.training.batch_size, 8),
        config=opened.config,
    )
    return seen.to_json(), seen.findings


def settings_of(project: Path, wanted: plan.FineTunePlan) -> Settings:
    """What train.py asks of its trainer. Raises PeftsmithError when the plan's chat template is not in the project."""
    training, task = wanted.training, wanted.task
    packing = training.packing != "none"
    strategy = training.packing if training.packing != "none" else "bfd"
    base = Settings(
        max_length=training.max_length, pad_token=training.pad_token, packing=packing, packing_strategy=strategy
    )
    if task == "sequence_classification":
        return replace(base, trainer="classification", labels=tuple(wanted.data.labels))
    if task == "token_classification":
        return replace(base, trainer="tagging", labels=tuple(wanted.data.labels))
    if task == "question_answering":
        return replace(
            base,
            trainer="answers",
            stride=training.stride or 0,
            max_answer_tokens=training.max_answer_tokens,
            unanswerable=wanted.data.unanswerable,
        )
    if task == "seq2seq":
        return replace(base, trainer="seq2seq", max_target_length=training.max_length)
    if task in ("text", "continued_pretraining"):
        return base
    every = training.loss_on == "assistant"
    template = files.read_text(project / training.chat_template, largest=1 << 20) if training.chat_template else None
    return replace(base, completion_only_loss=not every, assistant_only_loss=every, template=template)


def rows_of(project: Path, wanted: plan.FineTunePlan) -> proof.Source:
    """The training rows, as train.py makes examples of them."""
    mapping = Mapping.of_plan(wanted.data)

    def example(row: dict[str, Any]) -> AnyExample:
        if wanted.task == "completion":
            return Plain(faults.text(row.get("prompt"), "prompt"), faults.text(row.get("completion"), "completion"))
        made = to_example(row, mapping, wanted.data.labels)
        if wanted.task not in ("chat", "classification"):
            return made
        chat = as_chat(made, wanted.data.system_prompt)
        if chat is None:
            raise RowFault("unsupported", f"rows of the format {wanted.data.format} are no conversations")
        return chat

    return proof.Source(project / train_file(wanted), example)


def train_file(wanted: plan.FineTunePlan) -> str:
    """Where the rows of a plan of one adapter are."""
    if wanted.data.train is None:
        raise ValueError("a plan of several adapters has a file for each: ask plan.alone()")
    return wanted.data.train


def prove_all(
    project: Path, wanted: plan.FineTunePlan, environment: Environment | None
) -> tuple[dict[str, Any], list[Finding]]:
    """(proof's name in the lock -> what it keeps, findings), one for each adapter whose rows are there."""
    proofs: dict[str, Any] = {}
    findings: list[Finding] = []
    for name, one in wanted.alone().items():
        if (project / train_file(one)).is_file():
            proofs[_kept_as(name)], seen = prove(project, one, environment)
            findings += [together.about(each, name) for each in seen]
    return proofs, findings


def updates(wanted: plan.FineTunePlan, proofs: Lookup[str, Any]) -> list[Finding]:
    """What the counts of the proofs say about how often each adapter, or the one of a mixture, is updated. With weights
    a mixture draws rows anew: how many is not counted."""
    counts = {name: proofs[_kept_as(name)]["counts"] for name in wanted.alone() if _counted(proofs, name)}
    if len(counts) < len(wanted.alone()) or any(each.weight for each in wanted.mixture.values()):
        return []
    if wanted.mixture:
        counts = {"": {each: sum(one[each] for one in counts.values()) for each in ("kept", "tokens")}}
    return [
        together.about(each, name)
        for name, seen in counts.items()
        for each in judge_updates(wanted, seen["kept"], seen["tokens"])
    ]


def _counted(proofs: Lookup[str, Any], adapter: str) -> bool:
    return bool(proofs.get(_kept_as(adapter), {}).get("counts", {}).get("kept"))


def _kept_as(adapter: str) -> str:
    return f"{PROOF}.{adapter}" if adapter else PROOF


def apply(project: Path, id_: str, *, confirm: bool) -> dict[str, Any]:
    """Make the change of plan.yaml that the last check offered for a finding, and write the file that it names.

    Returns {"changes": {field: [old, new]}, "files", "applied"}; without `confirm` nothing is written. Raises
    PeftsmithError when the last check offered no fix for it, or the file is there with another text.
    """
    proofs = lock.load(project).proofs
    every = [each for name, each in proofs.items() if name.split(".")[0] == PROOF]
    kept: dict[str, Any] = next((each for each in every if id_ in each.get("fixes", {})), {})
    patch = kept.get("fixes", {}).get(id_)
    if patch is None:
        offered = sorted({name for each in every for name in each.get("fixes", {})})
        raise PeftsmithError(
            "The last check offered no fix for this finding",
            value=files.clean(id_, 80),
            next_step=f"Fixes exist for: {', '.join(offered)}." if offered else "Run check_project first.",
        )
    text = files.read_text(project / plan.PLAN_FILE)
    before = plan.flatten(plan.parse(text))
    named = {name: content for name, content in kept.get("files", {}).items() if name in patch.values()}
    for name, content in named.items():
        place = project / name
        if place.exists() and files.read_text(place) != content:
            raise PeftsmithError(
                "The project has another file of this name", value=name, next_step="Move it away, then apply again."
            )
    edited = plan.edit(text, patch)
    if confirm:
        for name, content in named.items():
            files.write_text(project / name, content)
        files.write_text(project / plan.PLAN_FILE, edited)
    changes = {field: [before.get(field), value] for field, value in patch.items()}
    return {"changes": changes, "files": sorted(named), "applied": confirm}


def changed_since(project: Path, locked: lock.Lock) -> list[str]:
    """What the proof in the lock no longer holds for: the data, the settings, a file of the model's tokenizer.

    Nothing when the lock holds no proof, or when the model's folder is gone (start_run says so by itself). A hub model
    is pinned by its commit.
    """
    changed: list[str] = []
    for name, one in plan.load(project).alone().items():
        kept = locked.proofs.get(_kept_as(name), {}).get("inputs")
        if isinstance(kept, Lookup):
            changed += [each for each in _changed(project, locked, one, kept) if each not in changed]
    return changed


def _changed(project: Path, locked: lock.Lock, wanted: plan.FineTunePlan, kept: Lookup[str, Any]) -> list[str]:
    changed = []
    train = project / train_file(wanted)
    if (files.sha256_file(train) if train.is_file() else None) != kept["data"]:
        changed.append(f"data.train ({train_file(wanted)})")
    if proof.settings_hash(settings_of(project, wanted)) != kept["settings"]:
        changed.append("the settings that decide about labels")
    folder = Path(locked.base["folder"]) if locked.base.get("folder") else None
    if folder is not None and folder.is_dir():
        now, then = proof.tokenizer_hashes(folder), kept["tokenizer"]
        names = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
        changed += [f"the model's {name}" for name in names]
    return changed
