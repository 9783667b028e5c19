"""plan.yaml: what a person wants, and nothing that was worked out.

Knows: the fields of a fine-tuning plan, their limits, what silence means, migrations.
Does not know: YAML (plan_yaml.py), what was resolved from it (lock.py), or whether its values are wise (advise/ and
project/).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from peftsmith import files, plan_yaml
from peftsmith.errors import PeftsmithError
from peftsmith.knowledge import methods, starts
from peftsmith.plan_adapters import MOST, RESERVED, Adapter, AdapterName, Share
from peftsmith.plan_method import Method, Part
from peftsmith.plan_migrations import MIGRATIONS
from peftsmith.plan_parts import Base, Data, DataFormat, Training

SCHEMA_VERSION = 2
PLAN_FILE = "plan.yaml"
_LARGEST_PLAN = 1 << 20
ANSWER_TOKENS = 30  # as transformers' run_qa.py
Task = Literal[
    "chat", "completion", "text", "continued_pretraining", "classification", "sequence_classification",
    "token_classification", "question_answering", "seq2seq",
]  # fmt: skip
_OPEN = ("method.config", "data.columns", "data.roles")  # mappings whose keys are not the plan's own names
ServingTarget = Literal["transformers", "vllm", "sglang", "llama.cpp", "ollama"]


class FineTunePlan(Part):
    """The whole of plan.yaml. The effective batch is batch_size x gradient_accumulation (one process)."""

    schema_version: Literal[2] = 2
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    task: Task
    base: Base
    data: Data
    method: Method = Field(default_factory=Method)
    adapters: Annotated[dict[AdapterName, Adapter], Field(max_length=MOST)] = {}
    mixture: Annotated[dict[AdapterName, Share], Field(max_length=MOST)] = {}
    training: Training = Training()
    serving: ServingTarget = "transformers"
    tracking: Literal["none", "tensorboard"] = "none"

    @model_validator(mode="before")
    @classmethod
    def _silence(cls, document: Any) -> Any:
        """What silence means where the general default would not work, or would have no effect."""
        training = document.get("training", {}) if isinstance(document, Mapping) else None
        if not isinstance(training, Mapping):
            return document
        implied: dict[str, Any] = {}
        if document.get("task") == "continued_pretraining":
            implied["packing"] = "wrapped"
        if training.get("packing", implied.get("packing", "none")) != "none":
            implied["group_by_length"] = False
        if not _can_checkpoint(document.get("method")):
            implied["gradient_checkpointing"] = False
        if document.get("task") == "question_answering":
            length = training.get("max_length", Training().max_length)
            implied["stride"] = length // 4 if isinstance(length, int) else None
            implied["max_answer_tokens"] = ANSWER_TOKENS
        return {**document, "training": {**implied, **training}}

    @model_validator(mode="after")
    def _task_fits_data(self) -> FineTunePlan:
        if self.data.format not in TASK_FORMATS[self.task]:
            wanted = " or ".join(TASK_FORMATS[self.task])
            raise ValueError(f"task {self.task} goes with data.format {wanted}, not {self.data.format}")
        sets = [each.labels for each in self.adapters.values() if each.labels is not None] or [self.data.labels]
        if self.task in LABELLED and min(len(set(each)) for each in sets) < 2:
            raise ValueError(f"task {self.task} needs at least two different data.labels")
        rendered = self.task in ("chat", "classification")
        if not rendered and (self.training.chat_template or self.training.loss_on != "completion"):
            raise ValueError(f"training.chat_template and training.loss_on are for chats, not for task {self.task}")
        windows = self.training.stride is not None or self.training.max_answer_tokens is not None
        if self.task != "question_answering" and (windows or self.data.unanswerable):
            raise ValueError(f"stride, max_answer_tokens and unanswerable are not for task {self.task}")
        if self.training.stride is not None and self.training.stride * 2 > self.training.max_length:
            raise ValueError("training.stride must be at most half of training.max_length: windows would hardly move")
        if self.task == "question_answering" and None in (self.training.stride, self.training.max_answer_tokens):
            raise ValueError("question answering needs training.stride and training.max_answer_tokens: leave them out")
        if self.task_type != "CAUSAL_LM":
            chosen = {"pad_token": None, "packing": "none", "loss_path": "fused"}
            odd = [name for name, usual in chosen.items() if getattr(self.training, name) != usual]
            if odd:
                raise ValueError(f"training.{odd[0]} is for language models, not for task {self.task}")
        if self.training.patience is not None and self.data.eval is None:
            raise ValueError("training.patience needs rows to evaluate: data.eval")
        return self

    @model_validator(mode="after")
    def _rows_in_one_place(self) -> FineTunePlan:
        if self.adapters and self.mixture:
            raise ValueError("adapters are trained apart, a mixture together: a plan has one of the two")
        several: Mapping[str, Adapter | Share] = self.adapters or self.mixture
        if not several:
            if self.data.train is None:
                raise ValueError("data.train is missing: the file with the rows to train on")
            return self
        named = [name for name in ("train", "eval", "test") if getattr(self.data, name) is not None]
        if named:
            raise ValueError(f"with several data sets, each names its own files: data.{named[0]} must go")
        if len(several) < 2:
            raise ValueError("adapters and mixture are for two data sets or more; one stands in data")
        reserved = sorted(RESERVED & set(self.adapters))
        if reserved:
            raise ValueError(f"an adapter cannot be called {reserved[0]}: PEFT or merge.py give that name themselves")
        for name, each in self.adapters.items():
            if each.method and each.method.quantization != self.method.quantization:
                raise ValueError(f"all adapters share one base: {name} must have the quantization of method")
        for field in ("eval", "test", *(("system_prompt", "labels") if self.adapters else ("weight",))):
            without = [name for name, each in several.items() if getattr(each, field) is None]
            if 0 < len(without) < len(several):
                raise ValueError(f"either every data set has its own {field} or none; {without[0]} has none")
        return self

    @property
    def task_type(self) -> str:
        """PEFT's name of the task."""
        return TASK_TYPES[self.task]

    @property
    def converts(self) -> bool:
        """Is an adapter that began by changing the base saved as plain LoRA of twice the rank?"""
        if self.method.full:
            return False
        known, quantised = methods.method(self.method.peft_type), self.method.quantization is not None
        return starts.converts(known, self.method.config, quantised=quantised, new_head=self.new_head)

    @property
    def new_head(self) -> bool:
        """Does the base lack the head, so that it is trained whole?"""
        return self.task_type in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")

    def servers(self) -> tuple[str, ...]:
        """Who loads the adapter as it is saved. One that must change its base again needs PEFT."""
        known = methods.method(self.method.peft_type)
        alone = starts.alters_base(known, self.method.config) and not self.converts
        rounded = self.method.config.get("init_lora_weights") == starts.LOFTQ  # fits the base in 4 bits alone
        return ("transformers",) if alone or rounded else known.served

    def alone(self) -> dict[str, FineTunePlan]:
        """Name of an adapter, or of a part of the mixture -> the plan that has it alone. A plan without either is the
        only one, by no name: ""."""
        if not self.adapters and not self.mixture:
            return {"": self}
        found = {}
        for name, share in self.mixture.items():
            files = {"train": share.train, "eval": share.eval, "test": share.test}
            found[name] = self.model_copy(update={"mixture": {}, "data": self.data.model_copy(update=files)})
        for name, own in self.adapters.items():
            prompt = self.data.system_prompt if own.system_prompt is None else own.system_prompt
            rows: dict[str, Any] = {"train": own.train, "eval": own.eval, "test": own.test, "system_prompt": prompt}
            rows |= {} if own.labels is None else {"labels": own.labels}
            changed = {"adapters": {}, "data": self.data.model_copy(update=rows), "method": own.method or self.method}
            found[name] = self.model_copy(update=changed)
        return found

    def splits(self) -> dict[str, str]:
        """Every file of rows by its split: train, eval, test, or of several data sets billing.train and so on."""
        found: dict[str, str] = {}
        for name, one in self.alone().items():
            prefix = f"{name}." if name else ""
            given = {"train": one.data.train, "eval": one.data.eval, "test": one.data.test}
            found |= {f"{prefix}{split}": file for split, file in given.items() if file is not None}
        return found


