"""A fresh project is clean; every planted fault is found by its own finding."""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys

import pytest

from peftsmith import files, plan
from peftsmith.errors import PeftsmithError
from peftsmith.finding import catalogue
from peftsmith.project import calls, generate, signatures, vet
from peftsmith.worker import client
from tests.conftest import REPOSITORY
from tests.project.plans import generated, make, write_project

GIT_CASES = {
    ".env*\n!.env.example\n": True,
    ".env\n": False,
    ".env*\n": False,
    "!.env.example\n.env*\n": False,
    "": False,
}


@pytest.fixture
def project(tmp_path):
    return generated(tmp_path / "project", make())


@dataclasses.dataclass(frozen=True)
class _Environment:
    key: str
    interpreter: str = sys.executable


@pytest.fixture
def library(monkeypatch):
    """An environment whose answers the test gives; it counts the questions."""
    asked: list[dict[str, list[str]]] = []
    answer = {"unknown": [], "deprecated": [], "missing": [], "open": [], "checked": 0}

    def call(environment, job, arguments, *, timeout, **_):
        assert job == "signatures" and timeout > 0
        asked.append(arguments["calls"])
        return answer

    monkeypatch.setattr(client, "call", call)
    return asked, answer


def _append(project, code, file="train.py"):
    path = project / file
    path.write_text(path.read_text(encoding="utf-8") + "\n\n" + code + "\n", encoding="utf-8")


def _found(project, environment=None):
    return {(each.id, each.severity) for each in vet.vet(project, environment)} - {
        ("project.call.unchecked", "unknown")
    }


def test_without_an_environment_the_calls_are_unknown_and_the_rest_is_clean(project):
    assert [(each.id, each.severity) for each in vet.vet(project, None)] == [("project.call.unchecked", "unknown")]


def test_with_an_environment_a_fresh_project_is_clean_and_asked_about_once(project, library):
    asked, _ = library
    environment = _Environment("once")
    assert vet.vet(project, environment) == []
    assert "max_length" in asked[0]["trl.SFTConfig"] and "resume_from_checkpoint" in asked[0]["trl.SFTTrainer.train"]
    assert not any(name.startswith(("progress", "argparse", "json")) for name in asked[0])
    assert vet.vet(project, environment) == [] and len(asked) == 1
    _append(project, "SFTConfig(brand_new=1)")
    assert {each.id for each in vet.vet(project, environment)} == {"project.notebook.differs"} and len(asked) == 2
    assert asked[1] == {"trl.SFTConfig": sorted({*asked[0]["trl.SFTConfig"], "brand_new"})}


def test_a_damaged_cache_is_asked_again(project, library):
    asked, _ = library
    vet.vet(project, _Environment("damaged"))
    [kept] = files.cache_folder("signatures").glob("damaged-*.json")
    kept.write_text('{"trl.SFTConfig": 3', encoding="utf-8")
    assert vet.vet(project, _Environment("damaged")) == [] and len(asked) == 2


def test_what_the_library_says_becomes_findings(project, library):
    _, answer = library
    config = "trl.SFTConfig"
    answer["unknown"] = [{"callable": config, "keyword": "optim", "nearest": "optimizer"}]
    answer["deprecated"] = [{"callable": config, "keyword": "seed", "nearest": "data_seed"}]
    answer["missing"] = [{"callable": "peft.LoraConfig", "cause": "peft has no 'LoraConfig'"}]
    answer["open"] = ["datasets.Dataset.from_list", "transformers.AutoTokenizer.from_pretrained"]
    _append(project, "import datasets\ndatasets.Dataset.from_list([], weird=1)")
    found = vet.vet(project, _Environment("says"))
    said = {each.id: each for each in found}
    assert said["project.call.unknown_keyword"].evidence["nearest"] == "optimizer"
    assert said["project.call.unknown_keyword"].evidence["file"] == "train.py"
    assert said["project.call.deprecated"].evidence["keyword"] == "seed"
    assert [each.evidence["callable"] for each in found if each.id == "project.call.missing"] == ["peft.LoraConfig"]
    opened = [each for each in found if each.id == "project.call.unchecked"]
    assert opened and all(each.severity == "unknown" for each in opened)
    assert "weird" in {each.evidence["keyword"] for each in opened}


