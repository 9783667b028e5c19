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
from pathlib import Path
from typing import Any

from peftsmith.worker import parity, scripts, skeleton
from peftsmith.worker.book import Book, Disproved
from peftsmith.worker.child import Report

STEPS = 2


def run(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    """All proofs of one project.

    arguments: project and work (folders; work is the caller's to remove), config (config.json as a dict), tokenizer
    (folder with the real tokenizer files), plan (as plain data), seed. Returns checks, phases in seconds, model (what
    the twin is) and swapped (what the processor does otherwise than the plan says).
    """
    project, work = Path(arguments["project"]), Path(arguments["work"])
    plan, book = arguments["plan"], Book(report)
    _keep_inside(work)
    before = scripts.listing(project)
    base, model = work / "base", None
    with book.phase("build"), book.check("build") as seen:
        model = skeleton.build(arguments["config"], Path(arguments["tokenizer"]), base, seed=arguments["seed"])
        seen |= model
    swapped: list[str] = list(model["changed"]) if model else []
    if model is None:
        book.skip("the twin could not be built", "train", "reload", "resume", "evaluate", "merge", "generate")
    else:
        trained = work / "train"
        with book.phase("train"):
            trainer = _train(book, project, base, trained, plan)
        if trainer is None:
            book.skip("training failed", "reload", "resume", "evaluate", "merge", "generate")
        else:
            swapped += _swapped(trainer, plan)
            with book.phase("reload"):
                _reload(book, trainer, base, trained / "adapter")
            del trainer
            gc.collect()
            if book.passed("adapter"):
                _use(book, project, base, work, plan, arguments["seed"])
            else:
                book.skip("there is no adapter", "resume", "evaluate", "merge", "generate")
    with book.check("untouched") as seen:
        after = scripts.listing(project)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        seen["files"] = len(after)
        if changed:
            raise Disproved("the scripts wrote outside of their --output folder", changed=changed[:20])
    return {"checks": book.checks, "phases": book.phases, "model": model, "swapped": swapped}


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


def _train(book: Book, project: Path, base: Path, output: Path, plan: dict[str, Any]) -> Any:
    """Two optimiser steps of train.py; returns its trainer, or None when it failed."""
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
        return None
    with book.check("loss") as seen:
        seen["losses"] = [round(loss, 4) if math.isfinite(loss) else str(loss) for loss in losses[:8]]
        if not all(math.isfinite(loss) and loss > 0 for loss in losses):
            raise Disproved("the loss is not a positive number: no token is learnt from, or numbers overflow")
    with book.check("metrics") as seen:
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        done = json.loads((output / "done.json").read_text(encoding="utf-8"))
        seen |= {"lines": len(lines), "values": sorted({key for line in lines for key in line}), "done": done.get("ok")}
        if not lines or done.get("ok") is not True:
            raise Disproved("metrics.jsonl is empty or done.json does not say ok")
    with book.check("adapter") as seen:
        seen |= _adapter_tensors(output / "adapter")
    with book.check("adapter_nonzero") as seen:
        largest = _largest_lora_b(output / "adapter")
        moved = sum(value > 0 for value in largest.values())
        seen |= {"lora_B": len(largest), "moved": moved, "largest": max(largest.values(), default=0.0)}
        if not moved or not all(math.isfinite(value) for value in largest.values()):
            raise Disproved("every lora_B is still zero, or one is no number: nothing was trained")
    with book.check("checkpoint") as seen:
        checkpoints = sorted((output / "checkpoints").glob("checkpoint-*"))
        seen["checkpoints"] = [each.name for each in checkpoints]
        if not checkpoints:
            raise Disproved("no checkpoint was saved at the end of the run")
        for checkpoint in checkpoints:
            seen |= _adapter_tensors(checkpoint)
    with book.check("trainable") as seen:
        actual = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        unquantised = parity.load_base(base, "auto")
        implied, unmatched = parity.implied_trainable(
            unquantised, plan["method"]["target_modules"], plan["method"]["rank"]
        )
        seen |= {"trainable": actual, "implied_by_plan": implied, "unmatched": unmatched}
        if actual != implied or unmatched:
            raise Disproved("the trainable parameters are not those that the plan means")
    return trainer


def _adapter_tensors(folder: Path) -> dict[str, Any]:
    """Evidence that a folder's weights are LoRA tensors in safetensors, and nothing else."""
    from safetensors import safe_open

    weights = sorted(folder.glob("*.safetensors"))
    pickled = sorted(each.name for each in folder.glob("*.bin") if "model" in each.name)
    if [each.name for each in weights] != ["adapter_model.safetensors"] or pickled:
        found = [each.name for each in weights] + pickled
        raise Disproved(f"{folder.name} should hold adapter_model.safetensors as its only weights", found=found)
    with safe_open(weights[0], framework="pt") as tensors:
        names = list(tensors.keys())
    foreign = [name for name in names if ".lora_" not in name]
    if not names or foreign:
        raise Disproved(f"{folder.name} holds tensors that are not the adapter's", foreign=foreign[:5])
    return {"tensors": len(names), "bytes": weights[0].stat().st_size}


def _largest_lora_b(folder: Path) -> dict[str, float]:
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    return {name: float(tensor.abs().max()) for name, tensor in tensors.items() if "lora_B" in name}


def _swapped(trainer: Any, plan: dict[str, Any]) -> list[str]:
    """What the plan says and this run on the processor did otherwise, so that it stays unproven."""
    import torch

    swapped = []
    wanted = plan["training"]["precision"]
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(wanted)
    used = {parameter.dtype for parameter in trainer.model.parameters()}
    autocast = {"bf16": trainer.args.bf16, "fp16": trainer.args.fp16}.get(wanted, True)
    if half is not None and not autocast and half not in used:
        swapped.append(f"precision {wanted} (the processor computed in {_name(trainer.model.dtype)})")
    optimizer = plan["training"]["optimizer"]
    actual = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    if actual != optimizer:
        swapped.append(f"optimizer {optimizer} (the processor used {actual})")
    elif optimizer.startswith("paged"):
        swapped.append(f"the paging of {optimizer} (there is no GPU memory to page from)")
    checkpointing = getattr(trainer.args, "activation_checkpointing", None)
    if plan["training"]["gradient_checkpointing"] and checkpointing is False:
        swapped.append("gradient checkpointing (switched off on the processor)")
    return swapped


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _reload(book: Book, trainer: Any, base: Path, adapter: Path) -> None:
    """The adapter on a fresh base must say what the trained model in memory says."""
    with book.check("reload") as seen:
        # without the wrapper that would compute in 16 bits whatever the weights are
        memory = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        body = memory.get_base_model()
        quantization = getattr(body.config, "quantization_config", None)
        dtype = body.get_input_embeddings().weight.dtype
        memory = parity.in_float32(memory)
        ids = parity.probe_ids(body.config.get_text_config().vocab_size)
        expected = parity.logits(memory, ids)
        with memory.disable_adapter():
            effect = parity.difference(expected, parity.logits(memory, ids))
        fresh = parity.load_adapter(parity.load_base(base, dtype, quantization), adapter)
        actual = parity.difference(expected, parity.logits(fresh, ids))
        seen |= {"largest_difference": actual, "adapter_effect": effect, "dtype": _name(dtype)}
        if effect == 0.0:
            raise Disproved("the trained adapter changes no logit")
        if not actual <= parity.RELOAD_TOLERANCE * effect + 1e-6 * float(expected.abs().max()):
            raise Disproved("the reloaded adapter does not say what the trained model said")


def _use(book: Book, project: Path, base: Path, work: Path, plan: dict[str, Any], seed: int) -> None:
    """What people do with an adapter: evaluate it, merge it, ask it, and train it further."""
    adapter = work / "train" / "adapter"
    common = ["--base", str(base), "--adapter", str(adapter)]
    if (project / "evaluate.py").is_file():
        with book.phase("evaluate"), book.check("evaluate") as seen:
            seen |= _evaluate(project, common, work / "evaluate")
    else:
        book.skip("the project has no evaluate.py, since its plan names no eval or test rows", "evaluate")
    with book.phase("merge"), book.check("merge") as seen:
        loud = work / "loud"
        parity.amplify(adapter, loud, seed=seed)
        output = work / "merge"
        scripts.run_main(project, "merge", ["--base", str(base), "--adapter", str(loud), "--output", str(output)])
        seen |= _merged_as_adapter(base, loud, output / "merged")
    with book.phase("generate"), book.check("generate") as seen:
        seen |= _generate(project, common)
    with book.phase("resume"), book.check("resume") as seen, scripts.counted_steps() as losses:
        argv = ["--base", str(base), "--output", str(work / "train"), "--max-steps", str(STEPS + 1)]
        trainer = scripts.run_main(project, "train", argv)
        accumulation = plan["training"]["gradient_accumulation"]
        seen |= {"steps": trainer.state.global_step, "new_passes": len(losses)}
        if trainer.state.global_step != STEPS + 1 or len(losses) > accumulation:
            raise Disproved("a second call with one step more began again instead of going on from the checkpoint")


def _evaluate(project: Path, common: list[str], output: Path) -> dict[str, Any]:
    scripts.run_main(project, "evaluate", [*common, "--output", str(output), "--max-steps", "2"])
    result = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    text = (output / "predictions.jsonl").read_text(encoding="utf-8")
    lines = [line for line in text.split("\n") if line]  # splitlines would also split inside of a user's text
    if not isinstance(result, dict) or not lines:
        raise Disproved("evaluate.py wrote no result or no prediction")
    return {"predictions": len(lines), "results": sorted(result)[:20]}


def _merged_as_adapter(base: Path, adapter: Path, merged: Path) -> dict[str, Any]:
    """Evidence that the merged model says what base and adapter say together, for an adapter that changes much."""
    import torch
    import transformers

    if not list(merged.glob("*.safetensors")):
        raise Disproved("merge.py left no safetensors file", found=sorted(each.name for each in merged.glob("*")))
    result = transformers.AutoModelForCausalLM.from_pretrained(merged)
    dtype = result.dtype
    plain = parity.load_base(base, dtype)
    ids = parity.probe_ids(plain.config.get_text_config().vocab_size)
    without = parity.logits(plain, ids)
    with_adapter = parity.logits(parity.load_adapter(plain, adapter), ids)
    effect = parity.difference(with_adapter, without)
    actual = parity.difference(parity.logits(result.to(torch.float32), ids), with_adapter)
    seen = {"largest_difference": actual, "adapter_effect": effect, "dtype": _name(dtype)}
    if not (merged / "tokenizer.json").exists():
        raise Disproved("merge.py left no tokenizer beside the merged model", **seen)
    if not actual <= parity.MERGE_TOLERANCE.get(_name(dtype), 1e-1) * effect:
        raise Disproved("the merged model does not say what base and adapter say together", **seen)
    return seen


def _generate(project: Path, common: list[str]) -> dict[str, Any]:
    argv = [*common, "--prompt", "Hello, who are you?", "--max-new-tokens", "4"]
    answer = scripts.run_main(project, "infer", argv)
    if not isinstance(answer, str):
        raise Disproved("infer.py's main() did not return the answer", returned=type(answer).__name__)
    return {"characters": len(answer)}
