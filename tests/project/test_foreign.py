"""Scripts and notebooks of others: how they are read, what is followed, what is said to be unread."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.finding import catalogue
from peftsmith.knowledge import case as cases
from peftsmith.machine import environment as environments
from peftsmith.project import check as projects
from peftsmith.project.foreign import check, facts, source, trace
from peftsmith.project.foreign.values import NOTHING, plain
from peftsmith.worker import client
from tests.conftest import REPOSITORY

TOKEN = "hf_" + "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA1c"
CASES = REPOSITORY / "tests" / "cases"


def looked(folder: Path, text: str, name: str = "train.py", **beside: str):
    for module, body in beside.items():
        (folder / f"{module}.py").write_text(body, encoding="utf-8")
    (folder / name).write_text(text, encoding="utf-8")
    return check.look(folder / name, None)


def test_a_file_without_training_is_unknown_and_no_pass(tmp_path):
    found = looked(tmp_path, "import json\n\nprint(json.dumps([]))\n").findings
    assert [(each.id, each.severity) for each in found] == [("script.calls.none", "unknown")]
    assert "script.calls.none" not in ids(looked(tmp_path, "import torch\n\nprint(torch.ones(2))\n"))


def notebook(*cells: str, outputs: dict[int, str] | None = None) -> str:
    made = [
        {
            "cell_type": "code",
            "source": text.splitlines(keepends=True),
            "outputs": [{"output_type": "stream", "text": [outputs[at]]}] if outputs and at in outputs else [],
        }
        for at, text in enumerate(cells, start=1)
    ]
    return json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def ids(look: check.Look) -> set[str]:
    return {each.id for each in look.findings}


def values(text: str, **modules: str) -> dict[str, object]:
    """The keywords that `peft.LoraConfig(...)` is called with at the end, as far as they are known."""
    main = source.script("train.py", "from peft import LoraConfig\n" + text)
    beside = {name: source.script(f"{name}.py", body) for name, body in modules.items()}
    sites = [each for each in trace.trace(main, beside.get).sites if each.name == "peft.LoraConfig"]
    return {name: plain(value) for name, value in sites[-1].keywords.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("R = 8\nLoraConfig(r=R)", 8),
        ("R = 4 * 2\nLoraConfig(r=R)", 8),
        ("a, b = 4, 8\nLoraConfig(r=b)", 8),
        ("s = {'r': 8}\nLoraConfig(**s)", 8),
        ("s = dict(r=4)\ns['r'] = 8\nLoraConfig(**{**s})", 8),
        ("def f(r=8):\n    return r\nLoraConfig(r=f())", 8),
        ("def f(x, *, r):\n    return LoraConfig(r=r)\nf(1, r=8)", 8),
        ("class C:\n    r = 8\nLoraConfig(r=C.r)", 8),
        ("class C:\n    r: int = 8\nLoraConfig(r=C().r)", 8),
        ("if True:\n    r = 8\nelse:\n    r = 9\nLoraConfig(r=r)", 8),
        ("LoraConfig(r=8 if not False else 9)", 8),
        ("def f():\n    if 1 == 1:\n        return 8\n    return 9\nLoraConfig(r=f())", 8),
        ("def main():\n    LoraConfig(r=8)\nif __name__ == '__main__':\n    main()", 8),
        ("class C:\n    def __init__(self, r):\n        self.r = r\nLoraConfig(r=C(8).r)", 8),
        (
            "class C:\n    def set(self):\n        self.r = 8\n    def get(self):\n        return self.r\n"
            "c = C()\nc.set()\nLoraConfig(r=c.get())",
            8,
        ),
        ("class C:\n    @staticmethod\n    def r(x):\n        return x\nLoraConfig(r=C().r(8))", 8),
        ("class C(LoraConfig):\n    pass\nC(r=8)", 8),
        ("class A:\n    r = 8\nclass B(A):\n    pass\nLoraConfig(r=B().r)", 8),
        ("import helpers\nLoraConfig(r=helpers.RANK)", 8),
        ("from helpers import RANK as r\nLoraConfig(r=r)", 8),
        ("import os\nLoraConfig(r=int(os.environ.get('R', '8')))", 8),
        ("try:\n    r = 8\nexcept ValueError:\n    raise\nLoraConfig(r=r)", 8),
        ("r = input()\nLoraConfig(r=r)", NOTHING),
        ("r = 8\nr += 1\nLoraConfig(r=r)", NOTHING),
        ("for r in (4, 8):\n    LoraConfig(r=r)", NOTHING),
        ("if input():\n    r = 8\nelse:\n    r = 9\nLoraConfig(r=r)", NOTHING),
        ("def f(r):\n    return LoraConfig(r=r)", NOTHING),
    ],
)
def test_values_are_followed_as_far_as_they_are_sure(text, expected):
    assert values(text, helpers="RANK = 8\n")["r"] == expected


def test_recursion_and_endless_code_end():
    assert values("def f(r):\n    return f(r)\nf(1)\nLoraConfig(r=f(8))")["r"] is NOTHING
    deep = "".join(f"{'    ' * at}for a{at} in b:\n" for at in range(19)) + "    " * 19 + "c = 1\n"
    walked = trace.trace(source.script("deep.py", deep), lambda _: None)
    assert "too long" in walked.unread[0][1].what


@pytest.mark.slow
@given(st.text(max_size=300))
def test_any_text_is_read_or_named_as_unreadable(text):
    read = source.script("any.py", text)
    assert len(read.lines) == len(text.splitlines())
    walked = trace.trace(read, lambda _: None)
    facts.gather(walked, {})


@given(st.lists(st.text(alphabet="!%pip x=\n\\'\"#():", max_size=40), max_size=4))
def test_any_cells_keep_their_lines(cells):
    document = json.loads(notebook(*cells))
    read = source.notebook("any.ipynb", document)
    for number, first in read.starts:
        place = read.place(first)
        assert (place["cell"], place["line"]) == (number, 1)
    assert len(read.starts) == max(1, len(cells))


def test_places_in_a_notebook_are_cell_and_line(tmp_path):
    text = notebook("import torch\n", "!pip install x\n\nfrom trl import SFTConfig\nSFTConfig(max_seq_length=3)\n")
    [old] = [each for each in looked(tmp_path, text, "a.ipynb").findings if each.id == "project.spelling.old"]
    assert (old.evidence["cell"], old.evidence["line"]) == (2, 4)
    assert old.message.startswith("a.ipynb cell 2 line 4: ")


def test_magics_are_told_from_python(tmp_path):
    look = looked(
        tmp_path,
        notebook(
            "%%bash\npip install a==1\nrm -r out\n",
            "text = '''\n!not a command\n%nor this\n'''\nfiles = !ls\n%matplotlib inline\nlen?\n"
            "if files:\n    !echo hi \\\n      there\n",
            "%%html\n<b>x</b>\n",
            "%run other.py\n",
        ),
        "a.ipynb",
    )
    commands = [each.evidence["command"] for each in look.findings if each.id == "script.shell.command"]
    assert commands == ["ls", "echo hi  there"]
    assert [each.evidence["line"] for each in look.findings if each.id == "script.shell.risky"] == [3]
    unread = [each.evidence["what"] for each in look.findings if each.id == "script.unread.code"]
    assert len(unread) == 2 and "%%html" in unread[0] and "%run" in unread[1]
    assert "project.script.syntax" not in ids(look)


def test_secrets_are_found_in_sources_outputs_and_commands_and_never_shown(tmp_path):
    text = notebook(
        f"KEY = '{TOKEN}'\n",
        f"!huggingface-cli login --token {TOKEN}\n",
        "print(1)\n",
        outputs={3: f"logged in with {TOKEN}\n"},
    )
    look = looked(tmp_path, text, "a.ipynb")
    found = [each for each in look.findings if each.id == "project.script.secret"]
    assert [(each.evidence["cell"], each.evidence["where"]) for each in found] == [
        (1, "source"),
        (2, "source"),
        (3, "output"),
    ]
    assert "script.shell.token" in ids(look)
    assert TOKEN not in json.dumps([[each.to_json() for each in look.findings], look.seen])


def test_models_and_data_are_named_with_their_lines(tmp_path):
    look = looked(
        tmp_path,
        "from datasets import load_dataset\nfrom transformers import AutoModel\nfrom peft import PeftModel\n"
        "BASE = 'owner/base'\nmodel = PeftModel.from_pretrained(AutoModel.from_pretrained(BASE), 'my/adapter')\n"
        "rows = load_dataset('owner/rows', data_files=['a.json'])\nAutoModel.from_pretrained(input())\n",
    )
    assert [(each["value"], each["line"]) for each in look.seen["models"]] == [
        ("owner/base", 5),
        ("my/adapter", 5),
        (None, 7),
    ]
    assert look.seen["data"][0]["line"] == 6 and "a.json" in look.seen["data"][0]["value"]


OLD = """\
from peft import LoraConfig, prepare_model_for_int8_training
from transformers import TrainingArguments
from trl import SFTConfig, SFTTrainer

