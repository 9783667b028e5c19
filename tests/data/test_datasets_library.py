"""What the real `datasets` library writes is what is read; and what is prepared here, it and TRL's checks can load."""

from __future__ import annotations

import json
import subprocess

import pytest

from peftsmith.data.examples import Chat, Classified, Tagged
from peftsmith.data.formats import detect, to_example
from peftsmith.data.prepare import prepare
from peftsmith.data.reading import read_rows
from peftsmith.errors import PeftsmithError

pytestmark = pytest.mark.training

WRITE = """
import sys
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
folder = sys.argv[1]
labels = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
classes = Dataset.from_dict({"text": [f"text {i}" for i in range(40)], "label": [i % 2 for i in range(40)]}, labels)
classes.save_to_disk(f"{folder}/saved", num_shards=3)
classes.to_parquet(f"{folder}/classes.parquet")
classes.select([5, 3, 8]).save_to_disk(f"{folder}/selection")
DatasetDict({"train": classes, "test": classes}).save_to_disk(f"{folder}/both")
tags = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B"]))})
Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [[1, 0]]}, tags).to_parquet(f"{folder}/tags.parquet")
call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
chat = [
    {"role": "user", "content": "u", "tool_calls": None},
    {"role": "assistant", "content": "", "tool_calls": [call]},
    {"role": "tool", "content": "7", "tool_calls": None},
    {"role": "assistant", "content": "a", "tool_calls": None},
]
Dataset.from_list([{"messages": chat}, {"messages": chat[:1] + chat[3:]}]).to_parquet(f"{folder}/chats.parquet")
"""

LOAD = """
import json, sys
from datasets import load_dataset
from trl import is_conversational
for name in sys.argv[1:]:
    rows = load_dataset("json", data_files=name, split="train", cache_dir=name + ".cache")
    print(json.dumps([sorted(rows.column_names), len(rows), is_conversational(rows[0])]))
"""


def run(python, script, *arguments):
    done = subprocess.run(
        [python, "-c", script, *map(str, arguments)], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_files_of_the_datasets_library(tmp_path, training_python):
    run(training_python, WRITE, tmp_path)
    for name in ("saved", "classes.parquet", "both/train"):
        found = detect(tmp_path / name)
        assert found.labels == ["no", "yes"] and found.confidence == 1
        rows = [to_example(row.value, found.mapping) for row in read_rows(tmp_path / name)]
        assert rows == [Classified(f"text {i}", ("no", "yes")[i % 2]) for i in range(40)]
    assert [row.value["text"] for row in read_rows(tmp_path / "selection")] == ["text 5", "text 3", "text 8"]
    with pytest.raises(PeftsmithError, match="several splits"):
        detect(tmp_path / "both")
    tagged = detect(tmp_path / "tags.parquet")
    assert to_example(next(read_rows(tmp_path / "tags.parquet")).value, tagged.mapping) == Tagged(
        ["a", "b"], ["B", "O"]
    )
    chats = detect(tmp_path / "chats.parquet")
    one, two = (to_example(row.value, chats.mapping) for row in read_rows(tmp_path / "chats.parquet"))
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    user, answer = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert one == Chat([user], [called, {"role": "tool", "content": "7"}, answer])
    assert two == Chat([user], [answer])


def test_prepared_rows_load_in_the_training_environment(tmp_path, training_python):
    turn = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    answer = {"from": "gpt", "value": "a"}
    sources = {
        "sharegpt": [{"conversations": [{"from": "human", "value": f"q{i}"}, answer]} for i in (1, 2)],
        "preference": [{"chosen": [*turn[:1], {**turn[1], "content": f"a{i}"}], "rejected": turn} for i in (1, 2)],
        "kto": [{"prompt": f"q{i}", "completion": "a", "label": i} for i in (0, 1)],
        "text": [{"text": f"text {i}", "url": "x"} for i in (1, 2)],
    }  # fmt: skip
    trained = []
    for name, rows in sources.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        prepare(path, tmp_path / name, eval_share=0, test_share=0)
        trained.append(tmp_path / name / "train.jsonl")
    assert run(training_python, LOAD, *trained) == [
        [["messages"], 2, True],
        [["chosen", "prompt", "rejected"], 2, True],
        [["completion", "label", "prompt"], 2, False],
        [["text"], 2, False],
    ]
