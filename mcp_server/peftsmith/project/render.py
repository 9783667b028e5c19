"""From plan and lock to the text of every file of a training project.

Knows: which template makes which file, the facts that templates ask for, and that only filtered values are printed.
Does not know: the disk (generate.py), or whether the result works (vet.py, twin.py).
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from peftsmith import assets, files
from peftsmith.errors import PeftsmithError
from peftsmith.knowledge import methods, starts
from peftsmith.lock import Lock
from peftsmith.model import catalogue
from peftsmith.plan import LABELLED, FineTunePlan
from peftsmith.plan_method import Method
from peftsmith.plan_parts import Data
from peftsmith.project import costs, literal, requirements, settings, together

_PLAIN_FILES = {
    "progress.py": "progress.py.j2",
    ".env.example": "env.example.j2",
    ".gitignore": "gitignore.j2",
    "README.md": "README.md.j2",
}
# task -> which scripts it has
KINDS = {
    "chat": "language",
    "completion": "language",
    "text": "language",
    "continued_pretraining": "language",
    "classification": "language",
    "sequence_classification": "classifier",
    "token_classification": "classifier",
    "question_answering": "answers",
    "seq2seq": "seq2seq",
}
TITLES = {
    "chat": "chat",
    "completion": "completing text",
    "text": "text of a domain",
    "continued_pretraining": "continued pre-training",
    "classification": "text classification by generation",
    "sequence_classification": "text classification",
    "token_classification": "tagging words",
    "question_answering": "answering questions",
    "seq2seq": "writing one text from another",
}
MODEL_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
# TRL 1.16 reads num_experts for the router's loss, which these configurations do not have.
_WITHOUT_ROUTER_LOSS = ("granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "llama4", "llama4_text",
                        "deepseek_v4")  # fmt: skip
# Their attention mask is longer than the tokens for which experts were chosen.
_PREFIXES = ("PREFIX_TUNING", "CARTRIDGE")
# Here TRL's fused head takes the whole model for its body; the model's own loss works.
_OWN_LOSS = ("llama4", "llama4_text")
# The columns of a format that data.columns can rename.
ROW_COLUMNS = {
    "token_classification": ("tokens", "tags"),
    "question_answering": ("question", "context", "answers"),
    "seq2seq": ("source", "target"),
}
_ASKED = {"classifier": '--text "Hello"', "answers": '--question "Who came" --context "The parcel came"'}
_ASKS = {"classifier": ("text",), "answers": ("question", "context")}
_WHAT_INFER_DOES = {
    "chat": "Answer prompts",
    "classification": "Answer prompts",
    "sequence_classification": "Name the labels of texts",
    "token_classification": "Tag the words of texts",
    "question_answering": "Answer questions from contexts",
    "seq2seq": "Write the targets of source texts",
}
BODY_NAMES = {r"^model\.": "transformer."}  # as in the scripts (partials/body_names.py.j2)
_READERS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv"}
_VERSION = re.compile(r"[0-9]+(\.[0-9]+){1,3}([a-z0-9.+]*)?")
_BLANK_LINES = re.compile(r"\n{4,}")


def render(plan: FineTunePlan, lock: Lock) -> dict[str, str]:
    """Relative path -> text for each file of the project; the same plan and lock always give the same text.

    There is an evaluate.py only where the plan names test or eval rows, and a merge.py only where the method merges.
    Raises PeftsmithError for a plan whose values
    cannot be written down safely, or whose data files have no reader.
    """
    facts = _facts(plan, lock)
    environment = _environment()
    kind = KINDS[plan.task]
    trains = "bottleneck" if facts["bottleneck"] else kind
    infer = "adapters" if plan.adapters else kind
    templates = {**_PLAIN_FILES, "train.py": f"train_{trains}.py.j2", "infer.py": f"infer_{infer}.py.j2"}
    if facts["has_test"]:
        templates["evaluate.py"] = f"evaluate_{'classification' if plan.task == 'classification' else kind}.py.j2"
    if facts["merges"]:
        templates["merge.py"] = "merge.py.j2"
    rendered = {name: environment.get_template(template).render(facts) for name, template in sorted(templates.items())}
    rendered["requirements.txt"] = requirements.for_plan(plan)
    return {name: _BLANK_LINES.sub("\n\n\n", text) for name, text in sorted(rendered.items())}


def _facts(plan: FineTunePlan, lock: Lock) -> dict[str, Any]:
    """What templates may ask for. `plan` is plain data; nothing of it is printed without a filter."""
    data = plan.data
    named = list(plan.splits().values())
    readers = {_reader(name) for name in named}
    if len(readers) > 1:
        raise PeftsmithError(
            "The data files are of different kinds",
            value=named,
            next_step="Use one kind for all of them: prepare_dataset writes them all as JSON lines.",
        )
    _refuse_unread(data)
    first = next(iter(plan.alone().values()))
    task, method = _task_facts(plan), _method_facts(first.method)
    # On tied embeddings PEFT wraps the head for trained tokens, and TRL's fused head reads what the wrapper lacks.
    tokens = bool(plan.method.config.get("trainable_token_indices"))
    own_forward = method["own_forward"] or tokens or lock.base.get("model_type") in _OWN_LOSS
    trains_whole = task["new_head"] or bool(plan.method.config.get("modules_to_save"))
    return {
        # What one adapter has, all have, so that templates may ask the first.
        "plan": {**plan.model_dump(mode="json"), "data": first.data.model_dump(mode="json")},
        "base_model": plan.base.model,
        "base_revision": plan.base.revision or lock.base.get("commit"),
        "hub": not lock.base.get("folder") or bool(lock.base.get("commit")),
        "reader": readers.pop(),
        "has_test": bool(first.data.test or first.data.eval),
        "effective_batch": plan.training.batch_size * plan.training.gradient_accumulation,
        "without_router_loss": _without_router_loss(plan, str(lock.base.get("model_type"))),
        "torch_version": requirements.torch_version(),
        "body_renamed": _body_renamed(plan, str(lock.base.get("model_type"))),
        "reports_loading": task["kind"] == "answers"
        or (task["labelled_head"] and method["saves_modules"] and not plan.method.full),
        # Only LoRA's merge in PEFT can unload a module that was trained whole and has parts.
        "unwraps": method["saves_modules"] and trains_whole and not method["lora"],
        **task,
        **method,
        **together.facts(plan),
        **_label_names(plan),
        **_methods_facts(plan),
        "asked": f"--task {next(iter(plan.mixture))} {task['asked']}" if _by_task(plan) else task["asked"],
        "converts": plan.converts,
        "by_task": _by_task(plan),
        # Switching such an adapter off does not give the base back.
        "fresh_base": method["bottleneck"]
        or plan.method.full
        or (_alters_base(plan) and not plan.converts)
        or _replicates(plan),
        "reads_in_float32": method["widens"] and plan.training.precision != "fp32",
        "own_forward": own_forward,
        **_step_facts(plan, own_forward),
        "costs": costs.expected(plan, lock),
    }


def _without_router_loss(plan: FineTunePlan, model_type: str) -> str | None:
    """Why the trainer's own loss for balanced experts stays off; None where it may be on."""
    if model_type in _WITHOUT_ROUTER_LOSS:
        return "does not know this architecture"
    if plan.method.peft_type in _PREFIXES and catalogue.has_experts(model_type):
        return "does not count a learnt prefix"
    return None


