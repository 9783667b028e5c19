"""The loss-mask proof of a project: its plan's rows as its train.py hands them to the trainer.

Knows: which settings and rows the generated script stands for, what start_run compares before it spends anything.
Does not know: how labels are made and compared (data/proof.py).
"""

from __future__ import annotations

from collections.abc import Mapping as Lookup
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftsmith import files, lock, plan
from peftsmith.data import proof
from peftsmith.data.convert import as_chat, to_example
from peftsmith.data.examples import AnyExample
from peftsmith.data.faults import RowFault
from peftsmith.data.labels import Settings
from peftsmith.data.mapping import Mapping
from peftsmith.finding import Finding, finding
from peftsmith.model import source

if TYPE_CHECKING:
    from peftsmith.machine.environment import Environment

PROOF = "mask"


def prove(
    project: Path, wanted: plan.FineTunePlan, environment: Environment | None
) -> tuple[dict[str, Any], list[Finding]]:
    """(what the lock keeps, findings). Raises PeftsmithError when the model's tokenizer cannot be read."""
    if wanted.base.trust_remote_code:
        reason = "the base model brings its own code, which the proof does not run"
        return {"state": "unknown"}, [finding("data.mask.unproven", reason, reason=reason)]
    opened = source.open_model(wanted.base.model, wanted.base.revision)
    seen = proof.prove(
        rows_of(project, wanted),
        source.tokenizer_folder(opened),
        settings_of(wanted),
        environment,
        batch_size=min(wanted.training.batch_size, 8),
        config=opened.config,
    )
    return seen.to_json(), seen.findings


def settings_of(wanted: plan.FineTunePlan) -> Settings:
    """What train.py asks of SFTTrainer: loss on the answer alone, cut at max_length."""
    return Settings(completion_only_loss=True, max_length=wanted.training.max_length)


def rows_of(project: Path, wanted: plan.FineTunePlan) -> proof.Source:
    """The training rows, as train.py makes examples of them."""
    mapping = Mapping.of_plan(wanted.data)

    def example(row: dict[str, Any]) -> AnyExample:
        made = as_chat(to_example(row, mapping, wanted.data.labels), wanted.data.system_prompt)
        if made is None:
            raise RowFault("unsupported", f"rows of the format {wanted.data.format} are no conversations")
        return made

    return proof.Source(project / wanted.data.train, example)


def changed_since(project: Path, locked: lock.Lock) -> list[str]:
    """What the proof in the lock no longer holds for: the data, the settings, a file of the model's tokenizer.

    Nothing when the lock holds no proof, or when the model's folder is gone (start_run says so by itself). A hub model
    is pinned by its commit.
    """
    kept = locked.proofs.get(PROOF, {}).get("inputs")
    if not isinstance(kept, Lookup):
        return []
    wanted = plan.load(project)
    changed = []
    train = project / wanted.data.train
    if (files.sha256_file(train) if train.is_file() else None) != kept["data"]:
        changed.append(f"data.train ({wanted.data.train})")
    if proof.settings_hash(settings_of(wanted)) != kept["settings"]:
        changed.append("the settings that decide about labels")
    folder = Path(locked.base["folder"]) if locked.base.get("folder") else None
    if folder is not None and folder.is_dir():
        now, then = proof.tokenizer_hashes(folder), kept["tokenizer"]
        names = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
        changed += [f"the model's {name}" for name in names]
    return changed
