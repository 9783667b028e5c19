"""The twin of a project with bottleneck adapters: its own scripts, on a small model, with the library adapters.

Knows: what such a project must leave on disk and in memory, and that a saved adapter says on a fresh base what it said
when it was trained.
Does not know: how the twin is built and how scripts run (jobs/twin.py), or anything of PEFT.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from peftsmith.worker import parity, proofs
from peftsmith.worker.book import Book, Disproved
from peftsmith.worker.child import Report
from peftsmith.worker.jobs import twin


def run(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    """All proofs of one project; arguments and answer as of jobs/twin.py."""
    return twin.prove(arguments, report, _stages)


def _stages(book: Book, place: twin.Place, wanted: proofs.Wanted, seed: int) -> list[str]:
    trained = place.work / "train"
    with book.phase("train"):
        trainer, losses = twin.train_twice(book, place.project, place.base, trained, wanted)
        if trainer is None:
            book.skip("training failed", "adapter", "reload", "resume", "evaluate", "merge", "generate")
            return []
        with book.check("adapter") as seen:
            seen |= _saved(trained / "adapter")
        with book.check("checkpoint") as seen:
            checkpoints = sorted((trained / "checkpoints").glob("checkpoint-*"))
            seen["checkpoints"] = [each.name for each in checkpoints]
            if not checkpoints:
                raise Disproved("no checkpoint was saved at the end of the run")
            for checkpoint in checkpoints:
                seen |= _saved(checkpoint, without=("optimizer", "scheduler", "rng_state", "training_args"))
        with book.check("adapter_nonzero") as seen:
            seen |= proofs.moved(trainer.model, losses.before)
        with book.check("trainable") as seen:
            seen |= _trainable(trainer.model)
    swapped = twin.swapped_for(trainer, wanted.plan)
    with book.phase("reload"), book.check("reload") as seen:
        memory = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        seen |= _reloaded(memory, place.base, trained / "adapter", wanted)
    del trainer, memory
    gc.collect()
    twin.use(book, place.project, place.base, place.work, wanted, seed)
    return swapped


def _saved(folder: Path, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Evidence that a folder holds the adapter's weights in safetensors, and none as a pickle; files whose names begin
    with one of `without` are the trainer's own state."""
    from safetensors import safe_open

    weights = sorted(each.name for each in folder.glob("*.safetensors"))
    pickled = sorted(each.name for each in folder.glob("*.bin") if not each.name.startswith(without))
    if len(weights) != 1 or pickled:
        raise Disproved("the adapter's folder should hold one safetensors file and no pickle", found=weights + pickled)
    with safe_open(folder / weights[0], framework="pt") as tensors:
        names = list(tensors.keys())
    if not names or any("adapters." not in name for name in names):
        raise Disproved("the saved tensors are not those of an adapter", tensors=names[:5])
    return {"tensors": len(names), "bytes": (folder / weights[0]).stat().st_size}


def _trainable(model: Any) -> dict[str, Any]:
    """Evidence that the bottlenecks are trained and nothing of the base is."""
    trained = {name: each.numel() for name, each in model.named_parameters() if each.requires_grad}
    foreign = [name for name in trained if ".adapters." not in name]
    if foreign:
        raise Disproved("weights of the base are trained beside the adapter", foreign=foreign[:5])
    return {"trainable": sum(trained.values())}


def _reloaded(memory: Any, base: Path, result: Path, wanted: proofs.Wanted) -> dict[str, Any]:
    """Evidence that the saved adapter says, on a fresh base, what the trained model says."""
    import adapters

    dtype = memory.get_input_embeddings().weight.dtype
    memory = parity.in_float32(memory)
    ids = parity.probe_ids(parity.vocabulary(memory))
    expected = parity.logits(memory, ids)
    fresh = wanted.loader.load(base, dtype)
    effect = parity.difference(expected, parity.logits(fresh, ids))
    adapters.init(fresh)
    fresh.load_adapter(str(result), set_active=True, use_safetensors=True)
    actual = parity.difference(expected, parity.logits(parity.in_float32(fresh), ids))
    seen = {"largest_difference": actual, "adapter_effect": effect, "dtype": proofs.name_of(dtype)}
    if effect == 0.0:
        raise Disproved("the trained adapter changes no logit", **seen)
    if not actual <= parity.reload_tolerance(rounded=False, in_steps=False) * effect + 5e-6 * float(
        expected.abs().max()
    ):
        raise Disproved("the reloaded adapter does not say what the trained model said", **seen)
    return seen
