"""Everything peftsmith can be asked to do, once: the MCP tools and the CLI commands are made from these functions.

Knows: which operations there are, in which order, and how a client may treat each.
Does not know: their parameters and descriptions (one module a stage), nor how anything is done.
Every function returns plain JSON data with `findings` first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peftsmith.operations.data import audit_dataset, prepare_dataset, show_dataset, write_loader
from peftsmith.operations.estimates import estimate_memory, estimate_time
from peftsmith.operations.machine import inspect_machine, make_environment, scan_secrets
from peftsmith.operations.model import find_target_modules, inspect_adapter, inspect_model
from peftsmith.operations.parameters import Result
from peftsmith.operations.project import apply_fix, check_project, generate_project, plan_finetune
from peftsmith.operations.runs import diagnose_failure, get_run, list_runs, start_run, stop_run


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
