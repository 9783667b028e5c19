"""The fast path against the batches that real trainers collate: every id, label, mask and position, no difference."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from peftsmith.data import batches, handover
from peftsmith.data.examples import Chat
from peftsmith.data.labels import Row, Settings, renderer_for, rows_of
from peftsmith.data.rendering import Renderer
from peftsmith.data.templating import TemplateRefused
from peftsmith.errors import PeftsmithError
from peftsmith.machine import environment
from peftsmith.worker import client
from tests.data import random_rows
from tests.data.templates import MORE, TEMPLATES, metaspace, with_template

# cases of each family; `make bench` sets more
TIMES = int(os.environ.get("PEFTSMITH_LABEL_CASES") or 1)
ROWS = 30
MARKED = ("marked", "tools", "tail_unmarked")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_model) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("templates")
    made = {name: with_template(tiny_model, root / name, text) for name, text in {**TEMPLATES, **MORE}.items()}
    made |= {"chatml": tiny_model, "metaspace": metaspace(tiny_model, root / "metaspace")}
    made["framed"] = changed(metaspace(tiny_model, root / "framed"), add_bos_token=True, add_eos_token=True)
    made["paired"] = paired(changed(metaspace(tiny_model, root / "paired"), cls_token="<s>", sep_token="</s>"))
    left = {"truncation_side": "left", "padding_side": "left", "pad_token": "</s>"}
    return {**made, "left": changed(metaspace(tiny_model, root / "left"), add_bos_token=True, **left)}


def changed(folder: Path, **settings: object) -> Path:
    """The tokenizer folder with other settings."""
    place = folder / "tokenizer_config.json"
    config = json.loads(place.read_text(encoding="utf-8"))
    place.write_text(json.dumps({**config, **settings}), encoding="utf-8")
    return folder


def paired(folder: Path) -> Path:
    """The tokenizer folder with the frame of RoBERTa's pairs."""
    from tokenizers import Tokenizer
    from tokenizers.processors import RobertaProcessing

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ends = {token: tokenizer.token_to_id(token) for token in ("</s>", "<s>")}
    tokenizer.post_processor = RobertaProcessing(("</s>", ends["</s>"]), ("<s>", ends["<s>"]))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def compare(training_python, tmp_path, cases) -> dict[str, int]:
    """Let the real trainers collate all cases, and hold the fast path's batches against theirs."""
    found = environment.require(tmp_path)
    asked = [handover.case(folder, examples, settings, size) for folder, examples, settings, size in cases]
    answer = client.call(found, "collate", {"work": str(tmp_path), "cases": asked}, timeout=3000)
    seen = {"rows": 0, "batches": 0, "refused": 0, "dropped": 0, "merged": 0, "partly": 0}
    for (folder, examples, settings, size), theirs in zip(cases, answer["cases"], strict=True):
        where = (folder.name, settings)
        try:
            renderer = renderer_for(Renderer.load(folder), settings)
            rows = rows_of(renderer, examples, settings)
        except PeftsmithError as error:
            assert "error" in theirs, (where, str(error))
            seen["refused"] += 1
            continue
        faults = [row for each in rows for row in each if isinstance(row, PeftsmithError)]
        if faults:
            assert "error" in theirs, (where, str(faults[0]))
            seen["refused"] += 1
            continue
        assert "error" not in theirs, (where, theirs["error"])
        ours = batches.batches(rows, settings, renderer.files, size)
        assert len(ours) == len(theirs["batches"]), where
        for number, (mine, real) in enumerate(zip(ours, theirs["batches"], strict=True)):
            assert mine == handover.read(real, settings), (where, number)
        flat = [row for each in rows for row in each]
        seen["rows"] += len(flat)
        seen["batches"] += len(ours)
        seen["dropped"] += sum(row.dropped for row in flat)
        seen["merged"] += sum(row.merged for row in flat)
        seen["partly"] += sum(0 < row.trained < row.length for row in flat)
    return seen