def _alters_base(plan: FineTunePlan) -> bool:
    """Does the adapter begin by changing the base?"""
    return starts.alters_base(methods.method(plan.method.peft_type), plan.method.config)


def _by_task(plan: FineTunePlan) -> str | None:
    """The field that counts the tasks, for a method that is told which task a row is of."""
    return None if plan.method.full else methods.method(plan.method.peft_type).by_task


def _replicates(plan: FineTunePlan) -> bool:
    """Does the adapted model have more layers than the base?"""
    return bool(plan.method.config.get("layer_replication"))


def _body_renamed(plan: FineTunePlan, model_type: str) -> bool:
    """Would the Auto class not find the weights that a checkpoint has? (transformers 5.23, question answering)"""
    return plan.task_type == "QUESTION_ANS" and methods.body_renamed(model_type)


# Options of LoRA that leave the number of trained parameters as rank and targets imply it, but for two starts: EVA
# moves ranks between layers, MiCA trains one of the two matrices.
_COUNTED = {"use_rslora", "init_lora_weights", "fan_in_fan_out", "alpha_pattern"}
_NOT_COUNTED = ("eva", "mica")


def proof_facts(plan: FineTunePlan, model_type: str) -> dict[str, Any]:
    """What the twin must know of the scripts that render() writes (worker/jobs/twin.py)."""
    method = plan.method
    facts = {**_task_facts(plan), **_method_facts(method)}
    every = [one.method for one in plan.alone().values()]
    layers = [needed for each in every if (needed := methods.twin_layers(each.options())) is not None]
    counted = method.peft_type == "LORA" and bool(method.rank and method.target_modules)
    counted = counted and method.config.get("init_lora_weights") not in _NOT_COUNTED
    return {
        "model_class": facts["model_class"],
        "task_type": plan.task_type,
        "labels": next(iter(plan.alone().values())).data.labels if facts["labelled_head"] else [],
        "key_mapping": BODY_NAMES if _body_renamed(plan, model_type) else None,
        "result": facts["result"],
        "plain_lora": counted and set(method.config) <= _COUNTED,
        "merges": facts["merges"],
        "resumes": facts["resumes"],
        "converts": plan.converts,
        "tasks": list(plan.mixture) if _by_task(plan) else [],
        "head": max(map(_head, every)),
        "layers": max(layers) if len(layers) == len(every) else None,
    }


