"""Every valid plan becomes files that read back exactly, and nothing of a plan escapes its place in them."""

from __future__ import annotations

import ast
import itertools
import json
import re
import subprocess
import sys
import tokenize
import tomllib
from collections import Counter
from functools import cache
from io import StringIO

import pytest
import ruff
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from peftsmith import assets, secrets
from peftsmith.errors import PeftsmithError
from peftsmith.plan import LABELLED, TASK_FORMATS, flatten
from peftsmith.project import facts, literal, proof_facts, render, requirements, settings
from tests.conftest import REPOSITORY
from tests.project.plans import COMMIT, lock_for, make

QUANTIZED = {"bits": 4, "type": "nf4", "double": True}
text = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t\"'\\{}%#`$"), max_size=120)
# Characters of which every Unicode version knows the width.
common = st.text(st.sampled_from("abcdefgh 0123456789   \n\t\"'\\{}%#`$\u00e9\u6f22\u202e"), max_size=160)


def _ruff(*arguments: str, code: str) -> subprocess.CompletedProcess[str]:
    argv = [ruff.find_ruff_bin(), *arguments, "--isolated", "--no-cache", "--stdin-filename", "script.py", "-"]
    return subprocess.run(argv, input=code, capture_output=True, encoding="utf-8", check=False)


def _variants():
    yield make()
    yield make(data__test=None, data__eval="data/eval.jsonl", data__system_prompt=None)
    yield make("chat", data__eval="data/eval.jsonl", tracking="tensorboard")
    for quantization, precision, form in itertools.product(
        (None, QUANTIZED), ("fp32", "bf16", "fp16"), ("messages", "prompt_completion")
    ):
        yield make(
            "chat",
            method__quantization=quantization,
            method__config={"use_rslora": True} if precision == "fp16" else {},
            training__precision=precision,
            data__format=form,
            data__system_prompt="Be brief." if form == "messages" else None,
        )
    yield make(method__quantization={**QUANTIZED, "bits": 8}, data__train="a.csv", data__test="b.tsv")
    yield make(data__train="a.json", data__test="b.json", base__trust_remote_code=True)
    yield make("chat", data__test=None, base__model="/models/local", base__revision=None)


METHODS = [
    {"config": {"use_dora": True, "rank_pattern": {"q_proj": 8}, "exclude_modules": ["v_proj"]}},
    {"peft_type": "FULL", "reason": "a test of all weights"},
    {"peft_type": "PROMPT_TUNING", "config": {"num_virtual_tokens": 8}},
    {"peft_type": "ADALORA", "rank": 8, "config": {"target_r": 4}},
    {"config": {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}},
    {"peft_type": "P_TUNING", "config": {"num_virtual_tokens": 8}, "quantization": QUANTIZED},
    {"peft_type": "ADAPTION_PROMPT", "config": {"adapter_len": 4, "adapter_layers": 2}},
]


def _tasks_and_methods():
    for place, (task, formats) in enumerate(TASK_FORMATS.items()):
        labels = ["a", "b"] if task in LABELLED else []
        for method in (METHODS[place % len(METHODS)], METHODS[(place + 1) % len(METHODS)]):
            yield make(task, data__format=formats[-1], data__labels=labels, data__eval="data/e.jsonl", method=method)
    yield make(
        "sequence_classification",
        data__format="classification",
        data__labels=["a", "b"],
        method={"config": {"modules_to_save": ["norm"], "bias": "all"}},
    )
    yield make(
        "question_answering",
        data__format="question_answering",
        data__columns={"context": "passage"},
        data__unanswerable=True,
        data__test="data/t.jsonl",
        method={"quantization": {"bits": 4}, "config": {"modules_to_save": ["norm"]}},
    )
    yield make("seq2seq", data__format="seq2seq", data__columns={"source": "de", "target": "en"})
    yield make(
        "token_classification",
        data__format="token_classification",
        data__labels=["O", "B"],
        data__columns={"tags": "ner"},
        base__trust_remote_code=True,
    )


