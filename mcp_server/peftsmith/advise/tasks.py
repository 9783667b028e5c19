"""Which task a plan is for: what the rows are like, and what the base model can do.

Knows: the task of each format on a decoder, an encoder and an encoder-decoder; which formats a task reads.
Does not know: the rows themselves (data/), or what follows from a task (recommend.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.knowledge import methods
from peftsmith.plan import TASK_FORMATS, TASK_TYPES, Task
from peftsmith.plan_parts import DataFormat

if TYPE_CHECKING:
    from peftsmith.data.formats import Detected
    from peftsmith.model.anatomy import Anatomy

Kind = Literal["decoder", "encoder", "encoder-decoder"]
_TASKS: Mapping[tuple[DataFormat, Kind], Task] = {
    ("messages", "decoder"): "chat",
    ("prompt_completion", "decoder"): "chat",
    ("text", "decoder"): "text",
    ("classification", "decoder"): "classification",
    ("classification", "encoder"): "sequence_classification",
    ("classification", "encoder-decoder"): "sequence_classification",
    ("token_classification", "decoder"): "token_classification",
    ("token_classification", "encoder"): "token_classification",
    ("question_answering", "decoder"): "question_answering",
    ("question_answering", "encoder"): "question_answering",
    ("question_answering", "encoder-decoder"): "question_answering",
    ("seq2seq", "encoder-decoder"): "seq2seq",
}
# Where the base has no chat template.
_PLAIN: Mapping[Task, Task] = {"chat": "completion", "classification": "sequence_classification"}
# Fields whose column the scripts look up in the plan; all others they read under their own names.
_NAMED = ("text", "label", "tokens", "tags", "question", "context", "answers", "source", "target")
# Fields that the scripts do not read at all: what they say would be lost.
_UNREAD = {"classification": ("second",), "question_answering": ("answer_start",), "seq2seq": ("context",),
           "text": ("prompt",)}  # fmt: skip


def kind_of(anatomy: Anatomy) -> Kind:
    """What sort of model the base is, by its config and by the classes that transformers has for it."""
    if anatomy.config.get("is_encoder_decoder") is True:
        return "encoder-decoder"
    not_causal = any(each.id == "model.architecture.not_causal" for each in anatomy.findings)
    return "encoder" if not_causal or methods.supports("CAUSAL_LM", anatomy.model_type) is False else "decoder"


def choose(detected: Detected, anatomy: Anatomy, task: Task | None, goal: str | None = None) -> Task:
    """The task that was asked for, else the one of these rows on this base.

    Raises PeftsmithError where the scripts of the task do not read such rows, and where the base cannot do it.
    """
    found = task or _chosen(detected, anatomy, goal)
    if detected.format not in TASK_FORMATS[found]:
        raise _unread(detected.format, found)
    _refuse_lost_columns(detected)
    if methods.supports(TASK_TYPES[found], anatomy.model_type) is False:
        raise PeftsmithError(
            f"transformers has no {anatomy.model_type} model for {found}",
            value=anatomy.id,
            next_step="Take another base: a decoder for text, an encoder-decoder for seq2seq, either for classes.",
        )
    return found


def _chosen(detected: Detected, anatomy: Anatomy, goal: str | None) -> Task:
    kind = kind_of(anatomy)
    found = _TASKS.get((detected.format, kind))
    if found is None:
        raise PeftsmithError(
            f"Rows of the format {detected.format} do not go with the {kind} {anatomy.model_type}",
            value=anatomy.id,
            next_step=f"Take another base, or prepare rows: {_formats_for(kind)}.",
        )
    if kind == "decoder" and anatomy.chat_template is None and detected.format != "messages":
        found = _PLAIN.get(found, found)
    if found == "text" and goal == "knowledge":
        return "continued_pretraining"
    return found


def _refuse_lost_columns(detected: Detected) -> None:
    unread = _UNREAD.get(detected.format, ())
    for name, column in detected.mapping.columns.items():
        nested = "." in column  # scripts look a column up as it is written
        if name in unread or nested or (column != name and name not in _NAMED):
            raise PeftsmithError(
                f"Training scripts do not read the column {files.clean(column, 60)!r} of {detected.format} rows "
                f"({detected.reason})",
                next_step="Run prepare_dataset first, with format and columns where it guesses otherwise, and plan "
                "with what it writes.",
            )


def _formats_for(kind: Kind) -> str:
    return ", ".join(name for name, each in _TASKS if each == kind)


def _unread(format: DataFormat, task: Task) -> PeftsmithError:
    return PeftsmithError(
        f"Training scripts for {task} do not read rows of the format {format}",
        next_step="Run prepare_dataset first and plan with the rows that it writes."
        if format in ("sharegpt", "alpaca")
        else f"Give rows of the format {' or '.join(TASK_FORMATS[task])}, or another task.",
    )
