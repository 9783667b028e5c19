"""The facts that templates ask for, worked out of a plan and its lock.

Knows: which scripts a task has, the names of its classes and columns, and what follows from base, rows and method.
Does not know: the templates (render.py), or anything of a method by itself (method_facts.py).
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from peftsmith.errors import PeftsmithError
from peftsmith.knowledge import methods, starts
from peftsmith.lock import Lock
from peftsmith.model import catalogue
from peftsmith.plan import LABELLED, FineTunePlan
from peftsmith.plan_parts import Data
from peftsmith.project import costs, method_facts, requirements, together

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
_READERS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv"}


def facts_of(plan: FineTunePlan, lock: Lock) -> dict[str, Any]:
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
    task, method, model_type = task_facts(plan), method_facts.facts_of(first.method), str(lock.base.get("model_type"))
    # On tied embeddings PEFT wraps the head for trained tokens, and TRL's fused head reads what the wrapper lacks.
    tokens = bool(plan.method.config.get("trainable_token_indices"))
    own_forward = method["own_forward"] or tokens or model_type in _OWN_LOSS
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
        "without_router_loss": _without_router_loss(plan, model_type),
        "returns_router": plan.method.full and task["language"] and catalogue.has_experts(model_type),
        "torch_version": requirements.torch_version(),
        "body_renamed": body_renamed(plan, model_type),
        "reports_loading": task["kind"] == "answers"
        or (task["labelled_head"] and method["saves_modules"] and not plan.method.full),
        # Only LoRA's merge in PEFT can unload a module that was trained whole and has parts.
        "unwraps": method["saves_modules"] and trains_whole and not method["lora"],
        **task,
        **method,
        **together.facts(plan),
        **_label_names(plan),
        **method_facts.several(plan),
        "asked": f"--task {next(iter(plan.mixture))} {task['asked']}" if by_task(plan) else task["asked"],
        "converts": plan.converts,
        "by_task": by_task(plan),
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


def task_facts(plan: FineTunePlan) -> dict[str, Any]:
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


def by_task(plan: FineTunePlan) -> str | None:
    """The field that counts the tasks, for a method that is told which task a row is of."""
    return None if plan.method.full else methods.method(plan.method.peft_type).by_task


def _replicates(plan: FineTunePlan) -> bool:
    """Does the adapted model have more layers than the base?"""
    return bool(plan.method.config.get("layer_replication"))


def body_renamed(plan: FineTunePlan, model_type: str) -> bool:
    """Would the Auto class not find the weights that a checkpoint has? (transformers 5.23, question answering)"""
    return plan.task_type == "QUESTION_ANS" and methods.body_renamed(model_type)


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
