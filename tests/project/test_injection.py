"""Nothing of a plan escapes its place: every field that takes text, in the files of every task and method."""

from __future__ import annotations

import ast
import copy
import itertools
import json
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import ruff
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from benchmarks.first_runs import cases
from peftsmith import plan
from peftsmith.errors import PeftsmithError
from peftsmith.knowledge import method_options, methods
from peftsmith.project import facts, generate, notebook, render, settings
from tests import credentials
from tests.project.plans import lock_for, make, write_project
from tests.project.text_fields import filled, text_fields

FIELDS = tuple(dict.fromkeys(name for name, _ in text_fields()))
WAYS = {field: [way for name, way in text_fields() if name == field] for field in FIELDS}
HARMLESS = "harmless"
# Quotes, three of them, braces, line ends, Jinja, comments, shells, Markdown, formats, escapes, letters of all kinds.
HOSTILE = {
    "code": '"; import os #\'\'\'"""{{ 7 * 7 }}{% raw %}{# #}\nB = 1\n%s {0} $(id)\n```\n# h\n```\\\\N{BULLET}\\',
    "path": "a\"';{{ x }} \u202e\u200b \U0001f600 \u6f22 e\u0301",  # may be in a data file's name
}
# Text of a form of its own, or that the scripts do not read: a plan with any other text there is refused.
CLOSED = {"name", "base.revision", "data.roles", "data.label_names", "method.peft_type", "training.chat_template"}
SEVERAL = {"adapters", "mixture"}  # named parts with fields of their own, tried in a plan that has them
Place = tuple[str, str, int]  # field, way, which of the way's values
text = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t\"'\\{}%#`$"), max_size=120)


@cache
def _base(task: plan.Task) -> dict[str, Any]:
    labels = ["a", "b"] if task in plan.LABELLED else []
    made = make(task, data__format=plan.TASK_FORMATS[task][0], data__labels=labels, data__system_prompt=None)
    return made.model_dump(mode="json")


def _values(field: str, way: str, value: str, document: dict[str, Any]) -> list[Any]:
    """Ways to put `value` into a field: bare, as a data file's name, in each place of a mapping."""
    if field == "method.config":
        own = document["method"]["config"]
        return [{**own, **_options(document["method"]["peft_type"], value)} if way == "values" else {**own, value: 1}]
    held = filled(way, value, facts.ROW_COLUMNS.get(document["data"]["format"], ()))
    return [held, f"{value}.jsonl"] if way == "text" else [held] if held else []


def _options(peft_type: str, value: str) -> dict[str, Any]:
    """Every field of the method's config that takes any text, with this one in it."""
    known = methods.method(peft_type)
    ways = (value, [value, f"{value}2"], {value: 8}, {value: value})
    fitting = {
        name: [way for way in ways if not list(method_options.faults(known, {name: way}))]
        for name in known.fields
        if name not in known.needs
    }
    return {name: found[0] for name, found in fitting.items() if found}


def _put(document: dict[str, Any], place: Place, value: str) -> dict[str, Any]:
    field, way, number = place
    return _with(document, field, _values(field, way, value, document)[number])


def _with(document: dict[str, Any], field: str, held: Any) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    *parents, leaf = field.split(".")
    node = changed
    for parent in parents:
        node = node[parent]
    node[leaf] = held
    return changed


def _usable_with(field: str, value: str, tasks: tuple[plan.Task, ...]) -> Iterator[plan.FineTunePlan]:
    """The plans that take `value` in this field alone; of a method's config, in one list of it."""
    for task in tasks:
        base = _base(task)
        ways = [each for way in WAYS[field] for each in _values(field, way, value, base)]
        for held in [{"modules_to_save": [value]}] if field == "method.config" else ways:
            made = _usable(_with(base, field, held))
            if made is not None:
                yield made


def _usable(document: dict[str, Any]) -> plan.FineTunePlan | None:
    """The plan, or None when it is refused before anything is rendered."""
    try:
        made = plan.validate(document)
        facts.facts_of(made, lock_for(made))
    except PeftsmithError:
        return None
    return made


def _fill(
    document: dict[str, Any], value: str, turn: int, fields: tuple[str, ...]
) -> tuple[dict[str, Any], list[Place]]:
    """The plan with `value` in every field that takes it, and where it is. `turn` begins with another way."""
    taken: list[Place] = []
    for field in fields:
        ways = WAYS[field][turn % len(WAYS[field]) :] + WAYS[field]
        tried = [(field, way, place) for way in ways for place in range(len(_values(field, way, value, document)))]
        for each in tried:
            changed = _put(document, each, value)
            if _usable(changed) is not None:
                document = changed
                taken.append(each)
                break
    return document, taken


