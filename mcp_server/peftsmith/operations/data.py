"""Operations on data sets.

Knows: parameters and descriptions of the audit, the look at rows, the splits and loaders of one's own.
Does not know: how it is done: every body resolves its paths, imports its stage and calls one function.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from peftsmith import files
from peftsmith.operations.parameters import (
    Columns,
    DataRevision,
    Format,
    LabelNames,
    Result,
    Roles,
    Rows,
    Split,
    result_of,
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
    return result_of([*rows.findings, *report.findings], audit=report.to_json())


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
    return result_of(
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
    return result_of([*rows.findings, *done.findings], prepared=done.to_json())


def write_loader(
    folder: Annotated[str, Field(description="Folder for the two files.")] = ".",
    name: Annotated[str, Field(description="Name of the Python module.")] = "my_loader",
) -> Result:
    """Write a loader for sources that are read no other way: a Python file with rows(path) to change, and its test.
    prepare_dataset runs it in a process of its own."""
    from peftsmith.data import loader

    made = loader.write(files.resolve(folder), name)
    return result_of([], files=[str(path) for path in made])
