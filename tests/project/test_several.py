"""Several adapters on one base: plans, refusals, scripts, and the proof of the real thing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from peftsmith import files, lock, plan
from peftsmith.errors import PeftsmithError
from peftsmith.knowledge import methods
from peftsmith.project import check, drift, fitness, mask, render, twin, vet
from peftsmith.worker import client
from tests.advise import models
from tests.project import several
from tests.project.small_project import edit

LLAMA, T5 = {"model_type": "llama"}, {"model_type": "t5"}


@pytest.fixture(scope="module")
def environment(training_python):
    made = SimpleNamespace(interpreter=training_python, key="several")
    yield made
    client.stop(made)
    client.stop(made, quantise=True)


def errors(found):
    return {each.id for each in found if each.severity == "error"}


def test_each_adapter_is_a_plan_of_its_own():
    whole = plan.validate(several.with_methods("m", None, {"peft_type": "LOKR", "rank": 8, "alpha": 8}))
    alone = whole.alone()
    assert {name: (one.data.train, one.method.peft_type, one.adapters) for name, one in alone.items()} == {
        "billing": ("data/billing/train.jsonl", "LORA", {}),
        "delivery": ("data/delivery/train.jsonl", "LOKR", {}),
    }
    assert alone["billing"].data.system_prompt == "You know all about billing."
    assert list(whole.splits()) == ["billing.train", "billing.test", "delivery.train", "delivery.test"]
    assert plan.parse(plan.dump(whole)) == whole


WRONG = {
    "its own files": {"data": {"format": "prompt_completion", "train": "data/train.jsonl"}},
    "data.train is missing": {"adapters": {}},
    "two data sets or more": {"adapters": {"billing": {"train": "a.jsonl"}}},
    "cannot be called": {"adapters": {"combined": {"train": "a.jsonl"}, "other": {"train": "b.jsonl"}}},
    "pattern": {"adapters": {"../up": {"train": "a.jsonl"}, "other": {"train": "b.jsonl"}}},
    "own test or none": {"adapters": {"one": {"train": "a.jsonl", "test": "t.jsonl"}, "other": {"train": "b.jsonl"}}},
    "share one base": {
        "adapters": {
            "one": {"train": "a.jsonl", "method": {"rank": 4, "quantization": {"bits": 4}}},
            "other": {"train": "b.jsonl"},
        }
    },
}


@pytest.mark.parametrize("said", sorted(WRONG))
def test_a_plan_that_cannot_be_is_refused(said):
    with pytest.raises(PeftsmithError, match=said):
        plan.validate(several.document("m", **WRONG[said]))


LORA = {"peft_type": "LORA", "rank": 4, "alpha": 8}
REFUSED = {
    "plan.adapters.mixed": [
        None,
        {"peft_type": "IA3", "target_modules": ["k_proj"], "config": {"feedforward_modules": []}},
    ],
    "plan.adapters.alters_base": [None, {**LORA, "config": {"init_lora_weights": "pissa"}}],
    "plan.adapters.method": [None, {"peft_type": "ADALORA", "rank": 12, "config": {"target_r": 4}}],
    "plan.adapters.options": [{**LORA, "config": {"bias": "lora_only"}}, {**LORA, "config": {"bias": "lora_only"}}],
}


@pytest.mark.parametrize("refused", sorted(REFUSED))
def test_what_cannot_share_a_base_is_refused_before_a_file_is_written(refused, tmp_path, tiny_model):
    written = several.make(tmp_path / "project", several.with_methods(tiny_model, *REFUSED[refused]))
    assert errors(written.findings) == {refused}
    assert written.files == []


@pytest.mark.parametrize("option", [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [5]}])
def test_options_that_unloading_or_switching_loses_are_refused(option):
    chosen = plan.validate(several.with_methods("m", {**LORA, "config": option}, None))
    assert errors(fitness.judge(chosen, LLAMA)) == {"plan.adapters.options"}


def test_a_task_without_scripts_for_several_and_a_name_that_peft_confuses_are_refused():
    labels = {"format": "classification", "labels": ["a", "b"]}
    chosen = plan.validate(several.document("m", task="classification", data=labels))
    assert errors(fitness.judge(chosen, LLAMA)) == {"plan.adapters.task"}
    short = {"hr": {"train": "a.jsonl"}, "it": {"train": "b.jsonl"}}
    hra = plan.validate(several.document("m", method={"peft_type": "HRA", "rank": 4, "alpha": None}, adapters=short))
    assert errors(fitness.judge(hra, LLAMA)) == {"plan.adapters.name"}
    assert errors(fitness.judge(plan.validate(several.document("m", adapters=short)), LLAMA)) == set()


def test_a_fault_of_one_adapter_is_said_of_it_and_one_of_all_once():
    wrong = {"peft_type": "LORA", "rank": 4, "config": {"use_qalora": True}, "quantization": {"bits": 4}}
    right = {**LORA, "quantization": {"bits": 4}}
    one = fitness.judge(plan.validate(several.with_methods("m", wrong, right, method=right)), LLAMA)
    assert [(each.id, each.evidence.get("adapter")) for each in one] == [("plan.method.option", "billing")]
    both = fitness.judge(plan.validate(several.with_methods("m", wrong, wrong, method=right)), LLAMA)
    assert [(each.id, each.evidence.get("adapter")) for each in both] == [("plan.method.option", None)]


POLY = {"peft_type": "POLY", "rank": 4, "alpha": None}
PROMPTS = {"peft_type": "MULTITASK_PROMPT_TUNING", "rank": None, "alpha": None, "config": {"num_virtual_tokens": 4}}
PROJECTS = {
    "own prompts": {},
    "no prompts, from the base's text": {
        "task": "completion",
        "adapters": {name: {"train": f"data/{name}/train.jsonl"} for name in several.ANSWERS},
    },
    "one prompt, eval rows": {
        "data": {"format": "prompt_completion", "system_prompt": "Be short."},
        "adapters": {
            name: {"train": f"data/{name}/train.jsonl", "eval": f"data/{name}/test.jsonl"} for name in several.ANSWERS
        },
    },
    "mixture": {"adapters": {}, "mixture": several.mixture()},
    "tasks": {"adapters": {}, "mixture": several.mixture(), "method": POLY},
    "weighted tasks": {"adapters": {}, "mixture": several.mixture(0.5, 1.5), "method": POLY},
    "prompts of tasks": {"adapters": {}, "mixture": several.mixture(), "method": PROMPTS, "task": "completion"},
    "weighted mixture": {"adapters": {}, "mixture": several.mixture(0.5, 1.5)},
    "quantised": {"method": {"quantization": {"bits": 4}}},
    "prompt learning": {
        "method": {"peft_type": "PROMPT_TUNING", "rank": None, "alpha": None, "config": {"num_virtual_tokens": 4}}
    },
}


@pytest.mark.parametrize("kind", [*sorted(PROJECTS), "mixed", "mixed, not with the first"])
def test_scripts_are_laid_out_by_hand_and_drift_is_seen(kind, tmp_path, tiny_model):
    made = several.document(tiny_model, **PROJECTS.get(kind, {}))
    if kind.startswith("mixed"):
        other = {"peft_type": "LOKR", "rank": 4, "alpha": 8}
        oft = {"peft_type": "OFT", "config": {"oft_block_size": 16}}
        made = several.with_methods(tiny_model, *((None, other) if kind == "mixed" else (oft, other)))
    project = tmp_path / "project"
    several.make(project, made)
    scripts = sorted(project.glob("*.py"))
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["format", "--check"], ["check", "--select", "E,F,B,S", "--ignore", "E501,S101,S108,S311"]):
        done = subprocess.run(
            [*ruff, *command, "--isolated", "--no-cache", *map(str, scripts)], capture_output=True, encoding="utf-8"
        )
        assert done.returncode == 0, done.stdout
    wanted = plan.load(project)
    assert drift.find(project, wanted) == []
    if kind == "own prompts":
        edit(project / "train.py", "data/billing/train.jsonl", "data/billing/other.jsonl")
        (drifted,) = drift.find(project, wanted)
        assert drifted.evidence["to_plan"] == {"adapters.billing.train": "data/billing/other.jsonl"}
        changed = plan.parse(plan.edit(files.read_text(project / plan.PLAN_FILE), drifted.evidence["to_plan"]))
        assert changed.adapters["billing"].train == "data/billing/other.jsonl"
    if kind == "weighted mixture":
        edit(project / "train.py", "data/billing/train.jsonl", "data/billing/other.jsonl")
        edit(project / "train.py", '"delivery": 1.5', '"delivery": 2.0')
        (drifted,) = drift.find(project, wanted)
        to_plan = {"mixture.billing.train": "data/billing/other.jsonl", "mixture.delivery.weight": 2.0}
        assert drifted.evidence["to_plan"] == to_plan


@pytest.mark.parametrize("option", ["use_rslora", "use_dora"])
def test_no_combination_is_offered_where_peft_does_not_add(option, tiny_model):
    chosen = plan.validate(several.document(tiny_model, method={**LORA, "config": {option: True}}))
    empty = {"data": {}, "versions": {}, "interpreter": None, "estimate": {}, "why": {}, "files": {}}
    scripts = render.render(chosen, lock.Lock(peftsmith="0", plan_sha256="", base={"folder": "x"}, **empty))
    assert "add_weighted_adapter" not in scripts["merge.py"]
    ast.parse(scripts["merge.py"])


def test_every_adapter_has_a_loss_mask_proof_that_holds_for_its_own_rows(tmp_path, tiny_model):
    project = tmp_path / "project"
    several.make(project, several.document(tiny_model))
    wanted = plan.load(project)
    proofs, _ = mask.prove_all(project, wanted, None)
    assert set(proofs) == {"mask.billing", "mask.delivery"}
    assert proofs["mask.billing"]["inputs"]["data"] != proofs["mask.delivery"]["inputs"]["data"]
    locked = lock.load(project).model_copy(update={"proofs": proofs})
    assert mask.changed_since(project, locked) == []
    rows = project / "data" / "delivery" / "train.jsonl"
    files.write_text(rows, files.read_text(rows).replace("late", "lost"))
    assert mask.changed_since(project, locked) == ["data.train (data/delivery/train.jsonl)"]


@pytest.mark.training
def test_a_project_of_two_adapters_is_checked_and_proven(environment, tmp_path, tiny_model, monkeypatch):
    project = tmp_path / "project"
    several.make(project, several.document(tiny_model))
    monkeypatch.setattr(check.environments, "require", lambda *_, **__: _usable(environment))
    seen = check.check(project)
    assert errors(seen.findings) == set()
    assert seen.digest
    assert {seen.proofs[name]["state"] for name in ("mask.billing", "mask.delivery")} == {"proven"}
    proven = {proof["name"] for proof in seen.proofs["twin"]["proofs"] if proof["ok"]}
    assert {"switch", "combine", "resume", "generate", "reload:billing", "reload:delivery"} <= proven
    assert {proof["name"] for proof in seen.proofs["twin"]["proofs"] if not proof["ok"]} == set()
    assert set(lock.load(project).data) == {"billing.train", "billing.test", "delivery.train", "delivery.test"}


def _usable(environment):
    return SimpleNamespace(interpreter=environment.interpreter, key=environment.key, versions={}, usable=True)


@pytest.mark.training
def test_adapters_of_two_types_are_proven_apart_and_together(environment, tmp_path, tiny_model):
    project = tmp_path / "project"
    several.make(project, several.with_methods(tiny_model, None, {"peft_type": "LOKR", "rank": 4, "alpha": 8}))
    verdict = twin.run_twin(project, environment)
    assert errors(verdict.findings) == set()
    assert all(proof["ok"] for proof in verdict.seen["proofs"])


FAULTS = {
    "twin.base.changed": (
        "train.py",
        "        del trainer\n",
        "        del trainer\n        model.model.norm.weight.data += 0.5\n        frozen = checksums(model)\n",
    ),
    "twin.switch.differs": ("infer.py", "        model.set_adapter(adapter, inference_mode=True)\n", ""),
    "twin.combine.differs": ("merge.py", "            weights,\n", "            [1.0] * len(weights),\n"),
}


@pytest.mark.training
@pytest.mark.parametrize("planted", sorted(FAULTS))
def test_a_planted_fault_between_adapters_is_found(environment, tmp_path, tiny_model, planted):
    project = tmp_path / "project"
    several.make(project, several.document(tiny_model))
    edit(project / FAULTS[planted][0], *FAULTS[planted][1:])
    assert planted in errors(twin.run_twin(project, environment).findings)


@pytest.mark.training
def test_an_adapter_is_the_same_whether_trained_alone_or_after_another(training_python, tmp_path, tiny_model):
    project = tmp_path / "project"
    several.make(project, several.document(tiny_model))
    weights = []
    for output, only in (("both", []), ("alone", ["--adapter", "delivery"])):
        argv = [training_python, "train.py", "--output", str(tmp_path / output), "--max-steps", "2", *only]
        subprocess.run(argv, cwd=project, check=True, capture_output=True)
        weights.append((tmp_path / output / "adapters" / "delivery" / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    lines = (tmp_path / "both" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["adapter"] for line in lines} == {"billing", "delivery"}


def test_a_mixture_is_one_plan_with_a_mask_proof_for_each_part(tmp_path, tiny_model):
    project = tmp_path / "project"
    several.make(project, several.document(tiny_model, adapters={}, mixture=several.mixture()))
    wanted = plan.load(project)
    assert list(wanted.splits()) == ["billing.train", "billing.test", "delivery.train", "delivery.test"]
    assert set(mask.prove_all(project, wanted, None)[0]) == {"mask.billing", "mask.delivery"}
    with pytest.raises(PeftsmithError, match="one of the two"):
        plan.validate(several.document("m", mixture=several.mixture()))
    with pytest.raises(PeftsmithError, match="own weight or none"):
        plan.validate(several.document("m", adapters={}, mixture=several.mixture(1.0, None)))


@pytest.mark.training
def test_a_mixture_is_drawn_by_its_weights_and_proven(environment, tmp_path, tiny_model):
    project = tmp_path / "project"
    several.make(project, several.document(tiny_model, adapters={}, mixture=several.mixture(1.0, 3.0)))
    count = "import train; rows = train.mixed_examples(None); "
    count += "print(sum('billing' in str(each) for each in rows), len(rows))"
    argv = [environment.interpreter, "-c", count]
    done = subprocess.run(argv, cwd=project, check=True, capture_output=True, encoding="utf-8")
    billing, rows = map(int, done.stdout.split()[-2:])
    assert 16 <= billing < rows - billing  # every row of the rarer set at least once
    assert 0.15 < billing / rows < 0.35
    verdict = twin.run_twin(project, environment)
    assert errors(verdict.findings) == set()
    assert all(proof["ok"] for proof in verdict.seen["proofs"])


def test_what_is_said_of_sharing_a_base_is_known_of_every_method():
    mixed = [name for name in methods.names() if methods.method(name).mixed]
    assert mixed == ["ADALORA", "LOHA", "LOKR", "LORA", "OFT"]
    alone = ["ADAPTION_PROMPT", "FROD", "MULTITASK_PROMPT_TUNING", "POLY", "SHADOW"]
    assert [name for name in methods.names() if methods.method(name).shares is False] == alone


TASKS = ("sequence_classification", "token_classification", "question_answering", "seq2seq")


def base_of(task, tmp_path, tiny_model):
    """A decoder has every head, but does not write one text from another."""
    return (
        models.write(tmp_path / "t5", {**models.T5, "decoder_start_token_id": 0}) if task == "seq2seq" else tiny_model
    )


def test_heads_of_different_sizes_and_methods_that_keep_no_head_are_refused(tmp_path, tiny_model):
    three = {**several.LABELS, "delivery": ["early", "late", "never"]}
    made = several.other(tiny_model, "sequence_classification", three)
    written = several.make(tmp_path / "project", made)
    assert errors(written.findings) == {"plan.adapters.labels"}
    assert written.files == []
    (said,) = [each for each in written.findings if each.id == "plan.adapters.labels"]
    assert "billing 2, delivery 3" in said.message
    prompts = {"peft_type": "PROMPT_TUNING", "rank": None, "alpha": None, "config": {"num_virtual_tokens": 4}}
    learnt = plan.validate(several.other("m", "sequence_classification", method=prompts))
    assert errors(fitness.judge(learnt, LLAMA)) == {"plan.adapters.method"}
    made = several.other("m", "question_answering")
    made["adapters"]["delivery"]["method"] = {"peft_type": "LOKR", "rank": 4, "alpha": 8}
    assert errors(fitness.judge(plan.validate(made), LLAMA)) == {"plan.adapters.mixed"}
    for task in TASKS:
        assert (
            errors(fitness.judge(plan.validate(several.other("m", task)), T5 if task == "seq2seq" else LLAMA)) == set()
        )


def test_labels_are_every_adapters_own_or_none_is(tiny_model):
    made = several.other(tiny_model, "token_classification")
    alone = plan.validate(made).alone()
    assert {name: one.data.labels for name, one in alone.items()} == several.LABELS
    made["adapters"]["delivery"].pop("labels")
    with pytest.raises(PeftsmithError, match="own labels or none"):
        plan.validate(made)
    made["adapters"]["billing"].pop("labels")
    with pytest.raises(PeftsmithError, match="at least two different"):
        plan.validate(made)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["own", "evaluated", "own methods", "mixture", "weighted"])
def test_scripts_of_other_tasks_are_laid_out_by_hand_and_drift_is_seen(task, kind, tmp_path, tiny_model):
    made = several.other(base_of(task, tmp_path, tiny_model), task)
    if kind == "evaluated":
        for name, each in made["adapters"].items():
            each |= {"eval": f"data/{name}/test.jsonl"}
    if kind == "own methods":
        made["adapters"]["delivery"]["method"] = {**LORA, "rank": 8}
    if kind in ("mixture", "weighted"):
        every = [label for some in several.LABELS.values() for label in some]
        made |= {"adapters": {}, "mixture": several.mixture(*((1.0, 3.0) if kind == "weighted" else ()))}
        made["data"] = {**made["data"], **({"labels": every} if task.endswith("classification") else {})}
    project = tmp_path / "project"
    assert errors(several.make(project, made).findings) == set()
    scripts = sorted(project.glob("*.py"))
    assert {"train.py", "infer.py", "evaluate.py", "merge.py"} <= {each.name for each in scripts}
    for command in (["format", "--check"], ["check", "--select", "E,F,B,S", "--ignore", "E501,S101,S108,S311"]):
        argv = [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", *map(str, scripts)]
        done = subprocess.run(argv, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stdout
    wanted = plan.load(project)
    assert drift.find(project, wanted) == []
    assert vet.vet(project, None) == [] or all(each.severity == "unknown" for each in vet.vet(project, None))
    if kind == "own" and task.endswith("classification"):
        edit(project / "infer.py", '"late"', '"too late"')
        (drifted,) = drift.find(project, wanted)
        assert drifted.evidence["to_plan"] == {"adapters.delivery.labels": ["early", "too late"]}


@pytest.mark.training
@pytest.mark.parametrize("task", TASKS)
def test_adapters_of_every_task_are_proven_with_their_own_heads(environment, tmp_path, tiny_model, task):
    base = (
        models.write(tmp_path / "t5", {**models.T5, "decoder_start_token_id": 0}) if task == "seq2seq" else tiny_model
    )
    project = tmp_path / "project"
    several.make(project, several.other(base, task))
    verdict = twin.run_twin(project, environment)
    assert verdict.findings == []
    proven = {proof["name"] for proof in verdict.seen["proofs"] if proof["ok"]}
    each = {f"{name}:{of}" for name in ("reload", "frozen", "evaluate", "merge") for of in several.ANSWERS}
    assert each | {"switch", "resume", "generate"} <= proven


@pytest.mark.training
@pytest.mark.parametrize("task", ["sequence_classification", "seq2seq"])
def test_a_mixture_of_another_task_is_proven(environment, tmp_path, tiny_model, task):
    base = (
        models.write(tmp_path / "t5", {**models.T5, "decoder_start_token_id": 0}) if task == "seq2seq" else tiny_model
    )
    labels = [label for some in several.LABELS.values() for label in some]
    made = several.other(base, task) | {"adapters": {}, "mixture": several.mixture(1.0, 3.0)}
    made["data"] = {**made["data"], **({} if task == "seq2seq" else {"labels": labels})}
    several.make(tmp_path / "project", made)
    verdict = twin.run_twin(tmp_path / "project", environment)
    assert verdict.findings == []
    assert all(proof["ok"] for proof in verdict.seen["proofs"])


HEAD_FAULTS = {
    # The second adapter starts from the first one's head, and from a base that is another.
    "twin.train.failed": (
        "train.py",
        "            setattr(model.get_submodule(parent), child, module.original_module)\n",
        "            pass\n",
    ),
    "twin.switch.differs": ("infer.py", "    model.set_adapter(adapter, inference_mode=True)\n", ""),
    "twin.infer.failed": ("infer.py", "LABELS_OF[adapter][", 'LABELS_OF["delivery"]['),
}


@pytest.mark.training
@pytest.mark.parametrize("planted", sorted(HEAD_FAULTS))
def test_a_planted_fault_of_a_head_is_found(environment, tmp_path, tiny_model, planted):
    project = tmp_path / "project"
    several.make(project, several.other(tiny_model, "sequence_classification"))
    edit(project / HEAD_FAULTS[planted][0], *HEAD_FAULTS[planted][1:])
    assert planted in errors(twin.run_twin(project, environment).findings)


@pytest.mark.training
def test_a_head_is_the_same_whether_trained_alone_or_after_another(training_python, tmp_path, tiny_model):
    project = tmp_path / "project"
    several.make(project, several.other(tiny_model, "token_classification"))
    weights = []
    for output, only in (("both", []), ("alone", ["--adapter", "delivery"])):
        argv = [training_python, "train.py", "--output", str(tmp_path / output), "--max-steps", "2", *only]
        subprocess.run(argv, cwd=project, check=True, capture_output=True)
        weights.append((tmp_path / output / "adapters" / "delivery" / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_an_adapter_that_peft_does_not_begin_with_is_loaded_after_another():
    oft = {"peft_type": "OFT", "config": {"oft_block_size": 16}}
    first = plan.validate(several.with_methods("m", oft, {"peft_type": "LOKR", "rank": 4, "alpha": 8}))
    empty = {"data": {}, "versions": {}, "interpreter": None, "estimate": {}, "why": {}, "files": {}}
    scripts = render.render(first, lock.Lock(peftsmith="0", plan_sha256="", base={"folder": "x"}, **empty))
    assert 'names.sort(key=lambda name: name in ["billing"])' in scripts["infer.py"]
    alike = plan.validate(several.with_methods("m", oft, oft))
    scripts = render.render(alike, lock.Lock(peftsmith="0", plan_sha256="", base={"folder": "x"}, **empty))
    assert "names.sort" not in scripts["infer.py"]


def test_several_types_on_a_quantised_base_are_refused():
    bits = {"quantization": {"bits": 4}}
    oft = {"peft_type": "OFT", "config": {"oft_block_size": 16}, **bits}
    chosen = plan.validate(several.with_methods("m", None, oft, method={**LORA, **bits}))
    assert errors(fitness.judge(chosen, LLAMA)) == {"plan.adapters.mixed"}