model = prepare_model_for_int8_training(model)  # Größe
args = TrainingArguments("out", evaluation_strategy="no", warmup_ratio=0.1, group_by_length=True)
config = SFTConfig(max_seq_length=8, optim="adamw_hf")
SFTTrainer(model, tokenizer=tokenizer, max_seq_length=3)
"""


def test_the_patch_renames_what_was_only_renamed(tmp_path):
    import subprocess

    look = looked(tmp_path, OLD)
    (tmp_path / "a.diff").write_text(look.seen["patch"], encoding="utf-8")
    subprocess.run(["git", "apply", "--unidiff-zero", "-p0", "a.diff"], cwd=tmp_path, check=True)
    assert (tmp_path / "train.py").read_text(encoding="utf-8") == OLD.replace("int8", "kbit").replace(
        "evaluation_strategy", "eval_strategy"
    ).replace("warmup_ratio", "warmup_steps").replace("SFTConfig(max_seq_length", "SFTConfig(max_length").replace(
        "adamw_hf", "adamw_torch_fused"
    ).replace("tokenizer=", "processing_class=")
    again = check.look(tmp_path / "train.py", None)
    assert again.seen["patch"] == ""
    old = {each.evidence["old"] for each in again.findings if each.id == "project.spelling.old"}
    assert old == {"group_by_length", "max_seq_length"}


def test_nothing_of_a_script_is_executed(tmp_path):
    evil = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).write_text('x')\nraise SystemExit\n"
    looked(tmp_path, evil, helpers=evil)
    looked(tmp_path, "import helpers\n" + evil, helpers=evil)
    assert not (tmp_path / "ran").exists()


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "outside.py").write_text("RANK = 1\n", encoding="utf-8")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "helpers.py").symlink_to(tmp_path / "outside.py")
    look = looked(inside, "import helpers\nprint(helpers.RANK)\n")
    assert look.seen["files"] == ["train.py"]


def test_check_project_takes_a_script_and_gives_no_digest(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "find", lambda folder: [])
    (tmp_path / "train.py").write_text("from trl import SFTConfig\nSFTConfig(max_seq_length=1)\n", encoding="utf-8")
    checked = projects.check(tmp_path / "train.py")
    assert checked.digest is None and checked.proofs["script"]["file"] == "train.py"
    assert {"project.spelling.old", "project.call.unchecked"} == {each.id for each in checked.findings}
    assert list(tmp_path.iterdir()) == [tmp_path / "train.py"]


@pytest.mark.parametrize(
    ("name", "text"), [("a.txt", "x"), ("a.ipynb", "{}"), ("a.ipynb", "[1]"), ("b.ipynb", "not json")]
)
def test_other_files_are_refused(tmp_path, name, text):
    with pytest.raises(PeftsmithError):
        looked(tmp_path, text, name)


def test_a_shell_line_in_a_py_file_is_a_fault_and_the_rest_is_read(tmp_path):
    look = looked(tmp_path, "!pip install trl\nfrom trl import SFTConfig\nSFTConfig(max_seq_length=1)\n")
    assert {"project.script.syntax", "project.spelling.old", "script.pip.unpinned"} <= ids(look)


def test_every_finding_of_this_stage_is_made_and_planted():
    folder = REPOSITORY / "mcp_server" / "peftsmith" / "project" / "foreign"
    sources = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    mine = {each for each in catalogue() if each.startswith("script.")}
    assert [each for each in sorted(mine) if f'"{each}"' not in sources] == []
    planted = {each for path in CASES.glob("script-*") for each in cases.load(path).expect}
    assert mine - planted == {"script.shell.command"}  # info about any command, in test_magics


@pytest.mark.training
def test_against_the_installed_libraries_clean_cases_stay_clean_and_unknown_arguments_are_found(
    training_python, tmp_path
):
    environment = environments.ask(training_python, "test")
    assert environment is not None
    clean = [path for path in sorted(CASES.glob("script-clean-*"))]
    for path in clean:
        case = cases.load(path)
        for item in case.files:
            (tmp_path / item.path).parent.mkdir(exist_ok=True)
            (tmp_path / item.path).write_bytes((path / item.source).read_bytes())
        look = check.look(tmp_path / case.files[0].path, environment)
        assert [each.to_json() for each in look.findings if each.severity in ("error", "warning")] == [], path.name
    # TRL's own scripts, which run with the TRL that they came with
    installed = Path(training_python).parent.parent / "lib"
    scripts = next(installed.glob("*/site-packages/trl/scripts"))
    own = [scripts / f"{name}.py" for name in ("sft", "dpo", "grpo", "reward")]
    for path in own:
        look = check.look(path, environment)
        assert [each.to_json() for each in look.findings if each.severity in ("error", "warning")] == [], path.name
        assert look.seen["trainers"] and "script.unread.value" in ids(look)  # their arguments come from outside
    look = check.look(tmp_path / "train.py", environment)
    assert look.seen["compared_with"]["trl"] == environment.versions["trl"]
    text = (
        "from peft import LoraConfig, get_peft_config_of\nfrom trl import SFTConfig\n"
        "s = {'lora_rank': 8}\nLoraConfig(**s)\nSFTConfig(max_lenght=3, bf16=True)\nprint(get_peft_config_of)\n"
    )
    (tmp_path / "train.py").write_text(text, encoding="utf-8")
    found = check.look(tmp_path / "train.py", environment).findings
    assert {(each.id, each.evidence.get("keyword"), each.evidence["line"]) for each in found} == {
        ("project.call.unknown_keyword", "lora_rank", 4),
        ("project.call.unknown_keyword", "max_lenght", 5),
        ("project.call.missing", None, 1),
    }
    client.stop(environment)


PACKS = """
from transformers import {loader}
from trl import SFTConfig, SFTTrainer