def _starts():
    """LoRA that looks at rows first, changes the base, or begins with what four bits lose."""
    for task, form in (("chat", "messages"), ("completion", "prompt_completion"), ("text", "text")):
        for init in ("corda", "lora_ga"):
            config = {"init_lora_weights": init}
            yield make(task, data__format=form, method={"config": config})
            own = {f"{init}_config": {"corda_method": "kpm"} if init == "corda" else {"direction": "ArBr"}}
            yield make(task, data__format=form, method={"config": config | own, "target_modules": ["q_proj"]})
    yield make("chat", training__chat_template="own.jinja", method={"config": {"init_lora_weights": "corda"}})
    rounded = {"config": {"init_lora_weights": "loftq"}, "quantization": QUANTIZED}
    for task in ("chat", "sequence_classification", "question_answering", "seq2seq"):
        labels = ["a", "b"] if task in LABELLED else []
        yield make(task, data__format=TASK_FORMATS[task][0], data__labels=labels, method=rounded)
    yield make("chat", data__eval="data/e.jsonl", method={"config": {"layer_replication": [[0, 2], [1, 2]]}})


VARIANTS = [*_variants(), *_tasks_and_methods(), *_starts()]


@cache
def _rendered(place):
    wanted = VARIANTS[place]
    folder = None if wanted.base.revision else wanted.base.model
    return wanted, render.render(wanted, lock_for(wanted, folder))


@pytest.fixture(params=range(len(VARIANTS)))
def rendered(request):
    return _rendered(request.param)


@pytest.mark.parametrize("method", [{}, {"peft_type": "FULL", "reason": "a test"}, {"quantization": QUANTIZED}])
def test_a_decoder_that_answers_is_told_the_names_of_its_checkpoint(tmp_path, method):
    """transformers' own class would start its body from random weights, and only log it."""
    wanted = make("question_answering", data__format="question_answering", data__eval="data/e.jsonl", method=method)
    base = {"model": "owner/model", "commit": wanted.base.revision, "folder": None, "model_type": "qwen2"}
    files = render.render(wanted, lock_for(wanted).model_copy(update={"base": base}))
    _write(files, tmp_path / "00")
    _clean(tmp_path)
    for name in {"train.py", "evaluate.py", "infer.py", "merge.py"} & files.keys():
        loads = files[name].count("AutoModelForQuestionAnswering.from_pretrained")
        assert files[name].count("key_mapping=BODY_NAMES") == loads > 0, name
    bert = lock_for(wanted).model_copy(update={"base": {**base, "model_type": "bert"}})
    assert "BODY_NAMES" not in "".join(render.render(wanted, bert).values())


def test_scripts_are_formatted_and_clean(tmp_path):
    for place in range(len(VARIANTS)):
        _write(_rendered(place)[1], tmp_path / f"{place:02}")
    _clean(tmp_path)


def _write(files, folder):
    folder.mkdir()
    for name, code in files.items():
        if name.endswith(".py"):
            (folder / name).write_text(code, encoding="utf-8")


def _clean(folder):
    """Projects below `folder`, one of them 00, whose modules ruff is to take for the scripts' own."""
    rules = ["--select", "E,F,B,S,I,UP,SIM,RUF,C4", "--ignore", "E501,S311", "--config", 'src = ["00"]']
    for arguments in (["format", "--check"], ["check", *rules]):
        argv = [ruff.find_ruff_bin(), *arguments, "--isolated", "--no-cache", "."]
        done = subprocess.run(argv, cwd=folder, capture_output=True, encoding="utf-8", check=False)
        assert done.returncode == 0, done.stdout + done.stderr


# Rows are drawn with a seed, which is no cryptography; what has no commit is a folder that the scripts wrote.
NO_FAULT = {"B311"}
OWN_FOLDERS = re.compile(
    r"from_pretrained\(\s*(?:model, |base, )?(?:arguments\.)?(adapter|folder|tokenizer_folder|partial)\b"
)


@pytest.mark.slow
def test_bandit_finds_nothing(tmp_path):
    """A plan of every task: each load that may come from the hub names its commit."""
    chosen = {
        (wanted.task, bool(wanted.method.full)): place for place, wanted in enumerate(VARIANTS) if wanted.base.revision
    }
    for place in chosen.values():
        _write(_rendered(place)[1], tmp_path / str(place))
    argv = [sys.executable, "-m", "bandit", "--quiet", "--recursive", "--format", "json", "."]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert done.stdout, f"bandit of requirements/dev.txt did not run: {done.stderr[-300:]}"
    report = json.loads(done.stdout)
    assert report["errors"] == [] and len({task for task, _ in chosen}) == len(TASK_FORMATS)
    left = []
    for fault in report["results"]:
        lines = (tmp_path / fault["filename"]).read_text(encoding="utf-8").splitlines()
        call = "\n".join(lines[fault["line_number"] - 1 :])
        own = fault["test_id"] == "B615" and OWN_FOLDERS.search(call.split(")")[0])
        if fault["test_id"] not in NO_FAULT and not own:
            left.append((fault["filename"], fault["line_number"], fault["test_id"], fault["issue_text"]))
    assert left == []