def _head(method: Method) -> int:
    """How wide an attention head of the twin must be for the method's own numbers."""
    return 16 if method.full else methods.twin_head(methods.method(method.peft_type), method.options())


def _task_facts(plan: FineTunePlan) -> dict[str, Any]:
    kind = KINDS[plan.task]
    named = ROW_COLUMNS.get(plan.data.format, ())
    return {
        "kind": kind,
        "asks": _ASKS.get(kind, ("prompt",)),
        "what_infer_does": _WHAT_INFER_DOES.get(plan.task, "Go on from prompts"),
        "trainer_type": {"language": "SFTTrainer", "seq2seq": "Seq2SeqTrainer"}.get(kind, "Trainer"),
        "task_title": TITLES[plan.task],
        "asked": _ASKED.get(kind, '--prompt "Hello"'),
        "label_count": len(next(iter(plan.alone().values())).data.labels),
        "task_type": plan.task_type,
        "model_class": MODEL_CLASSES[plan.task_type],
        "language": kind == "language",
        "chat": plan.task in ("chat", "classification"),
        "classification": plan.task == "classification",
        "labelled": plan.task in LABELLED,
        "labelled_head": kind == "classifier",
        "new_head": kind in ("classifier", "answers"),
        "column": {name: f"{name.upper()}_COLUMN" for name in named},
        "column_settings": [
            {"setting": f"{name.upper()}_COLUMN", "value": plan.data.columns.get(name, name)} for name in named
        ],
    }


def _label_names(plan: FineTunePlan) -> dict[str, str]:
    """By what name a script has the labels: its setting, or the part of it that belongs to one adapter."""
    own = any(each.labels is not None for each in plan.adapters.values())
    return {"labels_name": "labels" if own else "LABELS", "labels_setting": "LABELS_OF" if own else "LABELS"}


def _step_facts(plan: FineTunePlan, own_forward: bool) -> dict[str, Any]:
    """How batches are made, how the loss is worked out, and when the model is evaluated."""
    labelled = plan.training.loss_path == "labelled" and not own_forward
    return {
        "packed": plan.training.packing != "none",
        "labelled_loss": labelled,
        "trainer_class": "PlainLossTrainer" if own_forward else "LabelledLossTrainer" if labelled else "SFTTrainer",
        "evaluates": "EVAL_STEPS" if plan.training.eval_steps and plan.training.patience is None else "SAVE_STEPS",
    }


