"""Our target modules against what PEFT really wraps, for every model type of the installed transformers that builds.

Run as: PYTHONPATH=mcp_server .venv-train/bin/python benchmarks/targets.py [--catalogue] [--types a,b]
    [--results FILE]

For each model type of the five task classes the real class is built on the meta device from a shrunken config; our
presets are worked out from its table of modules alone, and LoRA is put on with exactly the values that they give. Names
of the adapted modules, trainable parameters and share must be the same, for every preset. Also counted: types whose
modules config.json alone implies exactly (names, kinds, shapes, ties), by the catalogue that the server uses without a
training environment. With --results, types that are in FILE are not run again. Prints a line per class, the types that
are not compared with the reason, and last the figure. Runs in the training environment.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import warnings
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "mcp_server"), str(ROOT)]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks import implied
from peftsmith.model import anatomy, modules, targets, traits
from peftsmith.worker import catalogue, shrink, table

COMPARED_SHARE, FROM_CONFIG = 85.0, 60
RANK = 8
NOT_WRAPPED = "PEFT cannot wrap this class"
PEFT_TASKS = {"causal-lm": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "sequence-classification": "SEQ_CLS"}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--types", help="only these, comma-separated")
    parser.add_argument("--catalogue", action="store_true", help="check the catalogue's entries instead")
    parser.add_argument("--results", type=Path, help="keep results here, and go on from them")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    wanted = set(arguments.types.split(",")) if arguments.types else None
    done: dict[str, Any] = json.loads(arguments.results.read_text()) if _exists(arguments.results) else {}
    for task, model_type in catalogue.every_type(list(table.TASKS)):
        key = f"{task} {model_type}"
        if (wanted is None or model_type in wanted) and key not in done:
            done[key] = implied.check(model_type, task) if arguments.catalogue else compare(model_type, task)
            gc.collect()
            if arguments.results:
                arguments.results.write_text(json.dumps(done), encoding="utf-8")
    return report_catalogue(done) if arguments.catalogue else report(done)


def compare(model_type: str, task: str) -> dict[str, Any]:
    """{"built", "wrong": [...], "from_config": bool, "why"} for one model type as a class of this task."""
    try:
        config = shrink.shrunken(model_type)
        model = table.build(config, task)
    except Exception as error:  # whatever transformers raises for a type whose defaults do not build
        return {"built": False, "why": f"{type(error).__name__}: {str(error)[:120]}"}
    exact = modules.from_json(table.table(model))
    document = config.to_dict()
    body = anatomy_of(exact, document)
    wrong = []
    choices = targets.find(body, rank=RANK)
    for choice in choices:
        expected = targets.adapted(body, choice.config)
        model = table.build(config, task) if model is None else model
        fault = fault_of(model, choice, expected, task)
        model = None  # PEFT has changed it
        if fault and fault.startswith(NOT_WRAPPED):
            return {"built": False, "why": fault}
        if fault:
            wrong.append(f"{choice.preset}: {fault}")
    return {
        "built": True,
        "wrong": wrong,
        "presets": len(choices),
        "from_config": implied.fault_of(document, exact) is None,
        "why": "" if choices else "no linear module to adapt",
    }


def anatomy_of(skeleton: modules.Skeleton, config: dict[str, Any]) -> anatomy.Anatomy:
    """An anatomy of a skeleton alone."""
    return replace(
        anatomy.EMPTY,
        model_type=skeleton.model_type,
        architecture=skeleton.architecture,
        skeleton=skeleton,
        config=config,
        parameters=skeleton.parameters,
        tied_embeddings=bool(skeleton.tied),
        **traits.sizes(config, skeleton),
    )


def fault_of(model: Any, choice: targets.Choice, expected: set[str], task: str) -> str | None:
    """What PEFT does otherwise than the choice says; None when it does the same."""
    import peft
    from peft.tuners.lora import LoraLayer

    config = peft.LoraConfig(r=RANK, lora_dropout=0.0, task_type=PEFT_TASKS.get(task), **choice.config)
    try:
        wrapped = peft.get_peft_model(model, config)
    except NotImplementedError as error:  # the class lacks what PEFT asks of any model
        return f"{NOT_WRAPPED}: {str(error)[:120]}"
    except Exception as error:  # a value that PEFT refuses is a fault of ours
        return f"PEFT refuses {choice.config}: {type(error).__name__}: {str(error)[:120]}"
    names = {
        re.sub(r"(\.base_layer)+$", "", name.removeprefix("base_model.model."))  # nested where a module has two
        for name, module in wrapped.named_modules()
        if isinstance(module, LoraLayer)
    }
    trainable, every = wrapped.get_nb_trainable_parameters()
    if names != expected or len(names) != choice.modules:
        return f"{len(names)} modules adapted, not {choice.modules}: {sorted(names ^ expected)[:3]}"
    if trainable != choice.trainable:
        return f"{trainable} parameters train, not {choice.trainable}"
    if abs(trainable / every - choice.share) > 1e-9:
        return f"share {trainable / every:.6f}, not {choice.share:.6f}"
    return None


def report(done: dict[str, Any]) -> int:
    by_task: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for key, result in done.items():
        task, _, model_type = key.partition(" ")
        by_task[task].append((model_type, result))
    ok = True
    implied = set()
    for task, results in by_task.items():
        compared = [each for each in results if each[1]["built"] and each[1]["presets"]]
        equal = [each for each in compared if not each[1]["wrong"]]
        implied |= {name for name, result in results if result.get("from_config")}
        share = 100 * len(compared) / len(results)
        ok = ok and share >= COMPARED_SHARE and len(equal) == len(compared)
        print(f"{task}: {len(results)} types, {len(compared)} compared ({share:.0f} %), {len(equal)} equal")
        for name, result in results:
            if not result["built"] or result["why"]:
                print(f"  not compared: {name}: {result['why']}")
            for fault in result.get("wrong", ()):
                print(f"  DIFFERS: {name}: {fault}")
    ok = ok and len(implied) >= FROM_CONFIG
    wrong = sum(bool(result.get("wrong")) for result in done.values())
    total = sum(result["built"] for result in done.values())
    print(f"{len(implied)} model types are implied exactly by config.json alone (at least {FROM_CONFIG})")
    print(f"{'OK' if ok else 'NOT REACHED'}: {total} of {len(done)} classes built, {wrong} differ from PEFT")
    return 0 if ok else 1


def report_catalogue(done: dict[str, Any]) -> int:
    """What is complete is exact; exit code 1 for an entry that says it is and is not."""
    wrong = 0
    for key, result in done.items():
        for fault in result["wrong"]:
            print(f"  WRONG: {key}: {fault[:400]}")
        wrong += bool(result["wrong"])
        if result.get("why"):
            print(f"  not built: {key}: {result['why']}")
    complete = [key for key, result in done.items() if result["complete"]]
    exact = {key.partition(" ")[2] for key in complete if done[key]["full"] and not done[key]["wrong"]}
    short = {key.partition(" ")[2] for key in complete if done[key]["short"] and not done[key]["wrong"]}
    varied, refused = (sum(result[name] for result in done.values()) for name in ("varied", "refused"))
    print(f"{len(complete)} of {len(done)} classes are complete")
    print(f"of their configs with fields changed at random {varied} are described exactly, {refused} refused")
    print(f"{len(short)} model types are exact from the config.json that save_pretrained writes")
    ok = not wrong and len(exact) >= FROM_CONFIG
    print(f"{'OK' if ok else 'NOT REACHED'}: {len(exact)} model types are exact by config.json alone "
          f"(at least {FROM_CONFIG}), {wrong} entries are wrong")  # fmt: skip
    return 0 if ok else 1


def _exists(path: Path | None) -> bool:
    return path is not None and path.exists()


if __name__ == "__main__":
    sys.exit(main())
