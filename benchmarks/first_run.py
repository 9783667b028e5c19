"""How many plans run the first time: combinations of architecture, task, method and quantisation, generated and proven.

Each valid case gets a project, is vetted, and its scripts run on the twin; each invalid one must be refused with the
right finding before a file is written. The last line counts. A seeded draw, so that two runs try the same cases:

    python benchmarks/first_run.py [--cases FILE] [--count N] [--seed N] [--shard I/N] [--results FILE] [--only TEXT]

With --results a run that was ended goes on where it was. --cases takes a JSON file with cases of one's own.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "mcp_server")]

from peftsmith import __version__, files, lock, plan  # noqa: E402
from peftsmith.errors import PeftsmithError  # noqa: E402
from peftsmith.finding import Finding  # noqa: E402
from peftsmith.knowledge import methods  # noqa: E402
from peftsmith.machine import environment as environments  # noqa: E402
from peftsmith.project import fitness, generate, twin, vet  # noqa: E402
from tests import tiny  # noqa: E402

# Sizes are the types' own defaults (the twin cuts them down) but for the vocabulary; what a real config.json always
# says and a default lacks stands beside the type.
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 8}, "qwen2": {}, "qwen3": {}, "mistral": {}, "gemma2": {}, "gemma3_text": {},
    "phi": {}, "phi3": {}, "gpt2": {}, "gpt_neox": {}, "opt": {}, "bloom": {}, "falcon": {}, "starcoder2": {},
    "olmo2": {}, "granite": {}, "smollm3": {}, "stablelm": {}, "mixtral": {"num_hidden_layers": 4}, "qwen3_moe": {},
    "olmoe": {}, "granitemoe": {}, "qwen3_5_text": {}, "falcon_h1": {"num_hidden_layers": 4}, "mamba": {}, "lfm2": {},
}  # fmt: skip
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {}, "roberta": {}, "modernbert": {}, "deberta": {}, "deberta-v2": {}, "distilbert": {}, "electra": {},
}  # fmt: skip
PAIRS: dict[str, dict[str, Any]] = {"t5": {"decoder_start_token_id": 3}, "bart": {}, "mbart": {}, "umt5": {}}
TIED = {"llama": {"tie_word_embeddings": True}}
GENERATING = ("chat", "completion", "text", "continued_pretraining", "classification")
FORMATS = {task: formats[0] for task, formats in plan.TASK_FORMATS.items()}
LABELS = ["billing", "delivery"]
QUANTIZATIONS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "nf4": {"bits": 4, "type": "nf4", "double": False},
    "nf4-double": {"bits": 4, "type": "nf4", "double": True},
    "fp4": {"bits": 4, "type": "fp4", "double": False},
    "int8": {"bits": 8},
}
# What a method cannot do without, or what its defaults make too large for small models.
OPTIONS: dict[str, dict[str, Any]] = {
    "PROMPT_TUNING": {"num_virtual_tokens": 8}, "PREFIX_TUNING": {"num_virtual_tokens": 8},
    "P_TUNING": {"num_virtual_tokens": 8, "encoder_hidden_size": 32}, "CARTRIDGE": {"num_virtual_tokens": 8},
    "CPT": {"cpt_token_ids": [5, 6, 7, 8], "cpt_mask": [1, 1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3, 4]},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
    "TRAINABLE_TOKENS": {"token_indices": list(range(4, 260))},
    "ADALORA": {"target_r": 2}, "ADAMSS": {"r": 8},
    "C3A": {"block_size": 16}, "ROAD": {"group_size": 16}, "VBLORA": {"vector_length": 16},
    "OFT": {"oft_block_size": 16}, "FOURIERFT": {"n_frequency": 64}, "WAVEFT": {"n_frequency": 64},
}  # fmt: skip
RANKED = {name: 4 for name in ("LORA", "ADALORA", "ADAMSS", "DEFT", "DELORA", "GLORA", "GRALORA", "HIRA", "HRA", "LILY",
          "LOHA", "LOKR", "MISS", "PEANUT", "PSOFT", "PVERA", "RANDLORA", "SHIRA", "VERA")}  # fmt: skip
VARIANTS: tuple[dict[str, Any], ...] = (
    {"use_dora": True}, {"use_rslora": True}, {"init_lora_weights": "pissa"},
    {"init_lora_weights": "olora"}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": "eva"},
    {"rank_pattern": {"q_proj": 8}}, {"bias": "lora_only"}, {"layers_to_transform": [0]},
    {"exclude_modules": ["v_proj"]},
    {"modules_to_save": ["norm"]}, {"init_lora_weights": "orthogonal"}, {"lora_bias": True},
)  # fmt: skip
LINEAR_OF_STATE_SPACE = {"mamba": ["in_proj", "x_proj"], "falcon_h1": ["q_proj", "k_proj", "v_proj", "in_proj"]}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@dataclass(frozen=True)
class Case:
    """One combination. `refused` names the finding that must come (or "plan" for a plan that is not valid), or None."""

    model_type: str
    task: str
    method: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None

    @property
    def name(self) -> str:
        chosen = dict(self.method)
        quantization = chosen.pop("quantization", None)
        parts = [self.model_type, self.task, chosen.pop("peft_type", "LORA")]
        parts += [json.dumps(chosen, sort_keys=True)] if chosen else []
        parts += [json.dumps(quantization, sort_keys=True)] if quantization else []
        parts += [json.dumps(self.training, sort_keys=True)] if self.training else []
        return " ".join(parts)


def valid(seed: int) -> Iterator[Case]:
    """Cases without end but never one twice: every method once, every architecture once, then by chance."""
    draw = random.Random(seed)
    supported = [name for name in methods.names() if not methods.method(name).unsupported]
    for name in supported:
        yield Case("llama", "chat", _method(name))
    for variant in VARIANTS:
        targets = {"target_modules": ["q_proj", "v_proj"]} if "exclude_modules" not in variant else {}
        yield Case("llama", "chat", {**_method("LORA"), **targets, "config": variant})
    yield Case("llama", "chat", {"peft_type": methods.FULL, "reason": "a test"})
    yield Case(
        "mixtral", "chat", {"rank": 4, "alpha": 8, "target_modules": None, "config": {"target_parameters": EXPERTS}}
    )
    yield Case(
        "qwen3_moe",
        "text",
        {"rank": 4, "alpha": 8, "target_modules": ["q_proj"], "config": {"target_parameters": EXPERTS}},
    )
    every = (*DECODERS, *ENCODERS, *PAIRS)
    seen: set[str] = set()
    for place, model_type in enumerate(every):
        tasks = _tasks(model_type)
        yield Case(model_type, tasks[place % len(tasks)], _method("LORA", model_type))
    while True:
        model_type = draw.choice(every)
        name = draw.choice((*supported, methods.FULL, "LORA", "LORA", "LORA"))
        quantization = draw.choice(("none", "none", *QUANTIZATIONS))
        method = {"peft_type": name, "reason": "a test"} if name == methods.FULL else _method(name, model_type)
        if QUANTIZATIONS[quantization]:
            method["quantization"] = QUANTIZATIONS[quantization]
        if name == "LORA":
            method["config"] = draw.choice(({}, *VARIANTS[:6]))
        training = {"precision": draw.choice(("fp32", "fp32", "bf16")), "gradient_checkpointing": draw.random() < 0.3}
        if name != methods.FULL and not methods.method(name).checkpointing:
            training["gradient_checkpointing"] = False
        case = Case(model_type, draw.choice(_tasks(model_type)), method, training)
        if case.name not in seen and not _refusals(case):
            seen.add(case.name)
            yield case


def invalid() -> Iterator[Case]:
    """Combinations that do not exist, each with the finding that must say so."""
    virtual = {"num_virtual_tokens": 8}
    for name in methods.names():
        known = methods.method(name)
        if known.unsupported:
            yield Case("llama", "chat", _method(name), refused="plan.method.unsupported")
            continue
        for model_type in known.fails_on:
            task = "chat" if model_type in DECODERS else "sequence_classification"
            if methods.supports(plan.TASK_TYPES[task], model_type):
                yield Case(model_type, task, _method(name), refused="plan.method.architecture")
        if not known.quantised:
            yield Case("llama", "chat", {**_method(name), "quantization": {"bits": 4}}, refused="plan.method.quantised")
        for task, task_type in plan.TASK_TYPES.items():
            if task_type not in known.tasks and task_type != "CAUSAL_LM":
                model_type = "t5" if task_type == "SEQ_2_SEQ_LM" else "bert"
                yield Case(model_type, task, _method(name), refused="plan.method.task")
        if not known.checkpointing:
            yield Case("llama", "chat", _method(name), {"gradient_checkpointing": True}, "plan.method.checkpointing")
        for needed in known.needs:
            options = {key: value for key, value in OPTIONS.get(name, virtual).items() if key != needed}
            yield Case("llama", "chat", {"peft_type": name, "config": options}, refused="plan")
        if "rank" in known.names:
            yield Case("llama", "chat", {"peft_type": name, "rank": 0}, refused="plan")
        else:
            yield Case("llama", "chat", {"peft_type": name, "config": OPTIONS.get(name, {}), "rank": 8}, refused="plan")
        yield Case("llama", "chat", {"peft_type": name, "config": {"no_such_field": 1}}, refused="plan")
    for model_type, task in (("bert", "seq2seq"), ("t5", "chat"), ("llama", "seq2seq"), ("modernbert", "chat"),
                             ("mamba", "token_classification"), ("t5", "text")):  # fmt: skip
        yield Case(model_type, task, _method("LORA", model_type), refused="plan.task.architecture")
    for options in ({"use_dora": True}, {"lora_bias": True}):
        config = {"target_parameters": EXPERTS, **options}
        yield Case("mixtral", "chat", {"config": config}, refused="plan.method.parameters")
    experts = {"target_parameters": EXPERTS}
    yield Case("mixtral", "chat", {"config": experts, "dropout": 0.1}, refused="plan.method.parameters")
    yield Case("mixtral", "chat", {"config": experts, "quantization": {"bits": 4}}, refused="plan.method.parameters")
    yield Case("mamba", "text", {"rank": 4}, refused="plan.method.targets")
    yield Case(
        "falcon_h1", "text", {"rank": 4, "target_modules": ["q_proj", "out_proj"]}, refused="plan.method.targets"
    )
    for options in ({"init_lora_weights": "corda"}, {"init_lora_weights": "pissa_niter_4"}, {"use_qalora": True},
                    {"layer_replication": [[0, 2]]}):  # fmt: skip
        yield Case("llama", "chat", {"config": options}, refused="plan.method.option")
    yield Case("llama", "chat", {"peft_type": "ADALORA", "rank": 8}, refused="plan.method.option")
    yield Case("t5", "seq2seq", {"peft_type": "IA3", "target_modules": ["k"]}, refused="plan.method.option")
    wrong: tuple[dict[str, Any], ...] = (
        {"peft_type": "LORAA"}, {"peft_type": "lora"}, {"dropout": 1.0}, {"config": {"use_dora": "yes"}},
        {"config": {"init_lora_weights": "picasso"}}, {"config": {"r": 8}}, {"config": {"task_type": "CAUSAL_LM"}},
        {"peft_type": methods.FULL}, {"peft_type": methods.FULL, "reason": "x", "quantization": {"bits": 4}},
        {"peft_type": methods.FULL, "reason": "x", "rank": 8}, {"quantization": {"bits": 3}}, {"target_modules": []},
    )  # fmt: skip
    for method in wrong:
        yield Case("llama", "chat", method, refused="plan")


def run(case: Case, model: Path, environment: environments.Environment | None) -> dict[str, Any]:
    """What became of a case: outcome (proven, proven with swaps, failed, refused, not refused) and why."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="first-run-") as folder:
        project = Path(folder) / "project"
        try:
            outcome, why = _try(case, project, model, environment)
        except PeftsmithError as error:
            outcome, why = "failed", [f"{error.cause} {error.value or ''}"]
        written = sorted(path.name for path in project.glob("*.py"))
    if case.refused and outcome == "refused" and (written or why != [case.refused]):
        outcome = "not refused"
    return {"outcome": outcome, "why": why, "seconds": round(time.monotonic() - began, 1)}


