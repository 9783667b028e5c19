"""The twin runs real generated scripts on a real small model, and each planted fault is found as what it is."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from peftsmith import files
from peftsmith.project import twin
from peftsmith.worker import client, scripts
from tests.project.small_project import edit, make_project

PROOFS = {
    "build",
    "train",
    "loss",
    "metrics",
    "adapter",
    "adapter_nonzero",
    "checkpoint",
    "trainable",
    "reload",
    "evaluate",
    "merge",
    "generate",
    "resume",
    "untouched",
}


@pytest.fixture(scope="module")
def environment(training_python):
    made = SimpleNamespace(interpreter=training_python, key="real")
    yield made
    client.stop(made)
    client.stop(made, quantise=True)


@pytest.fixture
def project(tmp_path, tiny_model):
    return make_project(tmp_path / "project", tiny_model)


def errors(verdict):
    return {each.id for each in verdict.findings if each.severity == "error"}


@pytest.mark.training
def test_a_good_project_is_proven_once_and_leaves_nothing_behind(environment, project, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = scripts.listing(project)
    verdict = twin.run_twin(project, environment)
    assert verdict.findings == []
    assert {proof["name"] for proof in verdict.seen["proofs"] if proof["ok"]} == PROOFS
    assert verdict.seconds < 60
    assert not verdict.cached
    assert scripts.listing(project) == before
    assert not list(project.rglob("__pycache__"))
    assert list(temporary.iterdir()) == []
    again = twin.run_twin(project, environment)
    assert again.cached
    assert again.seen == json.loads(json.dumps(verdict.seen))
    assert again.seconds < 2
    edit(project / "train.py", "import argparse", "import argparse  # touched")
    assert not twin.run_twin(project, environment).cached


@pytest.mark.training
def test_a_failing_script_is_named_with_its_line_and_not_kept(environment, project):
    edit(project / "train.py", "    started = time.monotonic()", "    started = time.monotonic() + undefined_name")
    number = next(
        number
        for number, line in enumerate((project / "train.py").read_text(encoding="utf-8").splitlines(), start=1)
        if "undefined_name" in line
    )
    verdict = twin.run_twin(project, environment)
    assert errors(verdict) == {"twin.train.failed"}
    assert f"train.py:{number}" in verdict.findings[0].message
    assert "undefined_name" in verdict.findings[0].evidence["traceback"]
    assert {proof["name"] for proof in verdict.seen["proofs"] if proof["ok"] is None} >= {"reload", "merge", "resume"}
    assert not twin.run_twin(project, environment).cached


FAULTS = {
    "twin.adapter.zero": ("train.py", "learning_rate=LEARNING_RATE", "learning_rate=0.0"),
    "twin.trainable.differs": ("train.py", "r=RANK,", "r=RANK // 2,"),
    "twin.resume.failed": ("train.py", "resume_from_checkpoint=resume", "resume_from_checkpoint=None"),
    "twin.reload.differs": (
        "train.py",
        "    trainer.model.save_pretrained(adapter)\n",
        "    trainer.model.save_pretrained(adapter)\n"
        "    for name, parameter in trainer.model.named_parameters():\n"
        "        parameter.data *= 1.5 if 'lora_B' in name else 1.0\n",
    ),
    "twin.checkpoint.bad": ("train.py", "save_steps=SAVE_STEPS", 'save_strategy="no"'),
    "twin.infer.failed": ("infer.py", "    return answer\n", "    return None\n"),
    "twin.evaluate.failed": ("evaluate.py", "started = time.monotonic()", "started = 1 / 0"),
    "twin.project.touched": (
        "train.py",
        "    started = time.monotonic()\n",
        "    started = time.monotonic()\n    (FOLDER / 'left.txt').write_text('x')\n",
    ),
}


@pytest.mark.training
@pytest.mark.parametrize("planted", sorted(FAULTS))
def test_a_planted_fault_is_found(environment, project, planted):
    name, old, new = FAULTS[planted]
    edit(project / name, old, new)
    verdict = twin.run_twin(project, environment)
    assert planted in errors(verdict)
    assert errors(verdict) <= {planted, "twin.resume.failed", "twin.reload.differs"}


FORGETFUL_MERGE = """
import argparse
from transformers import AutoModelForCausalLM, AutoTokenizer
def main(argv=None):
    parser = argparse.ArgumentParser()
    for name in ("--base", "--adapter", "--output"):
        parser.add_argument(name)
    arguments = parser.parse_args(argv)
    AutoModelForCausalLM.from_pretrained(arguments.base).save_pretrained(arguments.output + "/merged")
    AutoTokenizer.from_pretrained(arguments.adapter).save_pretrained(arguments.output + "/merged")