def test_an_environment_that_does_not_answer_is_unknown(project, monkeypatch):
    def call(*_, **__):
        raise PeftsmithError("the worker was killed", next_step="Try again.")

    monkeypatch.setattr(client, "call", call)
    found = vet.vet(project, _Environment("silent"))
    assert [(each.id, each.severity) for each in found] == [("project.call.unchecked", "unknown")]


@pytest.mark.parametrize(
    ("code", "expected", "severity"),
    [
        ("def broken(:", "project.script.syntax", "error"),
        ("print(never_defined)", "project.script.lint", "error"),
        ("import os", "project.script.lint", "warning"),
        ("import os\nos.system('ls')", "project.script.shell", "error"),
        ("import subprocess\nsubprocess.run('ls', shell=True)", "project.script.shell", "error"),
        ("import subprocess as s\nSH = True\ns.Popen('ls', shell=SH)", "project.script.shell", "error"),
        ("import pickle", "project.script.pickle", "error"),
        ("torch.load('x.bin')", "project.script.pickle", "error"),
        ("from torch import load as read\nread('x.bin')", "project.script.pickle", "error"),
        ("eval('1')", "project.script.dynamic_code", "error"),
        ("exec('1')", "project.script.dynamic_code", "error"),
        ("AutoTokenizer.from_pretrained('a/b', trust_remote_code=True)", "project.script.remote_code", "error"),
        (
            "TRUST = True\nAutoTokenizer.from_pretrained('a/b', trust_remote_code=TRUST)",
            "project.script.remote_code",
            "error",
        ),
        ("SFTConfig(max_seq_length=1)", "project.spelling.old", "error"),
        ("SFTConfig(optim='adamw_hf')", "project.spelling.old", "error"),
        ("SFTConfig(gradient_checkpointing=True)", "project.spelling.old", "warning"),
        ("from trl import setup_chat_format\nsetup_chat_format()", "project.spelling.old", "error"),
        ("import transformers as t\nt.TrainingArguments(evaluation_strategy='no')", "project.spelling.old", "error"),
        ("AutoModelForCausalLM.from_pretrained('a', load_in_4bit=True)", "project.spelling.old", "error"),
        ('KEY = "hf_' + "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA1c" + '"', "project.script.secret", "error"),
    ],
)
def test_a_planted_fault_in_a_script_is_found(project, code, expected, severity):
    _append(project, code)
    assert (expected, severity) in _found(project)


def test_harmless_look_alikes_raise_no_alarm(project):
    (project / "extra.py").write_text(
        "import subprocess\n\n"
        "import torch\n"
        "from transformers import AutoTokenizer\n"
        "from trl import SFTConfig\n\n"
        'subprocess.run(["ls"], shell=False, check=True)\n'
        'AutoTokenizer.from_pretrained("a/b", trust_remote_code=False)\n'
        'torch.save({}, "x.pt")\n'
        'print("eval(1) and os.system and max_seq_length=3")\n'
        "SFTConfig(max_length=1)\n\n\n"
        "def local(pickle, torch):\n"
        '    return pickle.load("x"), torch.load("x")\n',
        encoding="utf-8",
    )
    assert _found(project) == set()


def test_the_secret_itself_is_never_shown(project):
    token = "hf_" + "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA1c"
    _append(project, f'KEY = "{token}"')
    found = [each.to_json() for each in vet.vet(project, None)]
    assert any(each["id"] == "project.script.secret" and each["evidence"]["file"] == "train.py" for each in found)
    assert token not in json.dumps(found)


@pytest.mark.parametrize(("content", "good"), GIT_CASES.items())
def test_gitignore_keeps_env_in_and_the_example_out(tmp_path, content, good):
    (tmp_path / ".gitignore").write_text(content, encoding="utf-8")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    names = [".env", ".env.local", ".env.example"]
    argv = ["git", "-C", str(tmp_path), "check-ignore", "--no-index", *names]
    ignored = subprocess.run(argv, capture_output=True, encoding="utf-8", check=False).stdout.split()
    assert (ignored == [".env", ".env.local"]) == good
    assert {each.id for each in vet._ignore_files(tmp_path)} == (set() if good else {"project.gitignore.env_exposed"})


