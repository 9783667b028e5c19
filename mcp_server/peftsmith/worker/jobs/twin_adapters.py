"""The twin of a project with several adapters on one base: trained one after the other, then used by turns.

Knows: what must hold of each adapter alone (as of a single one), of the base between them, and of all together.
Does not know: how a twin is built or a single adapter is proven (twin.py).
"""

from __future__ import annotations

import gc
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from peftsmith.worker import parity, proofs, scripts
from peftsmith.worker.book import Book, Disproved
from peftsmith.worker.child import Report
from peftsmith.worker.jobs import twin
from peftsmith.worker.jobs.twin import STEPS, Place

WEIGHTS = (0.75, -0.5)  # of the first two adapters when they are combined: not alike, and one of them subtracts
_OF_LOADER = ("head", "layers", "model_class", "labels", "key_mapping")  # of the twin itself, the same for all adapters


def run(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    """All proofs of one project; `arguments` as for twin.run, and adapters: name -> {plan, scripts} of each alone, and
    combines: whether merge.py can make one adapter of several."""
    apart, combines = arguments["adapters"], bool(arguments["combines"])

    def stages(book: Book, place: Place, wanted: proofs.Wanted, seed: int) -> list[str]:
        each = {name: _wanted(one, wanted.loader) for name, one in apart.items()}
        return _stages(book, place, each, seed, combines=combines)

    return twin.prove(arguments, report, stages)


def _wanted(one: dict[str, Any], loader: parity.Loader) -> proofs.Wanted:
    stated = {name: value for name, value in one["scripts"].items() if name not in _OF_LOADER}
    return proofs.Wanted(plan=one["plan"], loader=loader, **stated)


def _stages(book: Book, place: Place, wanted: dict[str, proofs.Wanted], seed: int, *, combines: bool) -> list[str]:
    output = place.work / "train"
    with book.phase("train"):
        made = _train(book, place, output, wanted)
    if made is None:
        book.skip("training failed", "reload", "switch", "resume", "evaluate", "merge", "combine", "generate")
        return []
    swapped = twin.swapped_for(made[next(iter(wanted))], next(iter(wanted.values())).plan)
    with book.phase("reload"):
        for name, one in wanted.items():
            of, folder = f":{name}", output / "adapters" / name
            trained = made[name]
            with book.check(f"loss{of}") as seen:
                seen |= twin.finite(trained.losses)
            checkpoints = output / "checkpoints" / name
            twin.check_saved(book, trained.model, trained.losses, place.base, folder, checkpoints, one, of)
            dtype = trained.model.get_base_model().get_input_embeddings().weight.dtype
            with book.check(f"reload{of}") as seen:
                seen |= twin.reloaded(trained.model, place.base, folder, one)
            with book.check(f"frozen{of}") as seen:
                seen |= _frozen(trained.model, place.base, dtype, one)
    del made, trained
    gc.collect()
    if not all(book.passed(f"adapter:{name}") for name in wanted):
        book.skip("an adapter is missing", "switch", "resume", "evaluate", "merge", "combine", "generate")
        return swapped
    _use(book, place, wanted, seed, combines=combines)
    return swapped


def _train(
    book: Book, place: Place, output: Path, wanted: dict[str, proofs.Wanted]
) -> dict[str, scripts.Trained] | None:
    """Two optimiser steps of train.py for every adapter; what each had trained, or None when it failed."""
    with book.check("train") as seen, scripts.recorded() as made:
        argv = ["--base", str(place.base), "--output", str(output), "--max-steps", str(STEPS)]
        scripts.run_main(place.project, "train", argv)
        steps = [one.state.global_step for one in made]
        seen |= {"adapters": list(wanted), "steps": steps}
        if steps != [STEPS] * len(wanted):
            raise Disproved(f"{len(wanted)} adapters should have had {STEPS} steps each", **seen)
    if not book.passed("train"):
        return None
    with book.check("metrics") as seen:
        seen |= twin.logged(output)
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        unsaid = [name for name in wanted if not any(line.get("adapter") == name for line in lines)]
        if unsaid:
            raise Disproved("metrics.jsonl says nothing of an adapter", adapters=unsaid)
    return dict(zip(wanted, made, strict=True))


def _frozen(trained: Any, base: Path, dtype: Any, wanted: proofs.Wanted) -> dict[str, Any]:
    """Evidence that an adapter was trained on the base as it is on disk, and not on what another has made of it."""
    import torch

    body = trained.get_base_model()
    quantization = getattr(body.config, "quantization_config", None)
    own = _put_heads_back(trained)
    if not trained.active_peft_config.is_prompt_learning:
        body = trained.unload()
    fresh = wanted.loader.load(base, dtype, quantization).state_dict()
    held = parity.in_float32(body).state_dict()
    differing = [
        name
        for name, tensor in fresh.items()
        if not name.startswith(own) and (name not in held or not torch.equal(held[name], tensor))
    ]
    if differing:
        raise Disproved("the base under this adapter is not the one on disk", differing=differing[:5])
    return {"tensors": len(fresh)}


def _put_heads_back(trained: Any) -> tuple[str, ...]:
    """Take trained copies of whole modules out of a model; the beginnings of their names. The base on disk has no such
    head, so that each load starts another."""
    from peft.utils import ModulesToSaveWrapper

    names = []
    for name, module in list(trained.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, child = name.rpartition(".")
            setattr(trained.get_submodule(parent), child, module.original_module)
            names.append(name.removeprefix("base_model.model.") + ".")
    return tuple(names)


def _use(book: Book, place: Place, wanted: dict[str, proofs.Wanted], seed: int, *, combines: bool) -> None:
    adapters, loud = place.work / "train" / "adapters", place.work / "loud"
    names, one = list(wanted), next(iter(wanted.values()))
    with book.phase("switch"), book.check("switch") as seen:
        for number, name in enumerate(names):
            parity.amplify(adapters / name, loud / name, seed=seed + number)
        seen |= _switched(place, loud, names, one)
    with book.phase("evaluate"):
        for name in names if (place.project / "evaluate.py").is_file() else ():
            with book.check(f"evaluate:{name}") as seen:
                given = ["--base", str(place.base), "--adapter", str(adapters / name)]
                seen |= twin.evaluated(place.project, given, place.work / "evaluate" / name)
    with book.phase("merge"):
        for name, each in wanted.items():
            if not each.merges:
                book.skip("the method does not merge", f"merge:{name}")
                continue
            with book.check(f"merge:{name}") as seen:
                merged = _merge(place, place.work / "merge" / name, [loud / name])
                seen |= proofs.merged_as_adapter(place.base, loud / name, merged, each)
        if _peft_types(wanted) > 1:
            with book.check("combine") as seen:
                seen |= _mixed(place, [loud / name for name in names], one)
        elif combines:
            with book.check("combine") as seen:
                seen |= _combined(place, [loud / name for name in names[:2]], one)
        else:
            book.skip("PEFT makes no exact sum of these adapters", "combine")
    with book.phase("generate"), book.check("generate") as seen:
        seen |= _generated(place, adapters, wanted)
    if not all(each.resumes for each in wanted.values()):
        book.skip("a method does not go on from a checkpoint", "resume")
        return
    with book.phase("resume"), book.check("resume") as seen, scripts.recorded() as made:
        argv = ["--base", str(place.base), "--output", str(place.work / "train"), "--max-steps", str(STEPS + 1)]
        scripts.run_main(place.project, "train", argv)
        accumulation = one.plan["training"]["gradient_accumulation"]
        seen |= {"steps": [each.state.global_step for each in made], "new_passes": [len(each.losses) for each in made]}
        if seen["steps"] != [STEPS + 1] * len(names) or max(seen["new_passes"]) > accumulation:
            raise Disproved("a second call with one step more began again instead of going on from the checkpoints")


def _peft_types(wanted: dict[str, proofs.Wanted]) -> int:
    return len({each.plan["method"]["peft_type"] for each in wanted.values()})


def _mixed(place: Place, adapters: list[Path], wanted: proofs.Wanted) -> dict[str, Any]:
    """Evidence that infer.py has adapters of several types in use at a time, and that merge.py merges what it says."""
    infer = scripts.load(place.project, "infer")
    model = parity.in_float32(infer.load_adapters(str(place.base), adapters[0].parent))
    ids = parity.probe_ids(parity.vocabulary(model.base_model.model))
    with model.disable_adapter():
        base = parity.logits(model, ids)
    with infer.switched(model, adapters[0].name):
        one = parity.logits(model, ids)
    with infer.switched(model, [each.name for each in adapters]):
        every = parity.logits(model, ids)
    effect = min(parity.difference(every, base), parity.difference(every, one))
    merged = _merge(place, place.work / "merge" / "both", adapters)
    result = wanted.loader.whole(merged)
    dtype = proofs.name_of(result.dtype)
    actual = parity.difference(parity.logits(parity.in_float32(result), ids), every)
    seen = {"largest_difference": actual, "effect": effect, "dtype": dtype}
    if not actual <= parity.MERGE_TOLERANCE.get(dtype, 1e-1) * effect:
        raise Disproved("the merged model does not say what all adapters say together", **seen)
    return seen


def _switched(place: Place, adapters: Path, names: list[str], wanted: proofs.Wanted) -> dict[str, Any]:
    """Evidence that infer.py wraps the base once and that each adapter there says what it says alone."""
    import peft

    infer = scripts.load(place.project, "infer")
    missing = [name for name in ("load_adapters", "switched") if not hasattr(infer, name)]
    if missing:
        raise Disproved("infer.py has no function to load the adapters or to switch between them", missing=missing)
    model = infer.load_adapters(str(place.base), adapters)
    wrappers = [each for each in model.modules() if isinstance(each, (peft.PeftModel, peft.PeftMixedModel))]
    body = model.get_base_model() if hasattr(model, "get_base_model") else model.base_model.model
    quantization = getattr(body.config, "quantization_config", None)
    dtype = body.get_input_embeddings().weight.dtype
    ids = parity.probe_ids(parity.vocabulary(body))
    parity.in_float32(model)
    base = parity.logits(wanted.loader.load(place.base, dtype, quantization), ids)
    # A base without a head of its own has nothing to say by itself.
    alone: dict[str | None, Any] = {} if wanted.loader.new_head else {None: base}
    without = list(alone)
    for name in names:
        fresh = wanted.loader.load(place.base, dtype, quantization, as_it_is=True)
        alone[name] = parity.logits(parity.load_adapter(fresh, adapters / name), ids)
    effect = min(parity.difference(alone[name], base) for name in names)
    apart = min(parity.difference(alone[one], alone[other]) for one, other in pairwise(names))
    worst = 0.0
    for chosen in [*names, *without, *reversed(names)]:
        with infer.switched(model, chosen):
            worst = max(worst, parity.difference(parity.logits(model, ids), alone[chosen]))
    seen = {"largest_difference": worst, "adapter_effect": effect, "adapters_apart": apart, "wrappers": len(wrappers)}
    if len(wrappers) != 1:
        raise Disproved("infer.py wraps the base more than once", **seen)
    if not min(effect, apart) > 0:
        raise Disproved("two adapters, or an adapter and the base, say the same: switching cannot be seen", **seen)
    if not worst <= parity.reload_tolerance(rounded=False, in_steps=False) * min(effect, apart) + 1e-6 * float(
        base.abs().max()
    ):
        raise Disproved("an adapter that infer.py switches to does not say what it says alone", **seen)
    return seen


def _merge(place: Place, output: Path, adapters: list[Path], *more: str) -> Path:
    argv = ["--base", str(place.base), "--adapter", *map(str, adapters), "--output", str(output), *more]
    scripts.run_main(place.project, "merge", argv)
    return output / "merged"


def _combined(place: Place, adapters: list[Path], wanted: proofs.Wanted) -> dict[str, Any]:
    """Evidence that an exact combination is the weighted sum of both changes, added up here without PEFT's own sum."""
    weights = [str(each) for each in WEIGHTS]
    output = place.work / "merge" / "both"
    merged = _merge(place, output, adapters, "--weights", *weights, "--combination", "cat")
    plain = wanted.loader.load(place.base, "auto")
    base = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    wholes = [
        parity.load_adapter(wanted.loader.load(place.base, "auto"), each).merge_and_unload().state_dict()
        for each in adapters
    ]
    ids = parity.probe_ids(parity.vocabulary(plain))
    without = parity.logits(plain, ids)
    plain.load_state_dict(
        {
            name: tensor + sum(w * (whole[name] - tensor) for w, whole in zip(WEIGHTS, wholes, strict=True))
            if tensor.is_floating_point()
            else tensor
            for name, tensor in base.items()
        }
    )
    expected = parity.logits(plain, ids)
    result = wanted.loader.whole(merged)
    dtype = proofs.name_of(result.dtype)
    actual = parity.difference(parity.logits(parity.in_float32(result), ids), expected)
    kept = parity.load_adapter(wanted.loader.load(place.base, "auto"), output / "combined")
    as_adapter = parity.difference(parity.logits(kept, ids), expected)
    effect = parity.difference(expected, without)
    seen = {"largest_difference": actual, "as_adapter": as_adapter, "effect": effect, "dtype": dtype}
    if not actual <= parity.MERGE_TOLERANCE.get(dtype, 1e-1) * effect:
        raise Disproved("the merged combination is not the weighted sum of both adapters", **seen)
    if not as_adapter <= parity.MERGE_TOLERANCE.get(dtype, 1e-1) * effect:
        raise Disproved("the combined adapter that was kept is not the weighted sum of both", **seen)
    return seen


def _generated(place: Place, adapters: Path, wanted: dict[str, proofs.Wanted]) -> dict[str, Any]:
    """infer.py's answers: to one question, and to lines of requests for every adapter, the base (where it can answer
    alone), and one that is none."""
    names, loader = list(wanted), next(iter(wanted.values())).loader
    question = _question(loader)
    common = ["--base", str(place.base), "--adapters", str(adapters)]
    common += [] if loader.new_head else ["--max-new-tokens", "4"]
    asked = ["--adapter", names[0], *(word for name, text in question.items() for word in (f"--{name}", text))]
    one = scripts.run_main(place.project, "infer", [*common, *asked])
    requests = [{"adapter": name, **question} for name in [*names, None, "no-such-adapter"]]
    with _standard_input("".join(json.dumps(each) + "\n" for each in requests)):
        answers = scripts.run_main(place.project, "infer", common)
    served = len(names) + (0 if loader.new_head else 1)
    if not isinstance(one, list) or not isinstance(answers, list) or len(answers) != served:
        raise Disproved("infer.py's main() did not return an answer for each request that it could serve")
    if one[:1] != answers[:1]:
        raise Disproved("an adapter answers otherwise in a stream of requests than to a single one")
    for name, answer in zip(names, answers, strict=False):
        _check_answer(answer, wanted[name], question)
    return {"answers": len(answers), "characters": [len(each) for each in answers]}


def _question(loader: parity.Loader) -> dict[str, str]:
    """What infer.py is asked, by the names of its options."""
    text = "Hello, who are you?"
    if loader.points:
        return {"question": text, "context": "The parcel never came, and the money was taken twice."}
    return {"text" if loader.labels else "prompt": text}


def _check_answer(answer: Any, wanted: proofs.Wanted, question: dict[str, str]) -> None:
    """A label, or a tag for each word, of this adapter's own; a part of the context."""
    labels = wanted.plan["data"]["labels"] if wanted.loader.labels else []
    named = {answer} if isinstance(answer, str) else {tag for _, tag in answer}
    if labels and not (named and named <= set(labels)):
        raise Disproved("infer.py's main() did not return labels of the adapter's own", returned=str(answer)[:100])
    if wanted.loader.points and answer not in question["context"]:
        raise Disproved("infer.py's main() did not return a part of the context", returned=str(answer)[:100])


@contextmanager
def _standard_input(text: str) -> Iterator[None]:
    before = sys.stdin
    sys.stdin = io.StringIO(text)
    try:
        yield
    finally:
        sys.stdin = before