def _try(case: Case, project: Path, model: Path, environment: environments.Environment | None) -> tuple[str, list[str]]:
    document = _document(case, model)
    try:
        made = plan.validate(document)
    except PeftsmithError as error:
        return ("refused", ["plan"]) if case.refused == "plan" else ("failed", [error.cause])
    _write(project, made, model)
    written = generate.generate(project)
    errors = _errors(written.findings)
    if errors and not written.files:
        return "refused", [each.id for each in errors] if case.refused else [each.message for each in errors]
    if case.refused:
        return "not refused", [each.id for each in written.findings]
    if environment is None:
        raise PeftsmithError("There is no training environment", next_step="Run make train-env.")
    errors = _errors(vet.vet(project, environment))
    if errors:
        return "failed", [f"{each.id}: {each.message}" for each in errors]
    seen = twin.run_twin(project, environment)
    if not seen.proven:
        return "failed", [f"{each.id}: {each.message[:300]}" for each in _errors(seen.findings)]
    swapped = [each.message for each in seen.findings]
    return ("proven with swaps" if swapped else "proven"), swapped


def _errors(findings: list[Finding]) -> list[Finding]:
    return [each for each in findings if each.severity == "error"]


def _tasks(model_type: str) -> tuple[str, ...]:
    """The tasks for which transformers has a class; a decoder classifies as well."""
    understood = ("sequence_classification", "token_classification", "question_answering")
    wanted: tuple[str, ...] = ("seq2seq", "question_answering") if model_type in PAIRS else (*GENERATING, *understood)
    if model_type in ENCODERS:
        wanted = understood
    return tuple(task for task in wanted if methods.supports(plan.TASK_TYPES[task], model_type))