@pytest.mark.parametrize(
    ("line", "good"),
    [
        ("# https://huggingface.co/settings/tokens\nHF_TOKEN=your_hugging_face_token_here", True),
        ("HF_TOKEN=abc", False),
        ("HF_HOME=/data", True),
        ("# HF_TOKEN=x", True),
    ],
)
def test_the_env_example_holds_placeholders(tmp_path, line, good):
    (tmp_path / ".env.example").write_text(line + "\n", encoding="utf-8")
    found = {(each.id, each.severity) for each in vet._ignore_files(tmp_path)}
    assert (("project.env_example.no_placeholder", "error") in found) != good


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("# Get one at https://example.org\nHF_TOKEN=your_token_here", True),
        ("# Get one at https://example.org\nHF_TOKEN=your_token_here\nWANDB_API_KEY=your_key_here", True),
        ("# Get one at https://example.org\n\nHF_TOKEN=your_token_here", False),
        ("# ask a colleague\nHF_TOKEN=your_token_here", False),
        ("HF_HOME=/data", True),
    ],
)
def test_the_env_example_says_where_to_get_each_key(tmp_path, text, good):
    (tmp_path / ".env.example").write_text(text + "\n", encoding="utf-8")
    found = {(each.id, each.severity) for each in vet._ignore_files(tmp_path)}
    assert (("project.env_example.no_source", "warning") in found) != good


def test_vetting_looks_at_both_of_these_files(project):
    (project / ".gitignore").write_text(".env\n", encoding="utf-8")
    (project / ".env.example").write_text("HF_TOKEN=abc\n", encoding="utf-8")
    assert _found(project) == {
        ("project.gitignore.env_exposed", "error"),
        ("project.env_example.no_placeholder", "error"),
        ("project.env_example.no_source", "warning"),
    }


def test_missing_files_and_drift_are_found(project):
    (project / "merge.py").unlink()
    script = project / "train.py"
    script.write_text(script.read_text(encoding="utf-8").replace("RANK = 4", "RANK = 8"), encoding="utf-8")
    assert _found(project) == {
        ("project.file.missing", "error"),
        ("plan.drift", "error"),
        ("project.notebook.differs", "info"),
    }


