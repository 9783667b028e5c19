"""Model folders: what is read, and what is refused with what to do."""

from __future__ import annotations

import json
import shutil
import struct

import pytest

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.model import source
from tests.tiny import write_safetensors


@pytest.fixture
def folder(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_a_local_folder_gives_config_and_all_tensors(tiny_model):
    found = source.open_model(str(tiny_model))
    assert found.folder == tiny_model.resolve() and found.commit is None and found.notes == ()
    assert found.config["model_type"] == "llama"
    assert found.tensors["model.layers.1.mlp.down_proj.weight"].shape == (64, 128)
    assert source.tokenizer_folder(found) == tiny_model.resolve()


def shard(folder, index: dict[str, str] | None = None):
    (folder / "model.safetensors").unlink()
    parts = {"model-00001-of-00002.safetensors": {"a.weight": (2, 3)}, "model-00002-of-00002.safetensors": {"b": (4,)}}
    for name, shapes in parts.items():
        write_safetensors(folder / name, shapes)
    stated = index if index is not None else {key: name for name, shapes in parts.items() for key in shapes}
    (folder / source.INDEX).write_text(json.dumps({"weight_map": stated}), encoding="utf-8")


def test_shards_are_joined_by_their_index(folder):
    shard(folder)
    found = source.open_model(str(folder))
    assert {name: each.file[:11] for name, each in found.tensors.items()} == {
        "a.weight": "model-00001",
        "b": "model-00002",
    }


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"a.weight": "../../etc/passwd.safetensors"}, "not a plain safetensors file name"),
        ({"a.weight": "/etc/x.safetensors"}, "not a plain safetensors file name"),
        ({"a.weight": 3}, "not a plain safetensors file name"),
        ({"a.weight": "model-00003-of-00002.safetensors"}, "is missing"),
        ({"a.weight": "model-00002-of-00002.safetensors"}, "but it does not"),
        ({}, "no weight_map"),
    ],
)
def test_a_wrong_index_is_refused(folder, index, said):
    shard(folder, index)
    with pytest.raises(PeftsmithError) as caught:
        source.open_model(str(folder))
    assert said in str(caught.value)


def test_pickle_only_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(PeftsmithError, match="pickle") as caught:
        source.open_model(str(folder))
    assert "safetensors" in caught.value.next_step


def test_pickle_beside_safetensors_is_no_matter(folder):
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert source.open_model(str(folder)).tensors


def test_gguf_only_is_an_error_finding(tmp_path):
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(8))
    found = source.open_model(str(tmp_path))
    assert [(each.id, each.severity) for each in found.notes] == [("model.weights.gguf_only", "error")]
    assert found.tensors == {} and found.config == {}


def test_config_alone_is_said_to_be_alone(folder):
    (folder / "model.safetensors").unlink()
    assert [each.id for each in source.open_model(str(folder)).notes] == ["model.weights.missing"]


def test_weights_of_another_name_are_an_error_finding(folder):
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    assert [(n.id, n.severity) for n in source.open_model(str(folder)).notes] == [
        ("model.weights.unknown_layout", "error")
    ]


def test_no_tokenizer_is_said(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(PeftsmithError, match=r"no tokenizer\.json"):
        source.tokenizer_folder(source.open_model(str(folder)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "config.json").unlink(), r"no config\.json"),
        (
            lambda f: ((f / "config.json").unlink(), (f / "adapter_config.json").write_text("{}")),
            "an adapter, not a base",
        ),
        (lambda f: (f / "config.json").write_text("[1]"), "not a JSON object"),
        (lambda f: (f / "config.json").write_text('{"a": '), "not valid JSON"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "not valid JSON"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]), "truncated"),
    ],
)
def test_broken_folders_are_refused_with_a_next_step(folder, change, said):
    change(folder)
    with pytest.raises(PeftsmithError, match=said) as caught:
        source.open_model(str(folder))
    assert caught.value.next_step


@pytest.mark.parametrize(
    "name", ["", "./nowhere", "/nowhere/at/all", 'x"; import os #', "a/b/c", "../..//x", "a\x00b", "a\nb"]
)
def test_what_is_neither_folder_nor_id_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PeftsmithError):
        source.open_model(name)


def test_a_file_instead_of_its_folder_and_a_revision_of_a_folder_are_refused(tiny_model):
    with pytest.raises(PeftsmithError, match="not as one file"):
        source.open_model(str(tiny_model / "model.safetensors"))
    with pytest.raises(PeftsmithError, match="no revision"):
        source.open_model(str(tiny_model), "main")


def test_a_folder_outside_of_the_roots_is_refused(tiny_model, tmp_path):
    files.set_roots([tmp_path])
    with pytest.raises(PeftsmithError, match="outside"):
        source.open_model(str(tiny_model))


def test_the_licence_comes_from_the_card(folder):
    (folder / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\nlicense: mit\n", encoding="utf-8")
    assert source.open_model(str(folder)).licence == "apache-2.0"