def usable(folder: Path, examples: list, settings: Settings) -> list:
    """Without the rows that the template refuses, since one of them stops a trainer."""
    made = rows_of(renderer_for(Renderer.load(folder), settings), examples, settings)
    return [each for each, rows in zip(examples, made, strict=True) if not isinstance(rows[0], TemplateRefused)]


def lengths(draw: random.Random) -> dict:
    return {
        "max_length": draw.choice([None, 12, 40, 40, 64, 1024]),
        "truncation_mode": draw.choice(["keep_start", "keep_start", "keep_end"]),
        "pad_to_multiple_of": draw.choice([None, 8, 64]),
    }


def packed(draw: random.Random) -> dict:
    strategy = draw.choice(["bfd", "bfd_split", "wrapped"])
    more = {"packing": True, "packing_strategy": strategy, "max_length": draw.choice([24, 50, 200])}
    return {**more, "padding_free": draw.random() < 0.3, "pad_to_multiple_of": draw.choice([None, 16])}


def flattened(draw: random.Random) -> dict:
    return {"padding_free": True, "max_length": None, "pad_to_multiple_of": draw.choice([None, 16])}


def batching(draw: random.Random) -> dict:
    return draw.choice([lengths, lengths, packed, flattened])(draw)


@pytest.mark.training
def test_conversations(training_python, tmp_path, folders):
    draw = random.Random(f"conversations {TIMES}")
    cases = []
    for name, folder in [*folders.items()] * TIMES:
        for columns in ("prompt_completion", "messages"):
            settings = Settings(
                columns=columns,
                completion_only_loss=draw.choice([None, None, True, False]),
                assistant_only_loss=name in MARKED and draw.random() < 0.7,
                **batching(draw),
            )
            examples = usable(folder, [random_rows.chat(draw, name) for _ in range(ROWS)], Settings())
            cases.append((folder, examples, settings, draw.choice([1, 4, 7])))
    seen = compare(training_python, tmp_path, cases)
    assert seen["rows"] > 300 * TIMES
    assert seen["dropped"], seen
    assert seen["merged"], seen
    assert seen["partly"] > 100, seen


@pytest.mark.training
def test_assistant_only(training_python, tmp_path, folders):
    """Generation blocks become tokens as transformers counts them, also where that is odd; without them it refuses."""
    draw = random.Random(f"assistant {TIMES}")
    cases = []
    for name in [*MARKED, *MARKED] * TIMES + ["chatml"]:
        examples = [random_rows.chat(draw, name) for _ in range(ROWS)]
        columns = draw.choice(["prompt_completion", "messages"])
        settings = Settings(columns=columns, assistant_only_loss=True, **batching(draw))
        cases.append((folders[name], usable(folders[name], examples, Settings()), settings, 5))
    # A template that TRL knows: SFTTrainer swaps its own training template in
    known = Path(training_python).parent.parent.glob("lib/python*/site-packages/trl/chat_templates/qwen3*.jinja")
    texts = {each.stem: each.read_text(encoding="utf-8") for each in known}
    settings = Settings(
        assistant_only_loss=True, template=texts["qwen3"], training_template=texts["qwen3_training"], max_length=200
    )
    cases.append((folders["chatml"], [random_rows.chat(draw, "tools") for _ in range(ROWS)], settings, 4))
    seen = compare(training_python, tmp_path, cases)
    assert seen["refused"] >= 1, "a template without marks stops the trainer"
    assert seen["partly"] > 50, seen