def _method(name: str, model_type: str = "llama") -> dict[str, Any]:
    chosen: dict[str, Any] = {"peft_type": name}
    options = dict(OPTIONS.get(name, {}))
    if name in RANKED:
        chosen["rank"] = options.pop("r", RANKED[name])
    if name == "LORA":
        chosen["alpha"] = 8
    if model_type in ("mamba", "falcon_h1") and methods.method(name).defaults.get("target_modules") == "all-linear":
        chosen["target_modules"] = LINEAR_OF_STATE_SPACE[model_type]
    if name in ("IA3", "LN_TUNING") and not methods.method(name).unsupported:
        chosen |= _by_hand(name, model_type)
    return {**chosen, **({"config": options} if options else {})}


def _by_hand(name: str, model_type: str) -> dict[str, Any]:
    """Targets for methods that have none of their own on most types."""
    if name == "LN_TUNING":
        return {"target_modules": r".*(norm|ln_1|ln_2|ln_f|LayerNorm|layer_norm|sa_layer_norm)[a-z0-9_]*"}
    return {"target_modules": "all-linear", "config": {"feedforward_modules": []}}


def _refusals(case: Case) -> list[Finding]:
    try:
        made = plan.validate(_document(case, Path("model")))
    except PeftsmithError:
        return [Finding("plan.invalid", "error", "the plan is not valid", "", "", ())]
    return _errors(fitness.judge(made, {"model_type": case.model_type}))