def _inert(
    document: dict[str, Any], value: str, turn: int = 0, fields: tuple[str, ...] = FIELDS
) -> tuple[dict[str, str], set[str], set[str]]:
    """The files with `value` wherever the plan takes it: their trees are those with harmless text, but for settings.

    Returns them, the fields that took it, and those of these that a script shows as a setting.
    """
    document_with, places = _fill(document, value, turn, fields)
    for place in places:
        document = _put(document, place, HARMLESS)
    wanted, harmless = plan.validate(document_with), plan.validate(document)
    files, expected = (render.render(each, lock_for(each)) for each in (wanted, harmless))
    assert files.keys() == expected.keys()
    flat = plan.flatten(wanted)
    shown = set()
    for name in files:
        if name.endswith(".py"):
            assert _shape(files[name]) == _shape(expected[name]), name
            found = {settings.fields()[setting]: value for setting, value in settings.read(files[name]).items()}
            shown |= found.keys()
            for field in found:
                default = field.rpartition(".")[2] if field.startswith("data.columns.") else None
                assert found[field] == flat.get(field, default), (name, field)
        elif name == "README.md":
            assert len(files[name].splitlines()) == len(expected[name].splitlines())
            assert files[name].count("```") == expected[name].count("```")
        else:
            assert files[name] == expected[name], name
    assert _cells(files, wanted) == _cells(expected, harmless)
    taken = {field for field, _, _ in places}
    return files, taken, {field for field in taken for each in shown if each == field or each.startswith(f"{field}.")}


def _cells(files: dict[str, str], wanted: plan.FineTunePlan) -> list[tuple[str, Any]]:
    """The notebook's cells: code, but for the scripts in it, which are the files byte for byte; lines of Markdown."""
    cells = json.loads(notebook.build(files, wanted, lock_for(wanted)))["cells"]
    sources = [(each["cell_type"], "".join(each["source"])) for each in cells]
    return [
        (kind, (len(text.splitlines()), text.count("```")) if kind == "markdown" else _own(text))
        for kind, text in sources
    ]


def _own(code: str) -> str:
    """Code of the notebook's own; lines for IPython do not parse, and are compared as text."""
    try:
        return "" if code.startswith("%%writefile") else _shape(code)
    except SyntaxError:
        return code