# The formats that the scripts of a task read (prepare_dataset writes the others so).
TASK_FORMATS: Mapping[Task, tuple[DataFormat, ...]] = {
    "chat": ("messages", "prompt_completion"),
    "completion": ("prompt_completion",),
    "text": ("text",),
    "continued_pretraining": ("text",),
    "classification": ("classification",),
    "sequence_classification": ("classification",),
    "token_classification": ("token_classification",),
    "question_answering": ("question_answering",),
    "seq2seq": ("seq2seq",),
}
LABELLED: tuple[Task, ...] = ("classification", "sequence_classification", "token_classification")
TASK_TYPES: Mapping[Task, str] = {
    "chat": "CAUSAL_LM",
    "completion": "CAUSAL_LM",
    "text": "CAUSAL_LM",
    "continued_pretraining": "CAUSAL_LM",
    "classification": "CAUSAL_LM",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
    "seq2seq": "SEQ_2_SEQ_LM",
}


def load(path: Path) -> FineTunePlan:
    """The plan in a file (or in a folder's plan.yaml), migrated to the present schema in memory."""
    return parse(files.read_text(_plan_file(path), largest=_LARGEST_PLAN), name=str(path))


def parse(text: str, *, name: str = PLAN_FILE) -> FineTunePlan:
    """The plan that `text` (YAML 1.2, no anchors) describes; every fault is named with its field."""
    return validate(migrate(plan_yaml.read(text, name)), name=name)