def _document(case: Case, model: Path) -> dict[str, Any]:
    named = plan.LABELLED
    return {
        "schema_version": plan.SCHEMA_VERSION,
        "name": "first-run",
        "task": case.task,
        "base": {"model": str(model)},
        "data": {
            "train": "data/train.jsonl",
            "test": "data/test.jsonl",
            "format": FORMATS[case.task],
            "labels": LABELS if case.task in named else [],
            "system_prompt": "route the ticket to one queue" if case.task == "classification" else None,
        },
        "method": dict(case.method),
        "training": {
            "precision": "fp32",
            "batch_size": 2,
            "max_length": 64,
            "learning_rate": 0.01,
            "gradient_checkpointing": False,
            "optimizer": "adamw_torch",
            **case.training,
        },
    }


def _write(project: Path, made: plan.FineTunePlan, model: Path) -> None:
    (project / "data").mkdir(parents=True)
    for split, count in (("train", 12), ("test", 4)):
        lines = [json.dumps(_row(made.task, number)) for number in range(count)]
        files.write_text(project / "data" / f"{split}.jsonl", "\n".join(lines) + "\n")
    text = plan.dump(made)
    files.write_text(project / plan.PLAN_FILE, text)
    config = files.read_json(model / "config.json")
    base = {"model": str(model), "commit": None, "folder": str(model), "model_type": config["model_type"]}
    empty: dict[str, Any] = {"data": {}, "versions": {}, "interpreter": None, "estimate": {}, "why": {}, "files": {}}
    lock.save(project, lock.Lock(peftsmith=__version__, plan_sha256=files.sha256_text(text), base=base, **empty))