"""


@pytest.mark.training
def test_a_merge_that_forgets_the_adapter_is_found(environment, project):
    (project / "merge.py").write_text(FORGETFUL_MERGE, encoding="utf-8")
    verdict = twin.run_twin(project, environment)
    assert errors(verdict) == {"twin.merge.differs"}
    assert "base and adapter say together" in verdict.findings[0].message


@pytest.mark.training
def test_rows_that_the_script_cannot_read_are_named(environment, project):
    (project / "data" / "train.jsonl").write_text('{"text": "x", "label": "no such label"}\n', encoding="utf-8")
    verdict = twin.run_twin(project, environment)
    assert errors(verdict) == {"twin.train.failed"}
    assert "row 1" in verdict.findings[0].message


@pytest.mark.training
def test_four_bit_training_is_proven_without_a_gpu(environment, tmp_path, tiny_model):
    project = make_project(
        tmp_path / "project",
        tiny_model,
        method={"quantization": {"bits": 4}, "config": {"use_rslora": True}},
        training={"precision": "bf16", "optimizer": "paged_adamw_8bit", "gradient_accumulation": 2},
    )
    verdict = twin.run_twin(project, environment)
    assert errors(verdict) == set()
    assert [each.id for each in verdict.findings] == ["twin.cpu.swapped"]
    assert {proof["name"] for proof in verdict.seen["proofs"] if proof["ok"]} == PROOFS


def test_remote_code_is_never_run_and_never_called_proven(tmp_path, tiny_model):
    project = make_project(tmp_path / "project", tiny_model)
    text = (project / "plan.yaml").read_text(encoding="utf-8")
    text = text.replace("trust_remote_code: false", "trust_remote_code: true").replace(
        "revision:", f"revision: {'a' * 40}"
    )
    (project / "plan.yaml").write_text(text, encoding="utf-8")
    verdict = twin.run_twin(project, SimpleNamespace(interpreter="/nonexistent", key="none"))
    assert [(each.id, each.severity) for each in verdict.findings] == [("twin.remote_code.unproven", "unknown")]


def test_the_verdict_depends_on_all_that_it_was_given_for(tmp_path, tiny_model):
    from peftsmith import lock, plan
    from peftsmith.model import source

    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    project = make_project(tmp_path / "project", model)
    environment = SimpleNamespace(interpreter="python", key="one")

    def key(environment=environment):
        opened = source.open_model(str(model))
        return twin._key(project, plan.load(project), lock.load(project), opened, model, environment)

    seen = [key(), key(SimpleNamespace(interpreter="python", key="two"))]
    for path in (project / "progress.py", project / "data" / "test.jsonl", model / "chat_template.jinja"):
        path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        seen.append(key())
    config = files.read_json(model / "config.json")
    files.write_json(model / "config.json", {**config, "rms_norm_eps": 1e-6})
    seen.append(key())
    files.write_text(project / "plan.yaml", plan.edit(files.read_text(project / "plan.yaml"), {"training.seed": 7}))
    seen.append(key())
    assert len(set(seen)) == len(seen)
    files.write_text(project / "plan.yaml", files.read_text(project / "plan.yaml") + "# a remark\n")
    assert key() == seen[-1]
