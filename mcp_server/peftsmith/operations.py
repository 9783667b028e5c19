"""Everything peftsmith can be asked to do, once: the MCP tools and the CLI commands are made from these functions.

Knows: names, parameters and one-paragraph descriptions as a model or a person reads them.
Does not know: how anything is done; every body resolves its paths, imports its stage and calls one function.
Every function returns plain JSON data with `findings` first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from peftsmith import files
from peftsmith.finding import Finding, worst_first

Result = dict[str, Any]
Project = Annotated[str, Field(description="Folder of the fine-tuning project, relative to the working folder.")]
Model = Annotated[str, Field(description="Base model: a local folder or a hub id such as owner/name.")]
Revision = Annotated[str | None, Field(description="Commit of the hub model (40 hex digits).")]
Exact = Annotated[bool, Field(description="Ask the real classes (needs a training environment).")]
Rows = Annotated[str, Field(description="JSON lines, JSON, CSV, Parquet or Arrow file, folder of them, or hub id.")]
# The same as plan.DataFormat, which a start without a plan must not import; a test compares the two.
DataFormat = Literal[
    "messages", "sharegpt", "alpaca", "prompt_completion", "text", "preference", "kto", "classification",
    "token_classification", "question_answering", "seq2seq",
]  # fmt: skip
Format = Annotated[DataFormat | None, Field(description="What the rows are; worked out when left out.")]
Columns = Annotated[
    dict[str, str] | None, Field(description="Field of the format -> column, such as prompt: question.")
]
Roles = Annotated[
    dict[str, str] | None, Field(description="Role as the rows write it -> role, such as bot: assistant.")
]
LabelNames = Annotated[list[str] | None, Field(description="Names of labels that the rows hold as 0, 1, 2, ...")]
Split = Annotated[str, Field(description="Of a hub data set: split, or subset/split.")]
DataRevision = Annotated[str | None, Field(description="Commit of the hub data set (40 hex digits).")]


def _result(findings: Iterable[Finding], **rest: Any) -> Result:
    return {"findings": [f.to_json() for f in worst_first(findings)], **rest}


def inspect_machine(project: Project = ".") -> Result:
    """What there is to run on: processors, memory, GPUs, free disk, and the training environments (other Pythons
    with torch, transformers, peft and trl) that were found, each with its versions and problems."""
    from peftsmith.machine import environment, hardware

    root = files.resolve(project)
    machine = hardware.probe(root)
    found = environment.find(root)
    return _result(
        [*machine.findings, *environment.judge(found)],
        hardware=machine.to_json(),
        environments=[each.to_json() for each in found],
    )


def make_environment(
    project: Project = ".",
    path: Annotated[str, Field(description="Folder for the new virtual environment.")] = ".venv-train",
    confirm: Annotated[bool, Field(description="Set to true to go ahead: this downloads several hundred MB.")] = False,
) -> Result:
    """Make a training environment with the tested, pinned libraries (torch first, the rest locked by hash), as a run
    in the background: follow it with get_run."""
    from peftsmith.machine import install

    run = install.start(files.resolve(project), files.resolve(path, must_exist=False), confirm=confirm)
    return _result([], run=run.to_json())


def inspect_model(model: Model, revision: Revision = None, exact: Exact = False) -> Result:
    """What a base model is, read from config.json, the tokenizer files and the safetensors or GGUF headers without
    loading a weight: architecture, exact parameter count, linear modules, tied embeddings, quantisation, chat template,
    special tokens, licence, whether access is gated."""
    from peftsmith.model import skeleton

    body = skeleton.inspect(model, revision, files.resolve("."), exact_modules=exact)
    return _result(body.findings, model=body.to_json())


Preset = Literal["query-value", "attention", "mlp", "all-linear", "experts", "everything"]
Rank = Annotated[int | None, Field(ge=1, description="16 for LoRA, PEFT's default elsewhere, when left out.")]
Method = Annotated[str, Field(description="full, lora, qlora, or any PEFT type, such as ia3 or prompt_tuning.")]
Optimizer = Literal[
    "adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adafactor", "sgd",
    "lion_32bit", "lion_8bit",
]  # fmt: skip


def find_target_modules(
    model: Model,
    rank: Annotated[int, Field(ge=1, description="LoRA rank.")] = 16,
    preset: Annotated[Preset | None, Field(description="Only this choice; all of them when left out.")] = None,
    method: Annotated[str, Field(description="PEFT type to count trainable parameters for.")] = "lora",
    include: Annotated[
        Literal["router", "head", "tower"] | None, Field(description="Also adapt these; never done unasked.")
    ] = None,
    most_share: Annotated[
        float | None, Field(gt=0, le=1, description="Name the choice that trains at most this share of all parameters.")
    ] = None,
    config: Annotated[
        dict[str, Any] | None,
        Field(description="Judge these fields of a PEFT config as well: target_modules, target_parameters and so on."),
    ] = None,
    rank_pattern: Annotated[
        dict[str, int] | None, Field(description="Other ranks by module name ending or pattern, as in LoraConfig.")
    ] = None,
    exact: Exact = False,
    revision: Revision = None,
) -> Result:
    """Which modules an adapter should reach, as the exact value for PEFT, with layers matched out of layers present,
    exact trainable parameters and share at this rank, and which servers can serve it."""
    from peftsmith.model import skeleton, targets

    body = skeleton.inspect(model, revision, files.resolve("."), exact_modules=exact)
    found = targets.find(
        body,
        rank=rank,
        preset=preset,
        include=(include,) if include else (),
        method=method.upper(),
        rank_pattern=rank_pattern,
    )
    if config:
        found.append(targets.own(body, config, rank=rank, method=method.upper(), rank_pattern=rank_pattern))
    fitting = targets.smallest(body, rank=rank, most_share=most_share, method=method.upper()) if most_share else None
    return _result(
        [*body.findings, *(f for choice in found for f in choice.findings)],
        model=body.id,
        rank=rank,
        choices=[choice.to_json() for choice in found],
        within_share={"preset": fitting.preset, "rank": fitting.rank} if fitting else None,
    )


def audit_dataset(
    data: Rows,
    model: Annotated[
        str | None, Field(description="Base model whose tokenizer and chat template will be used.")
    ] = None,
    test: Annotated[
        str | None, Field(description="Rows kept for the test; checked for overlap with the training rows.")
    ] = None,
    eval: Annotated[str | None, Field(description="Rows kept for evaluation while training; checked likewise.")] = None,
    max_length: Annotated[int, Field(ge=8, description="Longest row in tokens that training would keep.")] = 1024,
    batch_size: Annotated[int, Field(ge=1, description="Rows of a batch, for the share of padding.")] = 8,
    near_duplicates: Annotated[bool, Field(description="Also look for rows with nearly the same words.")] = True,
    scans: Annotated[bool, Field(description="Also look through each text: secrets, personal data, damage.")] = True,
    text_column: str = "text",
    label_column: str = "label",
    system_prompt: Annotated[
        str | None, Field(description="System message that the plan would put before each row.")
    ] = None,
    format: Format = None,
    columns: Columns = None,
    roles: Roles = None,
    label_names: LabelNames = None,
    split: Split = "train",
    revision: DataRevision = None,
) -> Result:
    """What is wrong with a data set before it costs anything: format, rows, tokens after the real chat template,
    truncation, padding, duplicates, overlap with test and eval rows, empty or broken rows, labels, secrets, personal
    data, licence; and a suggested max_length, packing and batch."""
    from peftsmith import progress
    from peftsmith.data import audit, mapping, source

    rows = source.locate(data, split, revision)
    report = audit.audit(
        rows.path,
        model=model,
        test=files.resolve(test) if test else None,
        eval=files.resolve(eval) if eval else None,
        max_length=max_length,
        batch_size=batch_size,
        mapping=mapping.Mapping.of(format, columns, text_column, label_column, roles, tuple(label_names or ())),
        system_prompt=system_prompt,
        near_duplicates=near_duplicates,
        scans=scans,
        progress=progress.listener(),
    )
    return _result([*rows.findings, *report.findings], audit=report.to_json())


def show_dataset(
    data: Rows,
    model: Annotated[str | None, Field(description="Base model whose tokenizer and chat template are used.")] = None,
    rows: Annotated[int, Field(ge=1, le=200, description="How many rows to look at closely.")] = 3,
    loss: Annotated[
        Literal["answer", "assistant", "all"],
        Field(description="Where the loss shall lie: the last answer, all that the assistant says, everything."),
    ] = "answer",
    max_length: Annotated[int, Field(ge=8, description="Longest row in tokens that training would keep.")] = 1024,
    html: Annotated[str | None, Field(description="Also write a page with rows, lengths and duplicates here.")] = None,
    system_prompt: str | None = None,
    text_column: str = "text",
    label_column: str = "label",
    format: Format = None,
    columns: Columns = None,
    roles: Roles = None,
    label_names: LabelNames = None,
    split: Split = "train",
    revision: DataRevision = None,
) -> Result:
    """Rows as the trainer will see them, with the text that carries loss set apart; lengths and duplicates."""
    from peftsmith.data import mapping, show, show_html, source

    found = source.locate(data, split, revision)
    seen = show.show(
        found.path,
        show.tokenizer_of(model),
        rows=rows,
        loss=loss,
        max_length=max_length,
        mapping=mapping.Mapping.of(format, columns, text_column, label_column, roles, tuple(label_names or ())),
        system_prompt=system_prompt,
    )
    place = files.resolve(html, must_exist=False) if html else None
    if place is not None:
        files.write_text(place, show_html.page(seen))
    return _result(
        [*found.findings, *seen.findings],
        counts=seen.counts,
        duplicates=seen.duplicates,
        html=str(place) if place else None,
        rows=[row.to_json() for row in seen.rows],
    )


def prepare_dataset(
    data: Rows,
    output: Annotated[str, Field(description="New folder for train.jsonl, eval.jsonl, test.jsonl and rejects.jsonl.")],
    eval_share: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    test_share: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    seed: Annotated[int, Field(ge=0)] = 0,
    text_column: str = "text",
    label_column: str = "label",
    format: Format = None,
    columns: Columns = None,
    roles: Roles = None,
    label_names: LabelNames = None,
    group_by: Annotated[str | None, Field(description="Column whose equal values stay in one split.")] = None,
    split: Split = "train",
    revision: DataRevision = None,
    loader: Annotated[str | None, Field(description="Your own Python file with rows(path), see write_loader.")] = None,
    loader_python: Annotated[
        Literal["own", "training"], Field(description="Which Python runs the loader: peftsmith's or the training one.")
    ] = "own",
) -> Result:
    """Write normalised train, eval and test splits (seeded, stratified by label, groups kept together), and the rows
    that cannot be used into rejects.jsonl with line number and reason: no row is lost in silence."""
    from peftsmith.data import loader as loading
    from peftsmith.data import mapping, prepare, source

    rows = source.locate(data, split, revision)
    target = files.resolve(output, must_exist=False)
    done = prepare.prepare(
        rows.path,
        target,
        eval_share=eval_share,
        test_share=test_share,
        seed=seed,
        mapping=mapping.Mapping.of(format, columns, text_column, label_column, roles, tuple(label_names or ())),
        group_by=group_by,
        loader=loading.Loader(files.resolve(loader), loading.python(loader_python, target)) if loader else None,
    )
    return _result([*rows.findings, *done.findings], prepared=done.to_json())


def write_loader(
    folder: Annotated[str, Field(description="Folder for the two files.")] = ".",
    name: Annotated[str, Field(description="Name of the Python module.")] = "my_loader",
) -> Result:
    """Write a loader for sources that are read no other way: a Python file with rows(path) to change, and its test.
    prepare_dataset runs it in a process of its own."""
    from peftsmith.data import loader

    made = loader.write(files.resolve(folder), name)
    return _result([], files=[str(path) for path in made])


def estimate_memory(
    model: Model,
    method: Method = "lora",
    rank: Rank = None,
    target_modules: Preset = "all-linear",
    batch_size: Annotated[int, Field(ge=1, description="Rows on the device in one step.")] = 1,
    sequence_length: Annotated[int, Field(ge=8, description="Tokens in the longest row.")] = 1024,
    precision: Literal["fp32", "bf16", "fp16"] = "bf16",
    quantization: Annotated[
        Literal["none", "nf4", "nf4_double", "fp4", "int8"] | None,
        Field(description="How the base is held; as it is stored when left out."),
    ] = None,
    gradient_checkpointing: bool = True,
    optimizer: Optimizer = "adamw_torch_fused",
    loss: Annotated[
        Literal["trl_chunked", "stock", "fused", "liger"], Field(description="stock holds all logits.")
    ] = "trl_chunked",
    attention: Literal["sdpa", "flash", "eager"] = "sdpa",
    task: Literal["sft", "dpo", "grpo", "classification", "seq2seq"] = "sft",
    gpus: Annotated[int, Field(ge=1, description="Devices; the answer is for one of them.")] = 1,
    sharding: Literal["none", "ddp", "zero2", "zero3", "fsdp2"] = "none",
    offload: Literal["none", "optimizer", "all"] = "none",
    details: Annotated[
        dict[str, Any] | None,
        Field(
            description="Seldom needed: packing, autocast, kbit_prepared, dropout, accumulates, target_length, "
            "completion_length, generations, labels; any other name is a field of PEFT's config, such as use_dora."
        ),
    ] = None,
    fits_gib: Annotated[float | None, Field(gt=0, description="Memory there is, in GiB: then says what fits.")] = None,
    gpu: Annotated[str | None, Field(description="Or a GPU by name, such as L4 or A100-80GB.")] = None,
    alternatives: Annotated[bool, Field(description="Also compare other ways to do the same job.")] = False,
    precise: Annotated[bool, Field(description="Trace the real classes (needs a training environment).")] = False,
    measured_gib: Annotated[
        float | None, Field(gt=0, description="Peak of a finished run: compared with the estimate.")
    ] = None,
    revision: Revision = None,
) -> Result:
    """How much memory fine-tuning will take: allocated, reserved and whole device with a range each, the terms it is
    made of, what it assumes, what would fit in `fits_gib` or on `gpu`, and what else could be done. An estimate."""
    from peftsmith.model import answers, skeleton
    from peftsmith.model.request import Request, with_details

    body = skeleton.inspect(model, revision, files.resolve("."))
    request = Request(
        method=method,
        rank=rank,
        targets=target_modules,
        batch_size=batch_size,
        sequence_length=sequence_length,
        precision=precision,
        quantization=quantization,
        gradient_checkpointing=gradient_checkpointing,
        optimizer=optimizer,
        loss=loss,
        attention=attention,
        task=task,
        gpus=gpus,
        sharding=sharding,
        offload=offload,
    )
    answer = answers.memory_answer(
        body,
        with_details(request, details or {}),
        gib=fits_gib,
        gpu=gpu,
        alternatives=alternatives,
        precise=precise,
        measured_gib=measured_gib,
        project=files.resolve("."),
    )
    return _result([*body.findings, *answer.findings], **answer.parts)


def estimate_time(
    model: Model,
    tokens: Annotated[int, Field(ge=1, description="Tokens of the training rows, without padding (audit_dataset).")],
    gpu: Annotated[str, Field(description="A GPU by name, such as L4, RTX 4090 or A100-80GB.")],
    epochs: Annotated[float, Field(gt=0)] = 1.0,
    padding: Annotated[float, Field(ge=0, lt=1, description="Share of a batch that is padding; 0 when packed.")] = 0.0,
    method: Method = "lora",
    rank: Rank = None,
    batch_size: Annotated[int, Field(ge=1)] = 1,
    sequence_length: Annotated[int, Field(ge=8)] = 1024,
    gradient_checkpointing: bool = True,
    gpus: Annotated[int, Field(ge=1)] = 1,
    evaluation_tokens: Annotated[int, Field(ge=0)] = 0,
    evaluations: Annotated[int, Field(ge=0)] = 0,
    price_per_hour: Annotated[float | None, Field(gt=0, description="Of one GPU, in your currency.")] = None,
    watts: Annotated[float | None, Field(gt=0, description="That one GPU draws.")] = None,
    revision: Revision = None,
) -> Result:
    """How long training will take on a GPU, as a range, from FLOPs and bytes; with cost and energy for a price and a
    power that you give. An estimate: measure a few steps before you pay for many."""
    from peftsmith.model import memory, skeleton, speed

    body = skeleton.inspect(model, revision, files.resolve("."))
    request = memory.Request(
        method=method, rank=rank, batch_size=batch_size, sequence_length=sequence_length,
        gradient_checkpointing=gradient_checkpointing, gpus=gpus,
    )  # fmt: skip
    work = speed.Work(tokens, epochs, padding, evaluation_tokens, evaluations)
    found = speed.estimate(body, request, work, speed.gpu(gpu), price_per_hour=price_per_hour, watts=watts)
    return _result(body.findings, estimate=found)


# As in plan.py, which takes too long to import while a server starts; a test compares them.
Task = Literal[
    "chat", "completion", "text", "continued_pretraining", "classification", "sequence_classification",
    "token_classification", "question_answering", "seq2seq",
]  # fmt: skip
ServingTarget = Literal["transformers", "vllm", "sglang", "llama.cpp", "ollama"]


def plan_finetune(
    project: Annotated[
        str, Field(description="Folder for the project; made when missing, refused when it holds another plan.")
    ],
    model: Model,
    data: Annotated[str, Field(description="The training rows.")],
    test: Annotated[str | None, Field(description="Rows kept for the test.")] = None,
    eval: Annotated[str | None, Field(description="Rows for held-out loss during training.")] = None,
    revision: Revision = None,
    task: Annotated[Task | None, Field(description="By rows and base when left out.")] = None,
    method: Annotated[
        str | None,
        Field(description="Only to overrule the recommendation: lora, qlora, full, or any PEFT type such as ia3."),
    ] = None,
    reason: Annotated[str | None, Field(description="Why all weights must train; full needs it.")] = None,
    config: Annotated[
        dict[str, Any] | None, Field(description="Fields of the method's PEFT config, by PEFT's names.")
    ] = None,
    serving: ServingTarget = "transformers",
    goal: Annotated[
        Literal["style", "knowledge", "changing_facts"] | None, Field(description="What it is to learn.")
    ] = None,
    forgetting: Annotated[Literal["little", "any"] | None, Field(description="How much the base may forget.")] = None,
    adapters: Annotated[int | None, Field(ge=1, description="How many adapters one server holds at a time.")] = None,
    gpu: Annotated[str | None, Field(description="GPU to train on, such as L4; this machine's when left out.")] = None,
    memory_gib: Annotated[
        float | None, Field(gt=0, description="Memory of the training device; the GPU's or machine's when left out.")
    ] = None,
    base_score: Annotated[
        float | None, Field(description="What the base with its best prompt reached in an evaluation.")
    ] = None,
    wanted_score: Annotated[float | None, Field(description="What would be good enough, in the same measure.")] = None,
    system_prompt: Annotated[
        str | None, Field(description="System message for every row (classification: the instruction).")
    ] = None,
    text_column: str = "text",
    label_column: str = "label",
) -> Result:
    """Write plan.yaml and plan.lock.json from the model, the data and the machine, with the reason, the source and
    what would change it for every recommended value; compare alternatives (memory, time, share, serving); name the
    questions whose answers would change the plan; say when not to train. Costs nothing."""
    from peftsmith.advise import planner
    from peftsmith.advise.facts import Intent

    intent = Intent(
        method=method,
        serving=serving,
        goal=goal,
        forgetting=forgetting,
        adapters=adapters,
        reason=reason,
        config=config or {},
    )
    wish = planner.Wish(
        model=model,
        data=files.resolve(data),
        test=files.resolve(test) if test else None,
        eval=files.resolve(eval) if eval else None,
        revision=revision,
        task=task,
        intent=intent,
        gpu=gpu,
        memory_gib=memory_gib,
        base_score=base_score,
        wanted_score=wanted_score,
        system_prompt=system_prompt,
        text_column=text_column,
        label_column=label_column,
    )
    made = planner.make(files.resolve(project, must_exist=False), wish)
    return _result(
        made.findings,
        plan=made.plan.model_dump(mode="json"),
        why=made.why,
        estimate=made.estimate,
        alternatives=made.alternatives,
        questions=made.questions,
    )


def generate_project(project: Project) -> Result:
    """Write the training project that plan.yaml describes: train, evaluate, infer and merge scripts, a notebook,
    pinned requirements, .env.example, .gitignore, README. Edits made by hand are merged with the plan's changes; where
    both change the same lines, that is shown and nothing is written."""
    from peftsmith.project import generate

    written = generate.generate(files.resolve(project))
    return _result(written.findings, written=written.files)


def check_project(
    project: Annotated[str, Field(description="The project's folder, or a training script or notebook of your own.")],
    twin: Annotated[bool, Field(description="Also run the scripts on a small model of the same architecture.")] = True,
) -> Result:
    """Prove the project before it costs anything: scripts parse, every argument exists in the installed libraries, no
    secrets, settings equal the plan, and the twin: the same scripts on a cut-down model with real rows, trained two
    steps, saved, reloaded, merged, generating. Returns the digest that start_run needs. A script (.py) or notebook
    (.ipynb) that peftsmith did not write is read, not run: findings with line numbers, and a diff of pure renames."""
    from peftsmith.project import check

    checked = check.check(files.resolve(project), twin=twin)
    return _result(checked.findings, digest=checked.digest, proofs=checked.proofs)


def apply_fix(
    project: Project,
    finding_id: Annotated[str, Field(description="A finding of the last check_project with `patch` in its evidence.")],
    confirm: Annotated[bool, Field(description="Set to true to write it; else only shown.")] = False,
) -> Result:
    """Make the change of plan.yaml that check_project offered for a finding about the loss mask (a longer max_length,
    a template with generation blocks, a pad token of its own). Then run generate_project and check_project again."""
    from peftsmith.project import mask

    return _result([], **mask.apply(files.resolve(project), finding_id, confirm=confirm))


def start_run(
    project: Project,
    kind: Annotated[Literal["smoke", "train", "evaluate", "merge"], Field(description="smoke: a few real steps.")],
    digest: Annotated[str, Field(description="From check_project; refused when files have changed since.")],
    adapter_run: Annotated[
        str | None, Field(description="For evaluate and merge: the run whose adapter to use.")
    ] = None,
    max_steps: Annotated[int | None, Field(ge=1, description="Stop after this many optimiser steps.")] = None,
) -> Result:
    """Start long work in the background and return its run id at once; it outlives this server. Follow it with
    get_run."""
    from peftsmith.run import start

    run = start.start(files.resolve(project), kind=kind, digest=digest, adapter_run=adapter_run, max_steps=max_steps)
    return _result([], run=run.to_json())


def get_run(
    project: Project,
    run_id: str,
    wait_seconds: Annotated[float, Field(ge=0, le=50, description="Wait up to this long for the run to end.")] = 0,
) -> Result:
    """Where a run stands: state, progress, latest metrics, artefacts, the end of its log."""
    from peftsmith.run import watch

    seen = watch.follow(files.resolve(project), run_id, wait_seconds=wait_seconds)
    return _result(seen.findings, run=seen.to_json())


def list_runs(project: Project = ".") -> Result:
    """All runs of a project, newest first, with state and last metrics."""
    from peftsmith.run import watch

    return _result([], runs=[seen.summary() for seen in watch.all_runs(files.resolve(project))])


def stop_run(
    project: Project,
    run_id: str,
    confirm: Annotated[bool, Field(description="Set to true to stop it; what it has saved is kept.")] = False,
) -> Result:
    """Stop a run that is under way. What it has saved so far stays."""
    from peftsmith.run import watch

    seen = watch.stop(files.resolve(project), run_id, confirm=confirm)
    return _result([], run=seen.to_json())


def inspect_adapter(
    adapter: Annotated[str, Field(description="Folder with adapter_config.json and adapter_model.safetensors.")],
) -> Result:
    """Whether an adapter is sound (tensors present, lora_B not zero, no NaN, base named) and which servers can
    serve it."""
    from peftsmith.adapter import inspect

    report = inspect.inspect(files.resolve(adapter))
    return _result(report.findings, adapter=report.to_json())


def diagnose_failure(
    project: Project = ".",
    run_id: Annotated[str | None, Field(description="The run to look at.")] = None,
    log: Annotated[str | None, Field(description="Or: a log file of any training script.")] = None,
) -> Result:
    """From a log to the likely cause, the fix and, where one exists, the change to plan.yaml that makes it."""
    from peftsmith.diagnose import causes

    root = files.resolve(project)
    report = causes.diagnose(root, run_id=run_id, log=files.resolve(log) if log else None)
    return _result(report.findings, patch=report.patch)


def scan_secrets(path: Annotated[str, Field(description="File or folder to look through.")] = ".") -> Result:
    """Look for keys, tokens and passwords in a file or folder. Shows where and of which kind, never the value."""
    from peftsmith import secrets

    report = secrets.scan(files.resolve(path))
    return _result(report.findings, scanned_files=report.scanned)


@dataclass(frozen=True)
class Operation:
    """One function with how a client may treat it: `reads_only` becomes the readOnlyHint annotation."""

    run: Callable[..., Result]
    title: str
    reads_only: bool = True
    destructive: bool = False


OPERATIONS: dict[str, Operation] = {
    operation.run.__name__: operation
    for operation in (
        Operation(inspect_machine, "Inspect this machine"),
        Operation(make_environment, "Make a training environment", reads_only=False),
        Operation(inspect_model, "Inspect a base model"),
        Operation(find_target_modules, "Find target modules"),
        Operation(audit_dataset, "Audit a data set"),
        Operation(show_dataset, "Show what carries loss", reads_only=False),
        Operation(prepare_dataset, "Prepare a data set", reads_only=False),
        Operation(write_loader, "Write a loader for your own data", reads_only=False),
        Operation(estimate_memory, "Estimate memory"),
        Operation(estimate_time, "Estimate time and cost"),
        Operation(plan_finetune, "Plan a fine-tune", reads_only=False),
        Operation(generate_project, "Generate the project", reads_only=False),
        Operation(check_project, "Check the project", reads_only=False),
        Operation(apply_fix, "Apply an offered fix", reads_only=False),
        Operation(start_run, "Start a run", reads_only=False),
        Operation(get_run, "Follow a run"),
        Operation(list_runs, "List runs"),
        Operation(stop_run, "Stop a run", reads_only=False, destructive=True),
        Operation(inspect_adapter, "Inspect an adapter"),
        Operation(diagnose_failure, "Diagnose a failure"),
        Operation(scan_secrets, "Scan for secrets"),
    )
}
