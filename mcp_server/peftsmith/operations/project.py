"""Operations from the plan to a proven project.

Knows: parameters and descriptions of planning, generating, checking, and applying an offered fix.
Does not know: how it is done: every body resolves its paths, imports its stage and calls one function.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from peftsmith import files
from peftsmith.operations.parameters import Model, Project, Result, Revision, ServingTarget, Task, result_of


def plan_finetune(
    project: Annotated[
        str,
        Field(description="Folder for the project; a plan in it that was edited or generated from is not replaced."),
    ],
    model: Model,
    data: Annotated[str, Field(description="The training rows.")],
    test: Annotated[str | None, Field(description="Rows kept for the test.")] = None,
    eval: Annotated[str | None, Field(description="Rows for held-out loss during training.")] = None,
    others: Annotated[
        dict[str, str] | None,
        Field(description="Rows of further tasks for this base, by name: each gets an adapter of its own."),
    ] = None,
    other_tests: Annotated[dict[str, str] | None, Field(description="Rows kept for their tests, by name.")] = None,
    mix: Annotated[bool, Field(description="One adapter for all tasks together, instead of one each.")] = False,
    revision: Revision = None,
    task: Annotated[Task | None, Field(description="By rows and base when left out.")] = None,
    method: Annotated[
        str | None,
        Field(description="Only to overrule the recommendation: lora, qlora, full, or any PEFT type such as ia3."),
    ] = None,
    reason: Annotated[str | None, Field(description="Why all weights must train; full needs it.")] = None,
    config: Annotated[
        dict[str, Any] | None, Field(description="Fields of the method's PEFT config, by PEFT's names.")
    ] = None,
    serving: ServingTarget = "transformers",
    goal: Annotated[
        Literal["style", "knowledge", "changing_facts"] | None, Field(description="What it is to learn.")
    ] = None,
    forgetting: Annotated[Literal["little", "any"] | None, Field(description="How much the base may forget.")] = None,
    adapters: Annotated[int | None, Field(ge=1, description="How many adapters one server holds at a time.")] = None,
    gpu: Annotated[str | None, Field(description="GPU to train on, such as L4; this machine's when left out.")] = None,
    memory_gib: Annotated[
        float | None, Field(gt=0, description="Memory of the training device; the GPU's or machine's when left out.")
    ] = None,
    base_score: Annotated[
        float | None, Field(description="What the base with its best prompt reached in an evaluation.")
    ] = None,
    wanted_score: Annotated[float | None, Field(description="What would be good enough, in the same measure.")] = None,
    system_prompt: Annotated[
        str | None, Field(description="System message for every row (classification: the instruction).")
    ] = None,
    text_column: str = "text",
    label_column: str = "label",
) -> Result:
    """Write plan.yaml and plan.lock.json from the model, the data and the machine, with the reason, the source and
    what would change it for every recommended value; compare alternatives (memory, time, share, serving); name the
    questions whose answers would change the plan; say when not to train. Costs nothing."""
    from peftsmith.advise import planner
    from peftsmith.advise.facts import Intent

    intent = Intent(
        method=method,
        serving=serving,
        goal=goal,
        forgetting=forgetting,
        adapters=adapters,
        reason=reason,
        config=config or {},
        mix=mix,
    )
    wish = planner.Wish(
        model=model,
        data=files.resolve(data),
        test=files.resolve(test) if test else None,
        eval=files.resolve(eval) if eval else None,
        others={name: files.resolve(path) for name, path in (others or {}).items()},
        other_tests={name: files.resolve(path) for name, path in (other_tests or {}).items()},
        revision=revision,
        task=task,
        intent=intent,
        gpu=gpu,
        memory_gib=memory_gib,
        base_score=base_score,
        wanted_score=wanted_score,
        system_prompt=system_prompt,
        text_column=text_column,
        label_column=label_column,
    )
    made = planner.make(files.resolve(project, must_exist=False), wish)
    return result_of(
        made.findings,
        plan=made.plan.model_dump(mode="json"),
        why=made.why,
        estimate=made.estimate,
        alternatives=made.alternatives,
        questions=made.questions,
    )


def generate_project(project: Project) -> Result:
    """Write the training project that plan.yaml describes: train, evaluate, infer and merge scripts, a notebook,
    pinned requirements, .env.example, .gitignore, README. Edits made by hand are merged with the plan's changes; where
    both change the same lines, that is shown and nothing is written."""
    from peftsmith.project import generate

    written = generate.generate(files.resolve(project))
    return result_of(written.findings, written=written.files)


def check_project(
    project: Annotated[str, Field(description="The project's folder, or a training script or notebook of your own.")],
    twin: Annotated[bool, Field(description="Also run the scripts on a small model of the same architecture.")] = True,
) -> Result:
    """Prove the project before it costs anything: scripts parse, every argument exists in the installed libraries, no
    secrets, settings equal the plan, and the twin: the same scripts on a cut-down model with real rows, trained two
    steps, saved, reloaded, merged, generating. Returns the digest that start_run needs. A script (.py) or notebook
    (.ipynb) that peftsmith did not write is read, not run: findings with line numbers, and a diff of pure renames."""
    from peftsmith.project import check

    checked = check.check(files.resolve(project), twin=twin)
    return result_of(checked.findings, digest=checked.digest, proofs=checked.proofs)


def apply_fix(
    project: Project,
    finding_id: Annotated[str, Field(description="A finding of the last check_project with `patch` in its evidence.")],
    confirm: Annotated[bool, Field(description="Set to true to write it; else only shown.")] = False,
) -> Result:
    """Make the change of plan.yaml that check_project offered for a finding about the loss mask (a longer max_length,
    a template with generation blocks, a pad token of its own). Then run generate_project and check_project again."""
    from peftsmith.project import mask

    return result_of([], **mask.apply(files.resolve(project), finding_id, confirm=confirm))