def test_settings_are_the_plans_values(rendered):
    wanted, files = rendered
    flat = flatten(wanted)
    for name, code in files.items():
        if not name.endswith(".py") or name == "progress.py":
            continue
        found = settings.read(code)
        assert found.get("BASE_MODEL", wanted.base.model if wanted.method.full else None) == wanted.base.model
        assert settings.unreadable(code) == []
        words = Counter(token.string for token in tokenize.generate_tokens(StringIO(code).readline))
        for setting, value in found.items():
            field = settings.fields()[setting]
            assert value == flat.get(field, field.rpartition(".")[2]), (name, setting)
            assert words[setting] >= 2, f"{name} never uses {setting}"
    assert {"LEARNING_RATE", "TRAIN_FILE", "PRECISION"} <= set(settings.read(files["train.py"]))


def test_only_what_the_plan_needs(rendered):
    wanted, files = rendered
    assert ("BitsAndBytesConfig" in files["train.py"]) == bool(wanted.method.quantization)
    assert ("evaluate.py" in files) == bool(wanted.data.test or wanted.data.eval)
    assert ("bitsandbytes==" in files["requirements.txt"]) == bool(wanted.method.quantization)
    assert ("scikit-learn==" in files["requirements.txt"]) == (
        wanted.task in ("classification", "sequence_classification")
    )
    assert ("LABELS = [" in files["train.py"]) == wanted.task.endswith("classification")
    assert ("merge.py" in files) == proof_facts.facts_of(wanted, "llama")["merges"]
    assert ("eval_strategy" in files["train.py"]) == bool(wanted.data.eval)
    assert "BitsAndBytesConfig" not in files.get("merge.py", "")
    assert ("HF_TOKEN=your_hugging_face_token_here" in files[".env.example"]) == bool(wanted.base.revision)
    for name, content in files.items():
        assert "peftsmith" not in content, name
        assert secrets.find_in_text(content) == [], name
        assert "{{" not in content.replace("{{,", "") and "{%" not in content, name
    assert len(files["progress.py"].splitlines()) <= 90


def test_requirements_are_pinned_with_hashes_and_torch_by_version():
    content = render.render(make(), lock_for(make()))["requirements.txt"]
    pins = re.findall(r"^([A-Za-z0-9._-]+)==", content, re.MULTILINE)
    assert {"transformers", "peft", "trl", "datasets", "accelerate"} <= set(pins) and "torch" not in pins
    blocks = re.split(r"^(?=[A-Za-z0-9._-]+==)", content, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in block for block in blocks)
    assert f"torch=={requirements.torch_version()}" in content
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert f"torch=={requirements.torch_version()}" in project["project"]["optional-dependencies"]["train"]


def test_a_hub_models_commit_comes_from_the_lock_where_the_plan_has_none():
    wanted = make(base__revision=None)
    pinned = lock_for(wanted).model_copy(update={"base": {"model": "owner/model", "commit": COMMIT, "folder": None}})
    assert settings.read(render.render(wanted, pinned)["merge.py"])["BASE_REVISION"] == COMMIT


@pytest.mark.parametrize(
    "data",
    [{"columns": {"source": "translation.de"}}, {"columns": {"context": "c"}}, {"roles": {"gpt": "assistant"}}],
)
def test_rows_that_the_scripts_would_not_read_are_refused(data):
    wanted = make("seq2seq", data__format="seq2seq", **{f"data__{name}": value for name, value in data.items()})
    with pytest.raises(PeftsmithError, match="prepare_dataset"):
        render.render(wanted, lock_for(wanted))