def _shape(code: str) -> str:
    """The syntax tree with the values of all settings made alike, and of the notebook's ROWS."""
    tree = ast.parse(code)
    alike = {*settings.fields(), "ROWS"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in alike:
            ast.literal_eval(node.value)
            node.value = ast.Constant(None)
    return ast.dump(tree)


@cache
def _seen(task: plan.Task, kind: str, turn: int = 0) -> tuple[dict[str, str], set[str], set[str]]:
    return _inert(_base(task), HOSTILE[kind], turn)


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("task", plan.TASK_FORMATS)
def test_hostile_text_stays_in_its_literals(task, kind, tmp_path):
    files, taken, _ = _seen(task, kind)
    assert {"base.model", "method.config", "method.reason"} <= taken
    if kind == "code":
        _seen(task, kind, turn=1)
        _formatted_and_clean(files, tmp_path)


def _formatted_and_clean(files: dict[str, str], folder: Path) -> None:
    scripts = [name for name in files if name.endswith(".py")]
    for name in scripts:
        (folder / name).write_text(files[name], encoding="utf-8")
    for arguments in (["format", "--check"], ["check", "--select", "E,F,B,S", "--ignore", "E501,S311"]):
        argv = [ruff.find_ruff_bin(), *arguments, "--isolated", "--no-cache", *scripts]
        done = subprocess.run(argv, cwd=folder, capture_output=True, encoding="utf-8", check=False)
        assert done.returncode == 0, done.stdout


def test_every_field_that_takes_text_was_tried():
    """A new field in which no task's plan takes hostile text is named among the closed ones, or tried otherwise."""
    seen = [_seen(task, kind) for task, kind in itertools.product(plan.TASK_FORMATS, HOSTILE)]
    taken = set().union(*(each[1] for each in seen))
    assert taken == set(FIELDS) - CLOSED - SEVERAL
    assert set().union(*(each[2] for each in seen)) == taken - {"method.reason"}  # README.md alone has it


# Those that are told the task of a row have no plan without a mixture, whose texts are tried below.
_ALONE = [each for each in methods.names() if not (methods.method(each).unsupported or methods.method(each).by_task)]


@pytest.mark.parametrize("name", _ALONE)
def test_options_of_every_method_are_inert(name):
    base = make("chat", method=cases.method(name)).model_dump(mode="json")
    _, taken, shown = _inert(base, HOSTILE["code"], fields=("method.config",))
    assert "method.config" in taken
    assert "method.config" in shown or not _options(name, HARMLESS)


@pytest.mark.slow
@given(value=text, task=st.sampled_from(sorted(plan.TASK_FORMATS)))
@examples(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_is_inert(value, task):
    _inert(_base(task), f"{value}'")  # no plan's name, which stands in docstrings


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
def test_a_megabyte_is_refused_or_a_literal(field):
    value = ("\"{{ '\\" * 200_000)[: 1 << 20]
    for made in _usable_with(field, value, ("classification",)):
        assert field == "method.config"  # plan.load refuses a file of this size, so only code can bring it here
        assert settings.read(render.render(made, lock_for(made))["train.py"])["MODULES_TO_SAVE"] == [value]


def test_the_locks_commit_is_a_literal():
    wanted = make(base__revision=None)
    locked = lock_for(wanted).model_copy(update={"base": {"model": "owner/model", "commit": HOSTILE["code"]}})
    assert settings.read(render.render(wanted, locked)["train.py"])["BASE_REVISION"] == HOSTILE["code"]


def _several(kind: str, value: str, path: str) -> plan.FineTunePlan:
    """A plan of several adapters or data sets with `path` in the names of their files, `value` in every other text."""
    document = copy.deepcopy(_base("chat"))
    document["data"] |= {"train": None, "eval": None, "test": None}
    files = {split: f"{path}.jsonl" for split in ("train", "eval", "test")}
    method = {"peft_type": "LORA", "rank": 4, "alpha": 8, "target_modules": [value], "config": {"bias": "none"}}
    own = {"system_prompt": value, "method": method} if kind == "adapters" else {}
    document[kind] = {"first": {**files, **own}, "second": {**files, "train": "data/other.jsonl", **own}}
    return plan.validate(document)


@pytest.mark.parametrize("kind", sorted(SEVERAL))
def test_texts_of_several_parts_are_inert(kind):
    hostile, harmless = _several(kind, HOSTILE["code"], HOSTILE["path"]), _several(kind, HARMLESS, HARMLESS)
    files, expected = (render.render(each, lock_for(each)) for each in (hostile, harmless))
    assert files.keys() == expected.keys()
    for name in (each for each in files if each.endswith(".py")):
        tree = ast.parse(files[name])
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.value = node.value.replace(HOSTILE["code"], HARMLESS).replace(HOSTILE["path"], HARMLESS)
        assert ast.dump(tree) == ast.dump(ast.parse(expected[name])), name
    assert HARMLESS in expected["train.py"]


@pytest.mark.parametrize("name", ['a"b', "a b", "a\nb", "{{a}}", "../a", "a" * 200])
@pytest.mark.parametrize("kind", sorted(SEVERAL))
def test_names_of_several_parts_are_plain(kind, name):
    document = _several(kind, HARMLESS, HARMLESS).model_dump(mode="json")
    document[kind][name] = document[kind].pop("first")
    with pytest.raises(PeftsmithError, match="not a valid plan"):
        plan.validate(document)


@pytest.mark.parametrize("field", sorted(set(FIELDS) - CLOSED - SEVERAL))
def test_no_file_is_written_that_would_hold_a_credential(field, tmp_path):
    secret = credentials.make("huggingface", 1).value
    usable = list(_usable_with(field, secret, ("classification", "seq2seq")))
    assert usable
    for number, made in enumerate(usable):
        _no_credential(write_project(tmp_path / str(number), made), secret)


def _no_credential(folder: Path, secret: str) -> None:
    before = sorted(folder.rglob("*"))
    written = generate.generate(folder)
    assert written.files == []
    assert {each.id for each in written.findings} == {"project.script.secret"}
    assert secret not in json.dumps([each.to_json() for each in written.findings])
    assert sorted(folder.rglob("*")) == before