def validate(document: Mapping[str, Any], *, name: str = PLAN_FILE) -> FineTunePlan:
    """The plan in plain data; a PeftsmithError lists every wrong field, unknown keys with the nearest known one."""
    try:
        return FineTunePlan.model_validate(document)
    except ValidationError as error:
        faults = "; ".join(_fault(item) for item in error.errors(include_url=False)[:8])
        raise PeftsmithError(
            f"{Path(name).name} is not a valid plan: {faults}",
            next_step="Correct these fields; the JSON Schema in docs/schema/plan.schema.json lists them all.",
        ) from error


def migrate(document: dict[str, Any]) -> dict[str, Any]:
    """The document brought to SCHEMA_VERSION one version at a time."""
    version = document.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise PeftsmithError(
            "The plan does not say its schema_version",
            value=version,
            next_step=f"Write `schema_version: {SCHEMA_VERSION}` at its top.",
        )
    if version > SCHEMA_VERSION:
        raise PeftsmithError(
            f"The plan is of a newer schema than this peftsmith knows ({SCHEMA_VERSION})",
            value=version,
            next_step="Update peftsmith.",
        )
    while version < SCHEMA_VERSION:
        if version not in MIGRATIONS:
            raise PeftsmithError("No migration exists from this schema version", value=version, next_step="Plan again.")
        document = {**MIGRATIONS[version](dict(document)), "schema_version": version + 1}
        version += 1
    return document


def dump(plan: FineTunePlan, comments: Mapping[str, str] | None = None) -> str:
    """YAML for a plan; `comments` maps a dotted field ("method.rank") to a remark that stands at its line's end."""
    document = plan.model_dump(mode="json")
    # Most plans have one data set and no need of these words.
    silent = [name for name in ("adapters", "mixture") if not document[name]]
    return plan_yaml.written({name: value for name, value in document.items() if name not in silent}, comments or {})


def edit(text: str, changes: Mapping[str, Any]) -> str:
    """`text` with dotted fields set to new values and every comment kept; the result is a valid plan."""
    edited = plan_yaml.edited(text, changes)
    parse(edited)
    return edited


def json_schema() -> dict[str, Any]:
    """The published JSON Schema of plan.yaml."""
    schema = FineTunePlan.model_json_schema()
    known: dict[str, Any] = schema["$defs"]["Method"]["properties"]["peft_type"]
    known["enum"] = [*methods.names(), *methods.bottlenecks(), methods.FULL]
    return schema


def flatten(plan: FineTunePlan) -> dict[str, Any]:
    """The plan as dotted fields to plain values; a field of PEFT's config is one value, whatever is in it."""
    flat: dict[str, Any] = {}

    def walk(value: Any, prefix: str) -> None:
        if isinstance(value, dict) and value and not any(f".{each}." in f".{prefix}" for each in _OPEN):
            for key, item in value.items():
                walk(item, f"{prefix}.{key}" if prefix else key)
        else:
            flat[prefix] = value

    walk(plan.model_dump(mode="json"), "")
    return flat


def _can_checkpoint(method: Any) -> bool:
    """Whether a document's method trains with checkpointing; a document that is wrong is refused elsewhere."""
    try:
        return methods.method(method["peft_type"]).checkpointing
    except (PeftsmithError, KeyError, TypeError, AttributeError):
        return True


def _plan_file(path: Path) -> Path:
    return path / PLAN_FILE if path.is_dir() else path


def _fault(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "the plan"
    if error["type"] == "extra_forbidden":
        import difflib

        known = [*flatten_fields(FineTunePlan), *(dotted.split(".")[-1] for dotted in flatten_fields(FineTunePlan))]
        near = difflib.get_close_matches(str(error["loc"][-1]), known, 1)
        return f"unknown key {where!r}" + (f", did you mean {near[0]!r}?" if near else "")
    shown = repr(error.get("input"))
    return f"{where}: {error['msg']}" + (f" (got {shown[:80]})" if error["type"] != "missing" else "")


def flatten_fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted field name of a plan model, optional parts included."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                names += flatten_fields(candidate, f"{prefix}{name}.")
    return names