model = {loader}.from_pretrained("base"{more})
trainer = SFTTrainer(model=model, args=SFTConfig(output_dir="out", learning_rate=1e-5, packing=True{config}))
trainer.train()
"""


@pytest.mark.parametrize(
    ("config", "script", "severity", "said"),
    [
        ({"model_type": "llama"}, {}, None, ""),
        ({"model_type": "bloom"}, {}, "warning", "bloom models let rows see each other"),
        ({"model_type": "bamba"}, {}, "warning", "causal_conv1d"),
        ({"model_type": "of_tomorrow"}, {}, "unknown", "of_tomorrow models keep rows apart has not been tried"),
        (None, {}, "unknown", "was not found out"),
        ("no object", {}, "unknown", "was not found out"),
        ({"model_type": "llama"}, {"more": ', attn_implementation="eager"'}, "unknown", "eager has not been tried"),
        ({"model_type": "bloom"}, {"more": ', attn_implementation="flash_attention_2"'}, None, ""),
        ({"model_type": "llama"}, {"config": ', packing_strategy="wrapped"'}, "warning", "never keeps rows apart"),
        (None, {"loader": "LlamaForCausalLM"}, None, ""),
        (None, {"loader": "BloomForCausalLM"}, "warning", "bloom models"),
    ],
)
def test_packed_rows_are_judged_by_what_was_tried_with_the_architecture(tmp_path, config, script, severity, said):
    if config is not None:
        (tmp_path / "base").mkdir()
        (tmp_path / "base" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    text = PACKS.format(**{"loader": "AutoModelForCausalLM", "more": "", "config": "", **script})
    found = [each for each in looked(tmp_path, text).findings if each.id == "script.packing.attention"]
    assert [each.severity for each in found] == ([severity] if severity else [])
    assert all(said in each.message for each in found)


def test_what_was_tried_with_one_transformers_says_nothing_of_a_much_older_one(tmp_path):
    text = PACKS.format(loader="LlamaForCausalLM", more="", config="")
    pinned = looked(tmp_path, notebook("!pip install transformers==4.40.0", text), "train.ipynb").findings
    found = [each for each in pinned if each.id == "script.packing.attention"]
    assert [each.severity for each in found] == ["unknown"]
    assert "transformers 4.40.0 has not been tried" in found[0].message


ADAPTED = """
from peft import LoraConfig
from trl import SFTTrainer

