"""The parts of a plan that every task has: its base, its rows, and how it trains.

Knows: their fields, limits, and what within one part contradicts itself.
Does not know: the method (plan_method.py), several adapters (plan_adapters.py), or what goes together (plan.py).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from peftsmith.plan_method import Part, ShortText, Text

DataFormat = Literal[
    "messages", "sharegpt", "alpaca", "prompt_completion", "text", "preference", "kto", "classification",
    "token_classification", "question_answering", "seq2seq",
]  # fmt: skip
Packing = Literal["none", "bfd", "bfd_split", "wrapped"]


class Base(Part):
    """The base model: a hub id with the commit to use, or a local folder (then no revision)."""

    model: ShortText
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _remote_code_needs_a_commit(self) -> Base:
        if self.trust_remote_code and self.revision is None:
            raise ValueError("trust_remote_code needs a pinned commit in base.revision")
        return self


class Data(Part):
    """Where the rows are (paths relative to the project) and how to read them.

    With `adapters` or `mixture` the files stand there.
    `unanswerable`: a question may have no answer in its context, so that no answer is an answer too.
    """

    train: ShortText | None = None
    eval: ShortText | None = None
    test: ShortText | None = None
    format: DataFormat
    text_column: ShortText = "text"
    label_column: ShortText = "label"
    columns: dict[ShortText, ShortText] = {}
    roles: dict[ShortText, ShortText] = {}
    label_names: Annotated[list[ShortText], Field(max_length=1000)] = []
    labels: Annotated[list[ShortText], Field(max_length=1000)] = []
    system_prompt: Text | None = None
    unanswerable: bool = False


class Training(Part):
    """Lengths in tokens, batch sizes in rows, warmup as a share of all steps, the rest as TRL's SFTConfig names it.

    `loss_on`: the last answer, or every turn of the assistant's (which the chat template must mark). `chat_template`
    (a .jinja file in the project) and `pad_token` replace the tokenizer's own. Question answering reads a long context
    in windows of max_length that share `stride` tokens, and gives answers of at most `max_answer_tokens`.

    `packing`: rows share sequences of max_length, so that nothing is padding: bfd keeps each row whole (a longer one is
    cut), bfd_split cuts longer rows into several, wrapped lays texts end to end. batch_size then counts sequences.
    `loss_path`: fused is the trainer's own, in tiles of the vocabulary; labelled works out logits at the learnt
    positions only, and holds them. `attention`: auto is transformers' choice. `eval_steps`: null means at each save.
    `patience`: stop after so many evaluations without a gain of `threshold`, and keep the best; null means never.
    """

    max_length: Annotated[int, Field(ge=8, le=1_048_576)] = 1024
    loss_on: Literal["completion", "assistant"] = "completion"
    chat_template: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,80}\.jinja$")] | None = None
    pad_token: ShortText | None = None
    stride: Annotated[int, Field(ge=0)] | None = None
    max_answer_tokens: Annotated[int, Field(ge=1)] | None = None
    epochs: Annotated[float, Field(gt=0, le=1000)] = 1.0
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 8
    gradient_accumulation: Annotated[int, Field(ge=1, le=65536)] = 1
    learning_rate: Annotated[float, Field(gt=0, le=1.0)] = 2e-4
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    optimizer: Literal["adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = "adamw_torch_fused"
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    gradient_checkpointing: bool = True
    packing: Packing = "none"
    group_by_length: bool = True
    loss_path: Literal["fused", "labelled"] = "fused"
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "auto"
    compile: bool = False
    dataloader_workers: Annotated[int, Field(ge=0, le=64)] = 0
    logging_steps: Annotated[int, Field(ge=1)] = 10
    save_steps: Annotated[int, Field(ge=1)] = 200
    eval_steps: Annotated[int, Field(ge=1)] | None = None
    patience: Annotated[int, Field(ge=1, le=1000)] | None = None
    threshold: Annotated[float, Field(ge=0)] = 0.0
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0

    @model_validator(mode="after")
    def _best_is_a_checkpoint(self) -> Training:
        """The trainer can only go back to a checkpoint that was evaluated."""
        if self.patience is not None and self.eval_steps not in (None, self.save_steps):
            raise ValueError("with patience each evaluation is also a checkpoint: eval_steps must be left out")
        if self.threshold and self.patience is None:
            raise ValueError("threshold is the gain that patience waits for: it needs patience")
        return self