def _row(task: str, number: int) -> dict[str, Any]:
    text = f"{tiny.CORPUS[number % len(tiny.CORPUS)]} {number}"
    label = LABELS[number % 2]
    return {
        "messages": {
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"that is {label}"}]
        },
        "prompt_completion": {"prompt": f"{text}: ", "completion": label},
        "text": {"text": text},
        "classification": {"text": text, "label": label},
        "token_classification": {"tokens": text.split(), "tags": [LABELS[len(word) % 2] for word in text.split()]},
        "question_answering": {
            "question": f"what is row {number} about?",
            "context": text,
            "answers": {"text": [text.split()[1]], "answer_start": [text.index(text.split()[1])]},
        },
        "seq2seq": {"source": text, "target": f"that is {label}"},
    }[FORMATS[task]]


def write_model(folder: Path, model_type: str) -> Path:
    """A base as the twin needs it: config.json with the type's own sizes and a small tokenizer; no weights."""
    vocabulary = tiny._write_tokenizer(_made(folder))
    known = {**DECODERS, **ENCODERS, **PAIRS}.get(model_type, {})
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    config = {"model_type": model_type, "vocab_size": vocabulary, **tokens, "dtype": "float32", **known}
    files.write_json(folder / "config.json", config)
    if model_type not in ENCODERS:
        files.write_json(folder / "generation_config.json", tokens)
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cases(arguments: argparse.Namespace) -> list[Case]:
    if arguments.cases:
        return [Case(**each) for each in json.loads(arguments.cases.read_text(encoding="utf-8"))]
    drawn = valid(arguments.seed)
    chosen = [next(drawn) for _ in range(arguments.count)] + ([] if arguments.only_valid else list(invalid()))
    part, parts = (int(each) for each in arguments.shard.split("/"))
    return [each for place, each in enumerate(chosen) if place % parts == part % parts and arguments.only in each.name]


def report(results: dict[str, dict[str, Any]]) -> str:
    """The counts, the last line first of all for machines: N of M as they should be."""
    right = {"proven", "proven with swaps"}
    counts = Counter(each["outcome"] for each in results.values())
    wanted = [each for each in results.values() if not each["case"]["refused"]]
    refused = [each for each in results.values() if each["case"]["refused"]]
    good = sum(each["outcome"] in right for each in wanted)
    stopped = sum(each["outcome"] == "refused" for each in refused)
    lines = [f"{count:5} {outcome}" for outcome, count in sorted(counts.items())]
    return "\n".join([*lines, f"proven {good} of {len(wanted)}, refused {stopped} of {len(refused)}"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--count", type=int, default=60, help="valid cases to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--only", default="", help="text that must be in a case's name")
    parser.add_argument("--only-valid", action="store_true")
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args(argv)
    results: dict[str, dict[str, Any]] = {}
    if arguments.results and arguments.results.exists():
        results = json.loads(arguments.results.read_text(encoding="utf-8"))
    work = Path(tempfile.mkdtemp(prefix="first-run-models-"))
    files.set_roots(["/"])
    try:
        chosen = cases(arguments)
        environment = environments.require(REPOSITORY) if any(not each.refused for each in chosen) else None
        for case in chosen:
            if case.name in results:
                continue
            model = work / case.model_type
            if not model.exists():
                write_model(model, case.model_type)
            results[case.name] = {"case": asdict(case), **run(case, model, environment)}
            shown = results[case.name]
            print(f"{shown['outcome']:18}{shown['seconds']:6.1f} s  {case.name}", flush=True)
            if shown["outcome"] in ("failed", "not refused") or (shown["outcome"] == "refused" and not case.refused):
                print(f"    {shown['why']}", flush=True)
            if arguments.results:
                files.write_json(arguments.results, results)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(report(results))
    return 0 if all(_as_it_should(each) for each in results.values()) else 1


def _as_it_should(result: dict[str, Any]) -> bool:
    return (result["outcome"] == "refused") if result["case"]["refused"] else result["outcome"].startswith("proven")


if __name__ == "__main__":
    sys.exit(main())
