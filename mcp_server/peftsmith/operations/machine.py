"""Operations on what there is to run on, and on files before they leave it.

Knows: parameters and descriptions of looking at the machine, making an environment, scanning for secrets.
Does not know: how it is done: every body resolves its paths, imports its stage and calls one function.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftsmith import files
from peftsmith.operations.parameters import Project, Result, result_of


def inspect_machine(project: Project = ".") -> Result:
    """What there is to run on: processors, memory, GPUs, free disk, and the training environments (other Pythons
    with torch, transformers, peft and trl) that were found, each with its versions and problems."""
    from peftsmith.machine import environment, hardware

    root = files.resolve(project)
    machine = hardware.probe(root)
    found = environment.find(root)
    return result_of(
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
    return result_of([], run=run.to_json())


def scan_secrets(path: Annotated[str, Field(description="File or folder to look through.")] = ".") -> Result:
    """Look for keys, tokens and passwords in a file or folder. Shows where and of which kind, never the value."""
    from peftsmith import secrets

    report = secrets.scan(files.resolve(path))
    return result_of(report.findings, scanned_files=report.scanned)
