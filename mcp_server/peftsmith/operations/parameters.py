"""What the operations' parameters have in common, and the shape of every result.

Knows: types and descriptions that several operations use, as a model or a person reads them.
Does not know: any operation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field

from peftsmith.finding import Finding, worst_first

Result = dict[str, Any]

Project = Annotated[str, Field(description="Folder of the fine-tuning project, relative to the working folder.")]
Model = Annotated[str, Field(description="Base model: a local folder or a hub id such as owner/name.")]
Revision = Annotated[str | None, Field(description="Commit of the hub model (40 hex digits).")]
Exact = Annotated[bool, Field(description="Ask the real classes (needs a training environment).")]
Preset = Literal["query-value", "attention", "mlp", "all-linear", "experts", "everything"]
Rank = Annotated[int | None, Field(ge=1, description="16 for LoRA, PEFT's default elsewhere, when left out.")]
Method = Annotated[str, Field(description="full, lora, qlora, or any PEFT type, such as ia3 or prompt_tuning.")]

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

# As in plan.py, which takes too long to import while a server starts; a test compares them.
Task = Literal[
    "chat", "completion", "text", "continued_pretraining", "classification", "sequence_classification",
    "token_classification", "question_answering", "seq2seq",
]  # fmt: skip
ServingTarget = Literal["transformers", "vllm", "sglang", "llama.cpp", "ollama"]


def result_of(findings: Iterable[Finding], **rest: Any) -> Result:
    """Plain JSON data, the findings first and the worst of them on top."""
    return {"findings": [f.to_json() for f in worst_first(findings)], **rest}