@pytest.mark.training
def test_texts_and_end_tokens(training_python, tmp_path, folders, smollm2):
    draw = random.Random(f"texts {TIMES}")
    cases = []
    for folder, other in [
        (folders["metaspace"], "<unk>"),
        (folders["chatml"], "<|endoftext|>"),
        (smollm2, None),
    ] * TIMES:
        eos = "</s>" if folder.name == "metaspace" else "<|im_end|>"
        for prompted in (True, False):
            settings = Settings(
                completion_only_loss=draw.choice([None, True, False]),
                eos_token=draw.choice([None, other]),
                pad_token=draw.choice([None, eos]),
                **batching(draw),
            )
            examples = [random_rows.plain(draw, prompted=prompted, eos=eos) for _ in range(ROWS)]
            cases.append((folder, examples, settings, 4))
        cases.append((folder, [random_rows.chat(draw, "chatml") for _ in range(ROWS)], Settings(eos_token=other), 3))
    short = [Chat([{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}])]
    cases.append((folders["chatml"], short, Settings(eos_token="<no such token>"), 1))
    seen = compare(training_python, tmp_path, cases)
    assert seen["rows"] > 200
    assert seen["refused"] == 1


@pytest.mark.training
def test_preferences(training_python, tmp_path, folders):
    draw = random.Random(f"preferences {TIMES}")
    cases = []
    for name in ["chatml", "tools", "other_prompt", "plain", "metaspace"] * TIMES:
        folder = folders[name]
        eos = "</s>" if name == "metaspace" else "<|im_end|>"
        for trainer, make in (("dpo", random_rows.preference), ("kto", random_rows.judged)):
            settings = Settings(trainer=trainer, max_length=draw.choice([None, 30, 60, 1024]))
            if trainer == "dpo":
                settings = Settings(trainer, max_length=settings.max_length, pad_to_multiple_of=draw.choice([None, 8]))
            conversational = draw.random() < 0.7
            examples = [make(draw, name, conversational=conversational, eos=eos) for _ in range(ROWS)]
            cases.append((folder, examples, settings, 4))
    seen = compare(training_python, tmp_path, cases)
    assert seen["rows"] > 300
    assert seen["dropped"], seen
    assert seen["merged"], seen


@pytest.mark.training
def test_answers(training_python, tmp_path, folders):
    """Windows over contexts: every id and both places of every answer, also where tokens share a character."""
    draw = random.Random(f"answers {TIMES}")
    cases = []
    for name in ["chatml", "metaspace", "framed", "left", "paired"] * TIMES:
        for length, stride in ((None, 0), (48, 0), (48, 16), (draw.choice([40, 64]), 20)):
            settings = Settings("answers", max_length=length, stride=stride, pad_to_multiple_of=draw.choice([None, 8]))
            examples = [random_rows.answered(draw) for _ in range(ROWS)]
            made = rows_of(Renderer.load(folders[name]), examples, settings)
            fitting = [each for each, rows in zip(examples, made, strict=True) if isinstance(rows[0], Row)]
            cases.append((folders[name], fitting, settings, draw.choice([1, 4, 7])))
    seen = compare(training_python, tmp_path, cases)
    assert seen["refused"] == 0
    assert seen["rows"] > 25 * ROWS * TIMES, "long contexts make several windows"
    assert seen["partly"] > 200, seen


@pytest.mark.training
def test_encoders(training_python, tmp_path, folders):
    draw = random.Random(f"encoders {TIMES}")
    cases = []
    for name in ["chatml", "metaspace", "framed", "left"] * TIMES:
        folder = folders[name]
        for pairs in (False, True):
            settings = Settings("classification", max_length=draw.choice([16, 30, 512]), labels=random_rows.LABELS)
            examples = [random_rows.classified(draw, pairs=pairs) for _ in range(ROWS)]
            cases.append((folder, examples, settings, 4))
        settings = Settings("tagging", max_length=24, labels=random_rows.LABELS, pad_to_multiple_of=8)
        cases.append((folder, [random_rows.tagged(draw) for _ in range(ROWS)], settings, 4))
        settings = Settings("seq2seq", max_length=20, max_target_length=12)
        cases.append((folder, [random_rows.pair(draw) for _ in range(ROWS)], settings, 4))
    seen = compare(training_python, tmp_path, cases)
    assert seen["rows"] >= 16 * ROWS * TIMES
