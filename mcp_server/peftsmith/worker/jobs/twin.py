"""The twin: the project's own scripts, unchanged, on a small model of the same architecture, with real rows.

Knows: the order of the proofs (build, train, resume, reload, evaluate, merge, generate), what each must have left on
disk and in memory, and how to say what was seen.
Does not know: which project, model and environment to take (project/twin.py), or how severe a failed proof is.
"""

from __future__ import annotations

import gc
import json
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftsmith.worker import eight_bits, parity, proofs, scripts, skeleton
from peftsmith.worker.book import Book, Disproved
from peftsmith.worker.child import Report

STEPS = 2
# (book, place, what the plan says of its scripts, seed) -> what the processor does otherwise
Stages = Callable[[Book, "Place", proofs.Wanted, int], list[str]]


@dataclass(frozen=True)
class Place:
    """The project, the twin's own model folder, and a folder for what the scripts write."""

    project: Path
    base: Path
    work: Path


def run(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    """All proofs of one project.

    arguments: project and work (folders; work is the caller's to remove), config (config.json as a dict), tokenizer
    (folder with the real tokenizer files), plan (as plain data), scripts (model_class, task_type, result, labels,
    key_mapping, plain_lora, merges, resumes, head, layers), seed. Returns checks, phases in seconds, model (what the
    twin is) and swapped (what the processor does otherwise than the plan says).
    """
    return prove(arguments, report, _stages)


def prove(arguments: dict[str, Any], report: Report, stages: Stages) -> dict[str, Any]:
    """Build the twin, go through `stages`, and see to it that the project is as it was; see `run`."""
    project, work = Path(arguments["project"]), Path(arguments["work"])
    stated = dict(arguments["scripts"])
    head, layers = int(stated.pop("head")), stated.pop("layers")
    loader = parity.Loader(stated.pop("model_class"), tuple(stated.pop("labels")), stated.pop("key_mapping"))
    wanted, book = proofs.Wanted(plan=arguments["plan"], loader=loader, **stated), Book(report)
    _keep_inside(work)
    if eight_bits.concerns(wanted.plan):
        eight_bits.keep_scales()
    before = scripts.listing(project)
    base, model = work / "base", None
    with book.phase("build"), book.check("build") as seen:
        model = skeleton.build(
            arguments["config"],
            Path(arguments["tokenizer"]),
            base,
            seed=arguments["seed"],
            model_class=loader.model_class,
            head=head,
            layers=layers,
        )
        seen |= model
    swapped: list[str] = list(model["changed"]) if model else []
    if model is None:
        book.skip("the twin could not be built", "train", "reload", "resume", "evaluate", "merge", "generate")
    else:
        swapped += stages(book, Place(project, base, work), wanted, int(arguments["seed"]))
    with book.check("untouched") as seen:
        after = scripts.listing(project)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        seen["files"] = len(after)
        if changed:
            raise Disproved("the scripts wrote outside of their --output folder", changed=changed[:20])
    return {"checks": book.checks, "phases": book.phases, "model": model, "swapped": swapped}


def _stages(book: Book, place: Place, wanted: proofs.Wanted, seed: int) -> list[str]:
    """Train, reload and use one adapter, or one model whose weights are all trained."""
    trained = place.work / "train"
    with book.phase("train"):
        trainer, losses = train_twice(book, place.project, place.base, trained, wanted)
        if trainer is None:
            book.skip("training failed", "reload", "resume", "evaluate", "merge", "generate")
            return []
        result, checkpoints = trained / wanted.result, trained / "checkpoints"
        check_saved(book, trainer.model, losses, place.base, result, checkpoints, wanted)
    swapped = swapped_for(trainer, wanted.plan)
    with book.phase("reload"), book.check("reload") as seen:
        # without the wrapper that would compute in 16 bits whatever the weights are
        memory = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        seen |= reloaded(memory, place.base, trained / wanted.result, wanted)
    del trainer, memory
    gc.collect()
    if book.passed("adapter"):
        use(book, place.project, place.base, place.work, wanted, seed)
    else:
        book.skip("there is no adapter", "resume", "evaluate", "merge", "generate")
    return swapped


def _keep_inside(work: Path) -> None:
    """Temporary files and the caches of datasets go to `work`, which the caller removes."""
    import datasets
    import torch

    temporary = work / "tmp"
    temporary.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    datasets.config.HF_DATASETS_CACHE = temporary / "datasets"
    os.chdir(work)
    torch.set_num_threads(1)


def train_twice(
    book: Book, project: Path, base: Path, output: Path, wanted: proofs.Wanted
) -> tuple[Any, scripts.Steps]:
    """Two optimiser steps of train.py: its trainer, or None when it failed, and the losses."""
    plan = wanted.plan
    trainer = None
    expected = plan["training"]["gradient_accumulation"] * STEPS
    with book.check("train") as seen, scripts.counted_steps() as losses:
        argv = ["--base", str(base), "--output", str(output), "--max-steps", str(STEPS)]
        returned = scripts.run_main(project, "train", argv)
        seen |= {"passes": len(losses), "losses": [round(loss, 4) for loss in losses[:8]]}
        if getattr(returned, "model", None) is None or getattr(returned, "state", None) is None:
            raise Disproved("train.py's main() did not return its trainer", returned=type(returned).__name__)
        trainer = returned
        seen["steps"] = trainer.state.global_step
        if trainer.state.global_step != STEPS or len(losses) < STEPS:
            raise Disproved(f"--max-steps {STEPS} made {trainer.state.global_step} steps, {len(losses)} passes")
        seen["rows"] = expected * plan["training"]["batch_size"]
    if trainer is None:
        return None, losses
    with book.check("loss") as seen:
        seen |= finite(losses)
    with book.check("metrics") as seen:
        seen |= logged(output)
    return trainer, losses


def finite(losses: list[float]) -> dict[str, Any]:
    """Evidence that every loss is a positive number."""
    shown = [round(loss, 4) if math.isfinite(loss) else str(loss) for loss in losses[:8]]
    if not all(math.isfinite(loss) and loss > 0 for loss in losses):
        message = "the loss is not a positive number: no token is learnt from, or numbers overflow"
        raise Disproved(message, losses=shown)
    return {"losses": shown}


def logged(output: Path) -> dict[str, Any]:
    """Evidence that the run has said of itself what it did."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    done = json.loads((output / "done.json").read_text(encoding="utf-8"))
    seen = {"lines": len(lines), "values": sorted({key for line in lines for key in line}), "done": done.get("ok")}
    if not lines or done.get("ok") is not True:
        raise Disproved("metrics.jsonl is empty or done.json does not say ok", **seen)
    return seen


def check_saved(
    book: Book,
    model: Any,
    losses: scripts.Steps,
    base: Path,
    result: Path,
    checkpoints: Path,
    wanted: proofs.Wanted,
    of: str = "",
) -> None:
    """What training has left in `result` and `checkpoints`, against the trained model; `of` ends the checks' names."""
    with book.check(f"adapter{of}") as seen:
        seen |= proofs.saved_tensors(result, model, wanted)
    with book.check(f"adapter_nonzero{of}") as seen:
        seen |= proofs.moved(model, losses.before)
    with book.check(f"checkpoint{of}") as seen:
        saved = sorted(checkpoints.glob("checkpoint-*"))
        seen["checkpoints"] = [each.name for each in saved]
        if not saved:
            raise Disproved("no checkpoint was saved at the end of the run")
        for checkpoint in saved:
            seen |= proofs.saved_tensors(checkpoint, model, wanted)
    with book.check(f"trainable{of}") as seen:
        seen |= proofs.trainable(model, base, result, wanted)


def swapped_for(trainer: Any, plan: dict[str, Any]) -> list[str]:
    """What the plan says and this run on the processor did otherwise, so that it stays unproven."""
    import torch

    swapped = []
    wanted = plan["training"]["precision"]
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(wanted)
    used = {parameter.dtype for parameter in trainer.model.parameters()}
    autocast = {"bf16": trainer.args.bf16, "fp16": trainer.args.fp16}.get(wanted, True)
    if half is not None and not autocast and half not in used:
        swapped.append(f"precision {wanted} (the processor computed in {proofs.name_of(trainer.model.dtype)})")
    optimizer = plan["training"]["optimizer"]
    actual = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    if actual != optimizer:
        swapped.append(f"optimizer {optimizer} (the processor used {actual})")
    elif optimizer.startswith("paged"):
        swapped.append(f"the paging of {optimizer} (there is no GPU memory to page from)")
    checkpointing = getattr(trainer.args, "activation_checkpointing", None)
    if plan["training"]["gradient_checkpointing"] and checkpointing is False:
        swapped.append("gradient checkpointing (switched off on the processor)")
    attention, actual = plan["training"]["attention"], trainer.model.config._attn_implementation
    if attention not in ("auto", actual):
        swapped.append(f"attention {attention} (the processor used {actual})")
    if eight_bits.concerns(plan):
        swapped.append(eight_bits.SWAPPED)
    if plan["training"]["compile"] and not trainer.args.torch_compile:
        swapped.append("compiling (switched off on the processor)")
    return swapped


def reloaded(memory: Any, base: Path, result: Path, wanted: proofs.Wanted) -> dict[str, Any]:
    """Evidence that what was saved says, on a fresh base, what the trained model in memory says."""
    body = memory if wanted.full else memory.get_base_model()
    quantization = getattr(body.config, "quantization_config", None)
    dtype = body.get_input_embeddings().weight.dtype
    rounded = not wanted.full and _is_rounded(memory)
    memory = parity.in_float32(memory)
    ids = parity.probe_ids(parity.vocabulary(body), wanted.tokens)
    expected = parity.logits(memory, ids)
    if wanted.full:
        effect = parity.difference(expected, parity.logits(wanted.loader.load(base, dtype), ids))
        fresh = wanted.loader.load(result, dtype)
    else:
        effect = parity.difference(expected, parity.logits_without(memory, ids))
        fresh = parity.load_adapter(wanted.loader.load(base, dtype, quantization, as_it_is=True), result)
    actual = parity.difference(expected, parity.logits(fresh, ids))
    seen = {"largest_difference": actual, "adapter_effect": effect, "dtype": proofs.name_of(dtype)}
    if effect == 0.0:
        raise Disproved("the trained adapter changes no logit", **seen)
    # A weight from which the adapter was taken is rounded to 16 bits once more, and the saved adapter cannot know how.
    rounded = rounded or (wanted.converts and dtype.itemsize < 4)
    steps = bool(getattr(quantization, "load_in_8bit", False)) or parity.chooses_experts(body)
    tolerance = parity.reload_tolerance(rounded=rounded, in_steps=steps)
    if not actual <= tolerance * effect + 5e-6 * float(expected.abs().max()):
        raise Disproved("the reloaded adapter does not say what the trained model said", **seen)
    return seen


def _is_rounded(model: Any) -> bool:
    """Is a prompt trained in 16 bits?"""
    trained = {each.dtype for each in model.parameters() if each.requires_grad}
    return model.active_peft_config.is_prompt_learning and any(each.itemsize < 4 for each in trained)


def use(book: Book, project: Path, base: Path, work: Path, wanted: proofs.Wanted, seed: int) -> None:
    """What people do with an adapter: evaluate it, merge it, ask it, and train it further."""
    adapter = work / "train" / wanted.result
    common = [*([] if wanted.full else ["--base", str(base)]), f"--{wanted.result}", str(adapter)]
    if (project / "evaluate.py").is_file():
        with book.phase("evaluate"), book.check("evaluate") as seen:
            given = ["--base", str(base), f"--{wanted.result}", str(adapter)]
            seen |= evaluated(project, given, work / "evaluate")
    else:
        book.skip("the project has no evaluate.py, since its plan names no eval or test rows", "evaluate")
    if wanted.merges:
        with book.phase("merge"), book.check("merge") as seen:
            loud = work / "loud"
            parity.amplify(adapter, loud, seed=seed)
            output = work / "merge"
            scripts.run_main(project, "merge", ["--base", str(base), "--adapter", str(loud), "--output", str(output)])
            seen |= proofs.merged_as_adapter(base, loud, output / "merged", wanted)
    else:
        book.skip("there is nothing to merge" if wanted.full else "the method does not merge", "merge")
    with book.phase("generate"), book.check("generate") as seen:
        seen |= _generate(project, common, wanted)
    if not wanted.resumes:
        book.skip("the method does not go on from a checkpoint", "resume")
        return
    first = _initial(work / "train")
    with book.phase("resume"), book.check("resume") as seen, scripts.counted_steps() as losses:
        argv = ["--base", str(base), "--output", str(work / "train"), "--max-steps", str(STEPS + 1)]
        trainer = scripts.run_main(project, "train", argv)
        accumulation = wanted.plan["training"]["gradient_accumulation"]
        seen |= {"steps": trainer.state.global_step, "new_passes": len(losses)}
        if trainer.state.global_step != STEPS + 1 or len(losses) > accumulation:
            raise Disproved("a second call with one step more began again instead of going on from the checkpoint")
        if _initial(work / "train") != first:
            raise Disproved("a second call took another part of the base for the adapter than the first")


def _initial(output: Path) -> bytes | None:
    """The adapter as it was before training, where a script keeps it."""
    place = output / "initial" / "adapter_model.safetensors"
    return place.read_bytes() if place.is_file() else None


def evaluated(project: Path, given: list[str], output: Path) -> dict[str, Any]:
    scripts.run_main(project, "evaluate", [*given, "--output", str(output), "--max-steps", "2"])
    result = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    text = (output / "predictions.jsonl").read_text(encoding="utf-8")
    lines = [line for line in text.split("\n") if line]  # splitlines would also split inside of a user's text
    if not isinstance(result, dict) or not lines:
        raise Disproved("evaluate.py wrote no result or no prediction")
    return {"predictions": len(lines), "results": sorted(result)[:20]}


def _generate(project: Path, common: list[str], wanted: proofs.Wanted) -> dict[str, Any]:
    """infer.py's answer: text, a part of the context, or for a classifier a label of the plan's, or one a word."""
    if wanted.loader.points:
        context = "The parcel never came, and the money was taken twice."
        answer = scripts.run_main(project, "infer", [*common, "--question", "What was taken?", "--context", context])
        if not isinstance(answer, str) or answer not in context:
            raise Disproved("infer.py's main() did not return a part of the context", returned=str(answer)[:100])
        return {"characters": len(answer)}
    if not wanted.loader.labels:
        task = ["--task", wanted.tasks[-1]] if wanted.tasks else []
        argv = [*common, *task, "--prompt", "Hello, who are you?", "--max-new-tokens", "4"]
        answer = scripts.run_main(project, "infer", argv)
        if not isinstance(answer, str):
            raise Disproved("infer.py's main() did not return the answer", returned=type(answer).__name__)
        return {"characters": len(answer)}
    answer = scripts.run_main(project, "infer", [*common, "--text", "Hello, who are you?"])
    named = {answer} if isinstance(answer, str) else {tag for _, tag in answer or ()}
    if not named or not named <= set(wanted.loader.labels):
        raise Disproved("infer.py's main() did not return labels of the plan", returned=str(answer)[:100])
    return {"labels": sorted(named)}