@pytest.mark.parametrize(
    "line", ['{"text": "a", "label": "never heard of"}', '{"text": "a"}', '{"text": "a", "label"', "[1]"]
)
def test_a_row_that_would_stop_the_training_is_found_before(project, line):
    with (project / "data" / "train.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    [found] = vet._data(project, plan.load(project))  # that vetting asks for it shows test_a_missing_data_file_is_found
    assert (
        found.id == "project.data.unusable_row"
        and found.evidence["split"] == "train"
        and found.evidence["rows"][0].startswith("row 13: ")
    )


def test_a_missing_data_file_is_found(project):
    (project / "data" / "test.jsonl").unlink()
    assert _found(project) == {("project.data.unread", "error")}


def test_remote_code_needs_the_plans_consent_and_a_commit(tmp_path):
    folder = write_project(tmp_path / "project", make(base__trust_remote_code=True))
    generate.generate(folder)
    assert _found(folder) == set()
    script = folder / "train.py"
    text = script.read_text(encoding="utf-8").replace("revision=BASE_REVISION,\n        trust", "trust")
    script.write_text(text, encoding="utf-8")
    assert ("project.script.remote_code", "error") in _found(folder)


def test_a_project_without_files_is_an_error(tmp_path):
    folder = write_project(tmp_path / "project", make())
    with pytest.raises(PeftsmithError, match="no generated files"):
        vet.vet(folder, None)


def test_names_are_followed_through_imports_and_single_assignments():
    source = """
import torch
import torch.nn as nn
from peft import PeftModel as P, LoraConfig
from trl import SFTTrainer
from . import mine
import progress
trainer = SFTTrainer(model=1)
trainer.train(resume_from_checkpoint=None)
twice = LoraConfig(r=1)
twice = 3
twice.save(x=1)
model = P.from_pretrained("a", "b")
model.merge_and_unload(safe_merge=True)
nn.Linear(1, 2, bias=False)
torch.nn.functional.relu(x, inplace=True)
progress.run(a=1)
mine.run(a=1)
print(end="")
def f(trainer, torch):
    trainer.train(shadowed=1)
    torch.load(shadowed=1)
def g():
    args = LoraConfig(r=2)
    args.model.deeper(x=1)
    args.to_dict(y=1)
"""
    script = calls.read(ast.parse(source), {"progress"})
    assert {(call.name, *call.keywords) for call in script.calls} == {
        ("trl.SFTTrainer", "model"),
        ("trl.SFTTrainer.train", "resume_from_checkpoint"),
        ("peft.LoraConfig", "r"),
        ("peft.PeftModel.from_pretrained",),
        ("peft.PeftModel.merge_and_unload", "safe_merge"),
        ("torch.nn.Linear", "bias"),
        ("torch.nn.functional.relu", "inplace"),
        ("peft.LoraConfig.to_dict", "y"),
    }
    assert {call.name for call in script.calls if call.of_instance} == {
        "trl.SFTTrainer.train",
        "peft.PeftModel.merge_and_unload",
        "peft.LoraConfig.to_dict",
    }
    assert "progress" not in script.imported and "torch.nn" in script.imported


def test_every_finding_of_this_stage_is_made_somewhere():
    package = REPOSITORY / "mcp_server" / "peftsmith"
    sources = "".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    mine = [each for each in catalogue() if each.startswith("project.")]
    assert mine and [each for each in mine if f'"{each}"' not in sources] == []


@pytest.mark.training
def test_the_table_of_old_spellings_is_true_of_the_installed_libraries(training_python):
    table = signatures.spellings()
    probes: dict[str, set[str]] = {}
    for entry in table["keyword"]:
        probes.setdefault(entry["probe"], set()).update({entry["old"], *([entry["new"]] if "new" in entry else [])})
    asked = {name: sorted(keywords) for name, keywords in probes.items()}
    for entry in table["name"]:
        for name in (entry["old"], entry.get("new")):
            if name:
                asked.setdefault(name, [])
    values = [[entry["keyword"], entry["old"], entry["new"]] for entry in table["value"]]
    code = (
        "import json, sys\n"
        "from peftsmith.worker.jobs import signatures\n"
        "calls, values = json.load(sys.stdin)\n"
        "told = signatures.run({'calls': calls}, lambda *_: None)\n"
        "from trl import SFTConfig\n"
        "told['values'] = []\n"
        "for keyword, old, new in values:\n"
        "    SFTConfig('out', use_cpu=True, bf16=False, **{keyword: new})\n"
        "    try:\n"
        "        SFTConfig('out', use_cpu=True, bf16=False, **{keyword: old})\n"
        "    except ValueError:\n"
        "        told['values'].append(old)\n"
        "print(json.dumps(told))\n"
    )
    done = subprocess.run(
        [training_python, "-c", code],
        input=json.dumps([asked, values]),
        capture_output=True,
        encoding="utf-8",
        env={"PYTHONPATH": str(REPOSITORY / "mcp_server"), "PATH": "/usr/bin:/bin", "HOME": str(REPOSITORY)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    unknown = {(each["callable"], each["keyword"]) for each in told["unknown"]}
    still = {(each["callable"], each["keyword"]) for each in told["deprecated"]}
    for entry in table["keyword"]:
        assert ((entry["probe"], entry["old"]) in unknown) != bool(entry.get("works")), entry["old"]
        if entry.get("works"):
            assert (entry["probe"], entry["old"]) in still, entry["old"]
        assert (entry["probe"], entry.get("new")) not in unknown, entry["old"]
    missing = {each["callable"] for each in told["missing"]}
    assert missing == {entry["old"] for entry in table["name"]}
    assert told["values"] == [entry["old"] for entry in table["value"]]


@pytest.mark.training
def test_generated_projects_fit_the_installed_libraries(training_python, tmp_path):
    """Every variant's calls, as the installed libraries see them: nothing unknown, nothing open, nothing missing."""
    quantized = {"bits": 4, "type": "nf4", "double": True}
    variants = [
        make(),
        make("chat", data__eval="data/eval.jsonl", method__quantization=quantized),
        make(base__trust_remote_code=True, method__quantization={**quantized, "bits": 8}),
        make(
            "chat",
            method__config={"use_rslora": True},
            training__precision="fp16",
            base__revision=None,
            base__model="/local",
        ),
    ]
    environment = _Environment("installed", interpreter=training_python)
    for number, wanted in enumerate(variants):
        folder = write_project(tmp_path / str(number), wanted)
        generate.generate(folder)
        assert vet.vet(folder, environment) == []
    _append(folder, "SFTConfig(max_seq_lenght=3)")
    found = vet.vet(folder, environment)
    assert [(each.id, each.evidence.get("keyword")) for each in found] == [
        ("project.call.unknown_keyword", "max_seq_lenght"),
        ("project.notebook.differs", None),
    ]
    assert plan.load(folder).task == "chat"
    client.stop(environment)