SFTTrainer(model="{base}", train_dataset=rows, peft_config=LoraConfig(target_modules={targets}))
"""
TARGETS = {
    '["query_key_value"]': {"script.targets.no_match"},
    '["q_proj", "query"]': {"script.targets.unmatched"},
    '["q_proj", "v_proj"]': set(),
    '"all-linear"': set(),
    'r"model\\.layers\\.\\d+\\.mlp\\..*_proj"': set(),
    'r"transformer\\.h\\..*"': {"script.targets.no_match"},
}


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("loaded", [False, True])
def test_target_modules_are_held_against_a_base_that_lies_here(targets, loaded, tmp_path, tiny_model):
    text = ADAPTED.format(base=tiny_model, targets=targets)
    if loaded:
        model = f'AutoModelForCausalLM.from_pretrained("{tiny_model}")'
        text = "from transformers import AutoModelForCausalLM\n" + text.replace(f'"{tiny_model}"', model)
    files.set_roots([tmp_path, tiny_model])
    found = {each for each in ids(looked(tmp_path, text)) if each.startswith("script.targets")}
    assert found == TARGETS[targets]


def test_target_modules_of_a_base_elsewhere_are_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    text = ADAPTED.format(base="owner/model", targets='["q_proj"]')
    found = [each for each in looked(tmp_path, text).findings if each.id.startswith("script.targets")]
    assert [(each.id, each.severity) for each in found] == [("script.targets.unchecked", "unknown")]
