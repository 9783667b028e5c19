"""train.ipynb: the same bytes as the scripts, runnable elsewhere, and vetted."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from peftsmith import files, plan
from peftsmith.errors import PeftsmithError
from peftsmith.project import generate, notebook, vet
from peftsmith.project.foreign import source
from tests.project.plans import generated, lock_for, make, write_project
from tests.project.small_project import make_project


@pytest.fixture
def project(tmp_path):
    return generated(tmp_path / "project", make("chat", data__eval="data/eval.jsonl"))


def document(project: Path) -> dict:
    return json.loads((project / notebook.FILE).read_text(encoding="utf-8"))


def save(project: Path, changed: dict) -> None:
    """As Jupyter does."""
    text = json.dumps(changed, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    (project / notebook.FILE).write_text(text, encoding="utf-8")


def sources(project: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in document(project)["cells"]]


def found(project: Path) -> set[tuple[str, str]]:
    return {(each.id, each.severity) for each in notebook.judge(project)}


@pytest.mark.parametrize(
    "wanted",
    [
        make("chat", data__eval="data/eval.jsonl"),
        make("classification", base__model="/models/base", base__revision=None),
        make(method__quantization={"bits": 4, "type": "nf4", "double": True}, data__test=None),
    ],
)
def test_the_cells_hold_the_scripts_byte_for_byte(tmp_path, wanted):
    project = write_project(tmp_path / "project", wanted)
    generate.generate(project)
    held = notebook.written((project / notebook.FILE).read_text(encoding="utf-8"))
    scripts = {path.name for path in project.glob("*.py")}
    assert held.keys() == scripts | {"requirements.txt"} and "train.py" in held
    for name, text in held.items():
        assert text.encode("utf-8") == (project / name).read_bytes()
    assert found(project) == set()


def test_it_is_a_notebook_of_format_4_5_and_every_cell_parses(project):
    made = document(project)
    assert (made["nbformat"], made["nbformat_minor"]) == (4, 5)
    identifiers = [cell["id"] for cell in made["cells"]]
    assert len(set(identifiers)) == len(identifiers)
    for cell in made["cells"]:
        assert cell["cell_type"] in ("code", "markdown") and isinstance(cell["source"], list)
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    read = source.read(project / notebook.FILE)
    assert not read.faults and not read.unread
    commands = [each.command for each in read.shell]
    assert [each.split()[1] for each in commands if "sys.executable" in each] == [
        "train.py",
        "train.py",
        "evaluate.py",
        "infer.py",
        "merge.py",
    ]
    assert commands[0].startswith("pip install") and "--require-hashes" in commands[1]


def test_the_options_that_it_passes_are_the_scripts_own(project):
    for command in (each.command for each in source.read(project / notebook.FILE).shell):
        if "sys.executable" not in command:
            continue
        script = (project / command.split()[1]).read_text(encoding="utf-8")
        options = [word for word in command.split() if word.startswith("--")]
        known = {
            node.args[0].value
            for node in ast.walk(ast.parse(script))
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
        }
        assert options and set(options) <= known, command


def test_rows_are_named_with_their_hashes_and_keys_come_from_a_store(project):
    text = "\n".join(sources(project))
    for name in ("data/train.jsonl", "data/eval.jsonl", "data/test.jsonl"):
        assert f'"{name}"' in text
    assert "userdata.get" in text and "UserSecretsClient" in text and "https://huggingface.co/settings/tokens" in text
    wanted = make(base__revision=None)
    local = notebook.build({"train.py": "x\n", "requirements.txt": "\n"}, wanted, lock_for(wanted, Path("/m")))
    assert "HF_TOKEN" not in local and "local folder" in local


def _cell(namespace: dict, text: str) -> None:
    exec(compile(text, "cell", "exec"), namespace)


def test_the_key_cell_takes_the_environment_and_never_a_placeholder(project, monkeypatch, capsys):
    import os

    [cell] = [text for text in sources(project) if "def stored" in text]
    monkeypatch.setenv("HF_TOKEN", "your_hugging_face_token_here")
    _cell({}, cell)
    assert "No HF_TOKEN" in capsys.readouterr().out
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")  # and no kaggle_secrets here: said, not hidden
    monkeypatch.setenv("HF_TOKEN", "value")
    _cell({}, cell)
    assert "was not taken from the secret store: ModuleNotFoundError" in capsys.readouterr().out
    assert os.environ["HF_TOKEN"] == "value"


def test_the_rows_cell_says_what_is_missing_or_different(project, monkeypatch, capsys):
    [cell] = [text for text in sources(project) if "ROWS = " in text]
    monkeypatch.chdir(project)
    _cell({}, cell)
    assert capsys.readouterr().out == ""
    assert '"data/eval.jsonl": ""' in cell
    _cell({}, cell.replace('"data/eval.jsonl": ""', '"data/eval.jsonl": "0000"'))
    assert "data/eval.jsonl is another file than the one that was planned for" in capsys.readouterr().out
    (project / "data" / "train.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"data/train\.jsonl is missing"):
        _cell({}, cell)


def test_what_running_it_leaves_behind_is_no_edit(project):
    made = document(project)
    for number, cell in enumerate(made["cells"]):
        if cell["cell_type"] == "code":
            cell |= {"execution_count": number, "outputs": [{"output_type": "stream", "name": "stdout", "text": ["x"]}]}
    made["metadata"]["kernelspec"]["name"] = "other"
    save(project, made)
    written = generate.generate(project)
    assert {"path": notebook.FILE, "action": "unchanged"} in written.files and written.findings == []
    assert document(project) == made  # the outputs stay as long as the cells do


def test_an_edited_cell_is_kept_and_merged_with_a_changed_script(project):
    made = document(project)
    made["cells"][0]["source"] = ["# Mine\n", "my text"]
    save(project, made)
    text = files.read_text(project / plan.PLAN_FILE)
    files.write_text(project / plan.PLAN_FILE, plan.edit(text, {"method.rank": 64}))
    written = generate.generate(project)
    assert {"path": notebook.FILE, "action": "merged"} in written.files
    assert sources(project)[0] == "# Mine\nmy text"
    held = notebook.written((project / notebook.FILE).read_text(encoding="utf-8"))
    assert "RANK = 64" in held["train.py"] and found(project) == set()


def test_an_edited_script_gets_into_the_notebook(project):
    with (project / "train.py").open("a", encoding="utf-8") as stream:
        stream.write("# mine\n")
    assert found(project) == {("project.notebook.differs", "info")}
    generate.generate(project)
    assert found(project) == set()
    assert notebook.written((project / notebook.FILE).read_text(encoding="utf-8"))["train.py"].endswith("# mine\n")


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("!rm -rf output", ("project.script.shell", "error")),
        ("%pip install something", ("project.script.shell", "error")),
        ("!{sys.executable} train.py --output output; ls", ("project.script.shell", "error")),
        ("!{sys.executable} other.py", ("project.script.shell", "error")),
        ("x = = 1", ("project.script.syntax", "error")),
        ("%%writefile other.py\nprint(1)\n", ("project.notebook.other_file", "error")),
        ('KEY = "hf_' + "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA1c" + '"', ("project.script.secret", "error")),
    ],
)
def test_vetting_finds_what_does_not_belong_there(project, cell, expected):
    made = document(project)
    made["cells"].append({"cell_type": "code", "id": "x", "metadata": {}, "outputs": [], "source": [cell]})
    save(project, made)
    assert found(project) == {expected}
    assert expected in {(each.id, each.severity) for each in vet.vet(project, None)}


def test_a_broken_notebook_is_a_finding_and_is_not_overwritten_in_silence(project):
    (project / notebook.FILE).write_text("{", encoding="utf-8")
    assert found(project) == {("project.script.syntax", "error")}
    with pytest.raises(PeftsmithError, match="no notebook"):
        notebook.canonical("{}")
    files.write_text(
        project / plan.PLAN_FILE, plan.edit(files.read_text(project / plan.PLAN_FILE), {"method.rank": 64})
    )
    assert [each.id for each in generate.generate(project).findings] == ["project.file.conflict"]


@pytest.mark.training
def test_its_cells_train_a_packed_plan_as_the_project_does(training_python, tmp_path, tiny_model, monkeypatch):
    """Every cell in turn, as a kernel would run it, but for pip and for all but a few updates."""
    training = {"packing": "bfd", "loss_path": "labelled", "batch_size": 1, "group_by_length": False, "epochs": 0.2}
    project = make_project(tmp_path / "project", tiny_model, training=training, data={"test": None})
    here = tmp_path / "elsewhere"
    shutil.copytree(project / "data", here / "data")
    monkeypatch.chdir(here)
    namespace: dict = {}
    for cell in sources(project):
        if cell.startswith("%%writefile "):
            first, _, body = cell.partition("\n")
            (here / first.split()[1]).write_text(body + "\n", encoding="utf-8")
        elif "!{sys.executable}" in cell:
            _, *argv = cell[cell.index("!") + 1 :].split()
            done = subprocess.run([training_python, *argv], capture_output=True, encoding="utf-8", check=False)
            assert done.returncode == 0, done.stderr[-2000:]
            if argv[:3] == ["train.py", "--output", "output"]:
                break
        elif "ROWS = " in cell:
            _cell(namespace, cell)
    assert (here / "train.py").read_bytes() == (project / "train.py").read_bytes()
    done = subprocess.run([training_python, project / "train.py", "--output", tmp_path / "own"], check=False)
    assert done.returncode == 0
    both = (here / "output", tmp_path / "own")
    logged = [(each / "metrics.jsonl").read_text(encoding="utf-8").splitlines() for each in both]
    seen = [[(row["loss"], row["tokens"]) for row in map(json.loads, lines) if "loss" in row] for lines in logged]
    assert seen[0] == seen[1] != []
    weights = [(each / "adapter" / "adapter_model.safetensors").read_bytes() for each in both]
    assert weights[0] == weights[1]