@pytest.mark.parametrize("path", ["../rows.jsonl", "/etc/rows.jsonl", "rows.parquet", "a/../../b.csv", "rows"])
def test_data_outside_the_project_or_of_another_kind_is_refused(path):
    wanted = make(data__train=path)
    with pytest.raises(PeftsmithError):
        render.render(wanted, lock_for(wanted))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
        lambda inner: st.lists(inner, max_size=12) | st.dictionaries(text, inner, max_size=4),
        max_leaves=20,
    )
)
@examples(max_examples=150, deadline=None)
def test_a_setting_reads_back_equal(value):
    try:
        line = literal.setting(value, "SETTING")
    except PeftsmithError as error:
        assert "deeply" in str(error)
        return
    tree = ast.parse(line)
    assert len(tree.body) == 1 and isinstance(tree.body[0], ast.Assign)
    found = ast.literal_eval(tree.body[0].value)
    assert found == value and repr(found) == repr(value)


@given(common | st.lists(common, max_size=8) | st.floats(allow_nan=False, allow_infinity=False))
@examples(max_examples=40, deadline=None)
def test_a_setting_is_laid_out_as_ruff_does_it(value):
    code = literal.setting(value, "SETTING") + "\n"
    assert _ruff("format", code=code).stdout == code


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1: 2}, object(), (1, 2)])
def test_what_is_no_plain_value_is_refused(value):
    with pytest.raises(PeftsmithError):
        literal.literal(value)


@pytest.mark.parametrize("value", ["Upper", "a b", "", "x\n", "-a", 3, "a" * 64])
def test_names_match_their_pattern(value):
    with pytest.raises(PeftsmithError):
        literal.name(value)


def test_a_template_cannot_print_an_unfiltered_value():
    environment = render._environment()
    told = {"value": 'x"; import os #', "plan": {"name": "tickets"}}
    assert environment.from_string("{{ value | literal }}").render(told) == "'x\"; import os #'"
    for source in ("{{ value }}", "{{ plan.name }}", "{{ value | literal ~ value }}", "{{ missing }}"):
        with pytest.raises(Exception, match=r"unfiltered|undefined"):
            environment.from_string(source).render(told)
    with pytest.raises(Exception, match=r"undefined|unsafe"):
        environment.from_string("{{ value.__class__.__mro__ | literal }}").render(told)


def test_every_template_is_used():
    folder = assets.folder("templates")
    sources = {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in folder.rglob("*.j2")}
    named = set(render._PLAIN_FILES.values()) | {
        "evaluate_classification.py.j2",
        "infer_adapters.py.j2",
        "merge.py.j2",
        "train_bottleneck.py.j2",
    }
    named |= {f"{name}_{kind}.py.j2" for name in ("train", "infer", "evaluate") for kind in facts.KINDS.values()}
    named |= {name for source in sources.values() for name in re.findall(r'include "([^"]+)"', source)}
    assert named == set(sources)


def test_a_head_of_several_layers_is_taken_out_of_its_wrapper_before_merging():
    labelled = {"data__format": "classification", "data__labels": ["a", "b"]}
    for method, unwraps in (({"peft_type": "C3A"}, True), ({"rank": 4}, False)):
        wanted = make("sequence_classification", method=method, **labelled)
        assert ("unwrap_trained(model)" in render.render(wanted, lock_for(wanted))["merge.py"]) == unwraps


def test_merging_trained_tokens_looks_at_these_tokens():
    wanted = make("chat", method={"peft_type": "TRAINABLE_TOKENS", "config": {"token_indices": [7, 8]}})
    merge = render.render(wanted, lock_for(wanted))["merge.py"]
    assert settings.read(merge)["TOKEN_INDICES"] == [7, 8] and "TOKEN_INDICES[:64]" in merge


def test_an_adapter_whose_layers_answer_in_float32_is_read_so():
    method = {"peft_type": "PVERA", "rank": 4, "quantization": QUANTIZED}
    for precision in ("bf16", "fp32"):
        wanted = make("chat", method=method, training__precision=precision)
        files = render.render(wanted, lock_for(wanted))
        for name in ("infer.py", "evaluate.py"):
            assert ("\nDTYPE = torch.float32\n" in files[name]) == (precision == "bf16"), (name, precision)
            assert ("PRECISION" in files[name]) == (precision == "fp32"), (name, precision)
        assert "}[PRECISION]" in files["train.py"]


def test_what_peft_turns_into_parameters_is_not_trained():
    method = {"peft_type": "ADALORA", "rank": 12, "config": {"target_r": 8}}
    for precision in ("bf16", "fp32"):
        wanted = make("chat", method=method, training__precision=precision)
        assert (".ranknum." in render.render(wanted, lock_for(wanted))["train.py"]) == (precision == "bf16")