def _method_facts(method: Method) -> dict[str, Any]:
    """What a script must know of the method; an option is {field of PEFT's config, setting, value}."""
    quantization = method.quantization.model_dump() if method.quantization else None
    targets = method.target_modules
    facts: dict[str, Any] = {
        "quantization": quantization,
        "full": method.full,
        "lora": method.peft_type == "LORA",
        "bottleneck": False,
        "loaded_class": "PeftModel",
        "method_name": method.peft_type,
        "method_title": _title(method),
        "result": "model" if method.full else "adapter",
        "train_dtype": "torch.float32" if method.full else "DTYPE",
        **_start_facts(method),
        "targets": targets if isinstance(targets, str) or targets is None else ", ".join(targets),
        "options": [],
        "config_class": None,
        "merges": False,
        "resumes": True,
        "prompt_learning": False,
        "own_forward": False,
        "widens": False,
        "saves_modules": False,
    }
    if method.full:
        return facts
    known = methods.method(method.peft_type)
    plain = {known.names[name]: name.upper() for name in method.first_class()}
    return facts | {
        "config_class": known.config,
        "bottleneck": known.library == "adapters",
        "loaded_class": "torch.nn.Module" if known.library == "adapters" else "PeftModel",
        "merges": methods.merges(known, method.config),
        "resumes": methods.resumes(known, method.config),
        "prompt_learning": known.prompt_learning,
        "own_forward": known.own_forward,
        "widens": method.quantization is not None and method.quantization.bits in known.widens,
        "saves_modules": "modules_to_save" in known.fields,
        "options": [
            {"field": field, "setting": plain.get(field) or settings.setting_of(field), "value": value}
            for field, value in method.options().items()
            # The scripts start LoftQ themselves, from a plain adapter.
            if not (facts["loftq"] and field in ("init_lora_weights", "loftq_config"))
        ],
    }


def _start_facts(method: Method) -> dict[str, Any]:
    """A start that looks at rows; `default_start` is the same where the plan leaves its own configuration to PEFT."""
    init = str(method.config.get("init_lora_weights"))
    start = init if init in starts.FROM_ROWS else None
    return {
        "loftq": init == starts.LOFTQ,
        "start": start,
        "looks_at_rows": start in ("corda", "lora_ga"),
        "default_start": None if method.config.get(f"{start}_config") else start,
    }


def _methods_facts(plan: FineTunePlan) -> dict[str, Any]:
    """What the methods of several adapters have in common, and the configuration of each where they have their own."""
    each = {name: _method_facts(one.method) for name, one in plan.alone().items()}
    return {
        "merges": any(facts["merges"] for facts in each.values()),
        "resumes": all(facts["resumes"] for facts in each.values()),
        "adalora": any(facts["method_name"] == "ADALORA" for facts in each.values()),
        "adapter_methods": [{"name": name, **facts} for name, facts in each.items()],
        "config_classes": sorted({facts["config_class"] for facts in each.values() if facts["config_class"]}),
    }


def _title(method: Method) -> str:
    titles = {"LORA": "QLoRA" if method.quantization else "LoRA", methods.FULL: "Full"}
    return titles.get(method.peft_type, method.peft_type)


def _refuse_unread(data: Data) -> None:
    """Rows must be as the scripts read them: plain columns, roles and labels by their usual names."""
    read = ROW_COLUMNS.get(data.format, ())
    odd = [name for name, column in data.columns.items() if name not in read or "." in column]
    odd += ["roles"] if data.roles else []
    odd += ["label_names"] if data.label_names else []
    if odd:
        raise PeftsmithError(
            f"The scripts do not read rows by data.{'columns.' if odd[0] in data.columns else ''}{odd[0]}",
            value=odd,
            next_step="Run prepare_dataset: it writes the rows with the usual names; then leave these fields out.",
        )


def _reader(name: str) -> str:
    path = PurePosixPath(name)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise PeftsmithError(
            "No reader exists for this kind of data file",
            value=name,
            next_step=f"Use one of {', '.join(_READERS)}.",
        )
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise PeftsmithError(
            "A data file must lie in the project's folder",
            value=name,
            next_step="Copy it there; name it relative to it.",
        )
    return reader


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(assets.folder("templates")),
        undefined=StrictUndefined,
        finalize=_only_filtered,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # these are scripts and Markdown; the filters are the escape
    )
    environment.filters = {
        "literal": literal.literal,
        "setting": literal.setting,
        "inert": literal.inert,
        "name": literal.name,
        "word": literal.word,
        "plain": literal.plain,
        "imports": literal.imports,
        "version": _version,
    }
    environment.globals = {}
    return environment


def _only_filtered(value: Any) -> str:
    """Jinja calls this on every printed expression: what no filter has passed stops the rendering."""
    if not isinstance(value, literal.Safe):
        raise TypeError(f"a template prints an unfiltered value of type {type(value).__name__}")
    return value


def _version(value: Any) -> literal.Safe:
    if not isinstance(value, str) or not _VERSION.fullmatch(value):
        raise PeftsmithError("This is not a version", value=files.clean(str(value), 80), next_step="Repair the pins.")
    return literal.Safe(value)
