"""The renderer against transformers' own apply_chat_template, and its labels against a real SFTTrainer's batch."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from peftsmith.data.examples import Chat
from peftsmith.data.rendering import Renderer, truncate
from peftsmith.errors import PeftsmithError
from tests.data.templates import TEMPLATES, metaspace, with_template

WORDS = [
    *(
        "the",
        "parcel",
        "never",
        "came",
        "Straße",
        "déjà",
        "naïve",
        "日本語",
        "مرحبا",
        "🙂👍🏽",
        "don't",
        "3.14",
        "<b>",
        "{{x}}",
    ),
    *(
        "\n",
        "\n\n",
        "  ",
        "\t",
        "<|im_start|>",
        "<|im_end|>",
        "</s>",
        "<think>",
        "</think>",
        "assistant",
        "Ünï",
        "%}",
        "\r\n",
    ),
    *("\u200d", "e\u0301", "\x00", "\ufeff", " ", "|", "🏳️‍🌈"),
]


def conversation(draw: random.Random, *, alternate: bool) -> Chat:
    def content() -> str:
        return draw.choice(["", " "]).join(draw.choice(WORDS) for _ in range(draw.randint(1, 25))) or "x"

    messages = [{"role": "system", "content": content()}] if draw.random() < 0.4 else []
    for turn in range(draw.randint(1, 3)):
        messages += [{"role": "assistant", "content": content()}] if turn else []
        messages.append({"role": "user", "content": content()})
        if not alternate and draw.random() < 0.2:
            messages.append({"role": "user", "content": content()})
    answer: dict[str, str | None] = {"role": "assistant", "content": content()}
    if draw.random() < 0.3:
        answer["reasoning_content"] = draw.choice([content(), None])
    return Chat(messages, [answer])


def reference(training_python: str, tmp_path: Path, model: Path, cases: list[dict]) -> list[dict]:
    request, answer = tmp_path / "request.json", tmp_path / "answer.json"
    request.write_text(json.dumps({"model": str(model), "cases": cases}), encoding="utf-8")
    script = Path(__file__).with_name("reference.py")
    done = subprocess.run(
        [training_python, str(script), str(request), str(answer)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(answer.read_text(encoding="utf-8"))


@pytest.mark.training
def test_equals_transformers_and_trl(training_python, tmp_path, tiny_model, smollm2):
    draw = random.Random(20)
    folders = [smollm2, tiny_model, metaspace(tiny_model, tmp_path / "metaspace")]
    folders += [with_template(tiny_model, tmp_path / name, text) for name, text in TEMPLATES.items()]
    folders.append(with_template(smollm2, tmp_path / "smollm2-plain", TEMPLATES["plain"]))
    cases = []
    for folder in folders:
        for max_length, mode in ((None, "keep_start"), (60, "keep_start"), (40, "keep_end")):
            examples = [conversation(draw, alternate=folder.name == "alternating") for _ in range(40)]
            rows = [{"prompt": each.prompt, "completion": each.completion} for each in examples]
            cases.append({"folder": str(folder), "examples": rows, "max_length": max_length, "mode": mode})
    answers = reference(training_python, tmp_path, tiny_model, cases)
    compared = dropped = merged = 0
    for case, expected in zip(cases, answers, strict=True):
        renderer = Renderer.load(Path(case["folder"]))
        examples = [Chat(row["prompt"], row["completion"]) for row in case["examples"]]
        wanted = [pair for each in examples for pair in ((each.prompt, True), (each.prompt + each.completion, False))]
        texts = renderer.texts(wanted)
        assert texts == expected["texts"], case["folder"]
        assert [renderer.ids(text) for text in texts] == expected["ids"], case["folder"]
        ours = []
        for example, row in zip(examples, renderer.labels_many(examples), strict=True):
            assert renderer.labels(example) == (row.ids, row.mask())
            merged += row.prompt_length > row.start
            kept = truncate(row.ids, row.mask(), case["max_length"], case["mode"])
            dropped += kept is None
            if kept is not None:
                labels = [token if carries else -100 for token, carries in zip(*kept, strict=True)]
                ours.append((kept[0], labels))
        theirs = [(row["input_ids"], row["labels"]) for row in expected["collated"]]
        assert ours == theirs, case["folder"]
        assert all(row["padding_labels"] in ([], [-100]) for row in expected["collated"])
        compared += len(ours)
    assert compared > 800
    assert dropped > 20, "truncation must have emptied some rows"
    assert merged > 20, "some prompts must part early"


def test_template_from_config_when_there_is_no_file(tiny_model, tmp_path):
    renderer = Renderer.load(metaspace(tiny_model, tmp_path / "m"))
    assert renderer.text([{"role": "user", "content": "hi"}], True) == "<s><|user|>\nhi</s>\n<|assistant|>\n"


def test_no_special_tokens_are_added(tiny_model, tmp_path):
    renderer = Renderer.load(metaspace(tiny_model, tmp_path / "m"))
    bos = renderer.files.bos_id
    assert renderer.ids("<s>please")[0] == bos
    assert bos not in renderer.ids("please")
    assert len(renderer.ids("please " * 50)) > 32, "padding and truncation in tokenizer.json are not followed"


def test_eos_ids_hold_the_models_and_the_tokenizers(smollm2, tiny_model, tmp_path):
    assert Renderer.load(smollm2).eos_ids == {2}
    folder = with_template(tiny_model, tmp_path / "m", "x")
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 3]}', encoding="utf-8")
    assert Renderer.load(folder).eos_ids == {0, 2, 3}
    assert Renderer.load(folder).files.stop_ids == {0, 3}


def test_missing_template_is_named(tiny_model, tmp_path):
    folder = with_template(tiny_model, tmp_path / "m", "")
    (folder / "chat_template.jinja").unlink()
    renderer = Renderer.load(folder)
    assert renderer.files.template is None
    with pytest.raises(PeftsmithError, match="chat_template is null"):
        renderer.text([{"role": "user", "content": "a"}])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x80\x04\x95", b'{"model": {"type": "BPE"}}'])
def test_broken_tokenizer_is_an_error(tiny_model, tmp_path, content):
    folder = with_template(tiny_model, tmp_path / "m", "x")
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(PeftsmithError, match=r"tokenizer\.json"):
        Renderer.load(folder)


def test_several_templates_without_default(tiny_model, tmp_path):
    folder = with_template(tiny_model, tmp_path / "m", "x")
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] = [{"name": "a", "template": "x"}, {"name": "b", "template": "y"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(PeftsmithError, match="none is called default"):
        Renderer.load(folder)


def test_truncate_drops_rows_without_loss():
    assert truncate([1, 2, 3], [False, False, True], 2) is None
    assert truncate([1, 2, 3], [False, False, True], 2, "keep_end") == ([2, 3], [False, True])
    assert truncate([1, 2, 3], [False, False, True], None) == ([1, 2, 3], [False, False, True])
