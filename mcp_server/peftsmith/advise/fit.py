"""Which setting of a training step fits the device, by the upper end of the memory estimate.

Knows: the order in which batch, checkpointing and a 4-bit base are tried, and the request that a plan amounts to.
Does not know: how memory is estimated (model/memory.py), or which method is wanted (rules).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from peftsmith.advise.facts import Device, Intent, Rows
from peftsmith.knowledge import methods

if TYPE_CHECKING:
    from peftsmith.model.anatomy import Anatomy
    from peftsmith.model.memory import Estimate, Request

GIB = 1 << 30
MOST_ROWS_AT_ONCE = 16
# A head that says where an answer stands costs what one for classes does.
_TASKS = {
    "CAUSAL_LM": "sft", "SEQ_CLS": "classification", "TOKEN_CLS": "classification", "QUESTION_ANS": "classification",
    "SEQ_2_SEQ_LM": "seq2seq",
}  # fmt: skip
# Fields of a config that say where adapters go: the request has them as targets.
_PLACES = ("target_modules", "target_parameters", "modules_to_save", "exclude_modules", "trainable_token_indices")


@dataclass(frozen=True)
class Fit:
    """A request and its estimate; `fits` by the upper end."""

    request: Request
    estimate: Estimate
    fits: bool

    @property
    def gib(self) -> float:
        return round(self.estimate.device.high / GIB, 2)


def request(facts: Mapping[str, Any], rows: Rows, device: Device, intent: Intent, preset: str) -> Request:
    """The training step that is tried first: the whole effective batch (16 at most) without checkpointing."""
    from peftsmith.model import memory

    length = facts["max_length"]
    packed = facts["packing"] != "none"
    options = {name: value for name, value in facts["config"].items() if name not in _PLACES}
    if facts["peft_type"] == "CPT":
        options = {"num_virtual_tokens": len(options.get("cpt_token_ids") or ()), **options}
    task = _TASKS[facts["task_type"]]
    return memory.Request(
        method="full" if facts["peft_type"] == methods.FULL else facts["peft_type"],
        rank=facts["rank"],
        targets=preset if preset != "none" else "all-linear",
        batch_size=min(facts["effective"], MOST_ROWS_AT_ONCE, facts["sequences_at_once"] or MOST_ROWS_AT_ONCE),
        sequence_length=length if packed else min(rows.longest or length, length),
        precision=facts["precision"],
        gradient_checkpointing=False,
        device=device.kind,
        options=options,
        task=task,
        labels=intent.labels,
        target_length=min(rows.target or length, length) if task == "seq2seq" else None,
        padded=False if facts["packing"] == "wrapped" else None,
        flattened=facts["packing"].startswith("bfd"),
        loss="stock" if facts["loss_path"] == "labelled" else "trl_chunked",
    )


def smallest_change(anatomy: Anatomy, wanted: Request, device: Device, *, quantised: bool) -> Fit:
    """The cheapest change of `wanted` that fits: a smaller batch, then checkpointing. Else the last that was tried."""
    from peftsmith.model import memory

    tried = None
    if quantised:
        wanted = replace(wanted, quantization="nf4_double")
    for step in _changes(wanted, quantised=quantised):
        estimate = memory.estimate(anatomy, step)
        tried = Fit(step, estimate, estimate.device.high <= device.memory_gib * GIB)
        if tried.fits:
            return tried
    assert tried is not None
    return tried


def _changes(wanted: Request, *, quantised: bool) -> Iterator[Request]:
    batches = [size for size in (16, 8, 4, 2, 1) if size <= wanted.batch_size]
    for checkpointing in (False, True):
        if checkpointing and not can_checkpoint(wanted):
            return
        # On a 4-bit base every step is slow: checkpointing costs less there than many small steps.
        for batch in batches if checkpointing or not quantised or not can_checkpoint(wanted) else batches[:1]:
            yield replace(wanted, gradient_checkpointing=checkpointing, batch_size=batch)


def can_checkpoint(wanted: Request) -> bool:
    return wanted.peft_type is None or methods.method(wanted.peft_type).checkpointing
