"""What a plan needs to know of the rows: how many, how long, how many tokens carry loss.

Knows: what each task's script makes of a row, counted with the base's own tokenizer.
Does not know: what is wrong with rows (data/audit.py), or what follows from their numbers (rules).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from peftsmith.advise.facts import Rows
from peftsmith.data.examples import Answered, AnyExample, Chat, Classified, Pair, Plain, Tagged
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding
from peftsmith.plan import Task
from peftsmith.plan_method import LONGEST_TEXT

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from peftsmith.data.formats import Detected
    from peftsmith.model.anatomy import Anatomy

AS_CHATS: tuple[Task, ...] = ("chat", "classification")
# What an audit says of a format that it does not read, though the task's script does.
_UNREAD = ("data.rows.unsupported", "data.file.unusable", "data.test.unusable")
_CHUNK_ROWS = 512
_LOOKED_AT = 200  # rows that must all begin with a system message for it to be theirs
_END = 1  # the token that ends a text
_FRAME = 2  # what a tokenizer puts between two texts, at most


@dataclass(frozen=True)
class Measured:
    """`rows` for the rules; `readable` of `total` rows can be used as the task needs them. `apart`: the rows of each of
    several adapters, which the rules see as one; `labels`: theirs, where they have different ones."""

    rows: Rows
    total: int
    readable: int
    findings: list[Finding]
    apart: Mapping[str, Rows] = field(default_factory=dict)
    labels: Mapping[str, list[str]] = field(default_factory=dict)


def measure(
    path: Path, detected: Detected, task: Task, anatomy: Anatomy, *, test: Path | None, system_prompt: str | None
) -> Measured:
    """Audit the rows, and count them as the task's script will read them.

    Raises PeftsmithError where rows cannot be read at all, or the base has no tokenizer.
    """
    from peftsmith.data import audit

    model = str(anatomy.folder) if anatomy.folder and not anatomy.commit else anatomy.id
    report = audit.audit(
        path,
        model=model,
        revision=anatomy.commit,
        test=test,
        max_length=anatomy.max_positions or 1 << 20,
        system_prompt=system_prompt,
        mapping=detected.mapping,
    )
    if task in AS_CHATS:
        rows = Rows(
            count=report.usable_rows,
            longest=report.tokens["max"] if report.tokens else None,
            loss_tokens=report.loss_tokens,
            total_tokens=report.tokens["total"] if report.tokens else None,
        )
        return Measured(rows, report.rows, report.usable_rows, report.findings)
    rows, total = _counted(path, detected, task, anatomy, model)
    unread = any(each.id == "data.rows.unsupported" for each in report.findings)
    found = [each for each in report.findings if not unread or each.id not in _UNREAD]
    return Measured(rows, total, rows.count, found)


def _counted(path: Path, detected: Detected, task: Task, anatomy: Anatomy, model: str) -> tuple[Rows, int]:
    from peftsmith.data import tokenizer_files
    from peftsmith.model import source

    folder = source.tokenizer_folder(source.open_model(model, anatomy.commit))
    tokenizer = tokenizer_files.load(folder).tokenizer
    longest = loss = tokens = target = count = total = unanswered = 0
    examples = _examples(path, detected, task)
    while chunk := list(islice(examples, _CHUNK_ROWS)):
        total += len(chunk)
        usable = [each for each in chunk if each is not None]
        count += len(usable)
        unanswered += sum(isinstance(each, Answered) and not each.answers for each in usable)
        for whole, trained, written in _sizes(usable, tokenizer):
            longest, target = max(longest, whole), max(target, written)
            loss, tokens = loss + trained, tokens + whole
    return Rows(count, longest or None, loss, tokens, target or None, bool(unanswered)), total


def shared_system(path: Path, detected: Detected, task: Task) -> str | None:
    """The system message that the first rows all begin with, if they do."""
    said = set()
    for example in islice(_examples(path, detected, task), _LOOKED_AT):
        prompt = getattr(example, "prompt", None)
        first = prompt[0] if isinstance(prompt, list) and prompt else {}
        said.add(first.get("content") if first.get("role") == "system" else None)
    only = said.pop() if len(said) == 1 else None
    return only if isinstance(only, str) and len(only) <= LONGEST_TEXT else None


def _examples(path: Path, detected: Detected, task: Task) -> Iterator[AnyExample | None]:
    """Each row as an example; None for one that the script could not use."""
    from peftsmith.data.formats import RowFault, read_rows, to_example

    for row in read_rows(path):
        if row.value is None:
            yield None
            continue
        try:
            example = to_example(row.value, detected.mapping)
        except RowFault:
            yield None
            continue
        if task == "completion" and not all(isinstance(row.value.get(name), str) for name in ("prompt", "completion")):
            raise PeftsmithError(
                "The base has no chat template, and the rows are conversations",
                value=f"row {row.number}",
                next_step="Take the instruct model, or give prompt and completion as plain text.",
            )
        yield example


def _sizes(examples: list[AnyExample], tokenizer: Tokenizer) -> Iterator[tuple[int, int, int]]:
    """(tokens of the longest part, tokens that carry loss, tokens of what is written or found) of each example.

    Words with tags are counted as a text with spaces: the tokenizers library takes lists of words only beside numpy.
    """
    pairs = [_texts(each) for each in examples]
    asked = tokenizer.encode_batch([pair[0] for pair in pairs])
    answered = tokenizer.encode_batch([pair[1] for pair in pairs], add_special_tokens=False)
    for example, first, second in zip(examples, asked, answered, strict=True):
        before, after = len(first.ids), len(second.ids) + _END
        if isinstance(example, Pair):
            yield max(before, after), after, after
        elif isinstance(example, Classified):
            yield before, 1, 0
        elif isinstance(example, Answered):
            yield before + _FRAME, 2, len(second.ids)
        elif isinstance(example, Tagged):
            yield before, len(example.words), 0
        else:
            yield before + after, after, 0


def _texts(example: AnyExample) -> tuple[str, str]:
    """What is read and what is learnt; of a text without a prompt everything is learnt."""
    if isinstance(example, Pair):
        return example.source, example.target
    if isinstance(example, Classified):
        return example.text, ""
    if isinstance(example, Answered):
        return f"{example.question}\n{example.context}", "".join(example.answers[:1])
    if isinstance(example, Tagged):
        return " ".join(example.words), ""
    if isinstance(example, Plain):
        return example.prompt, example.completion
    assert isinstance(example, Chat), "no task reads preferences"
    return str(example.prompt[-1]["content"]), str(example.completion[-1]["content"])
