"""Preparing splits: nothing is lost in silence, nothing stands in two splits, and a failure leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftsmith import files
from peftsmith.data import prepare as module
from peftsmith.data.audit import audit
from peftsmith.data.prepare import prepare
from peftsmith.data.reading import read_rows
from peftsmith.data.views import loose as loose_text
from peftsmith.errors import PeftsmithError


def source(tmp_path, rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def classes(count=100):
    return [{"text": f"text number {i}", "label": "abc"[i % 3 if i % 10 else 0], "id": i} for i in range(count)]


def lines(folder, name):
    path = folder / f"{name}.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_splits_labels_and_hashes(tmp_path):
    out = tmp_path / "out"
    done = prepare(source(tmp_path, classes()), out, eval_share=0.2, test_share=0.1, seed=3)
    assert {name: split["rows"] for name, split in done.splits.items()} == {"train": 70, "eval": 20, "test": 10}
    for name, split in done.splits.items():
        assert len(lines(out, name)) == split["rows"]
        assert files.sha256_file(out / f"{name}.jsonl") == split["sha256"]
        assert Counter(row["label"] for row in lines(out, name)) == done.labels[name]
    whole = Counter(row["label"] for row in classes())
    for label, count in whole.items():
        assert abs(done.labels["test"][label] - count * 0.1) <= 1
        assert abs(done.labels["eval"][label] - count * 0.2) <= 1
    assert done.dropped_columns == ["id"]
    assert (out / "rejects.jsonl").read_text(encoding="utf-8") == ""
    assert json.dumps(done.to_json())
    assert not [finding for finding in done.findings if finding.severity in ("error", "warning")]


def test_the_seed_decides(tmp_path):
    path = source(tmp_path, classes())
    one, two, other = (prepare(path, tmp_path / str(n), seed=seed).splits for n, seed in enumerate((1, 1, 2)))
    assert [split["sha256"] for split in one.values()] == [split["sha256"] for split in two.values()]
    assert one["test"]["sha256"] != other["test"]["sha256"]


def test_rejects_name_row_and_reason(tmp_path):
    rows = [*classes(20), "{", {"text": "", "label": "a"}, classes()[4], {"text": "x"}, "", {"text": "y", "label": 1}]
    out = tmp_path / "out"
    done = prepare(source(tmp_path, rows), out)
    assert (done.read, done.written, done.rejected) == (25, 21, 4)
    rejects = {row["row"]: row["reason"] for row in lines(out, "rejects")}
    assert list(rejects) == [21, 22, 23, 24]
    assert rejects[21].startswith("unreadable: not JSON")
    assert rejects[22].startswith("empty: ")
    assert rejects[23] == "duplicate: the same as row 5"
    assert done.reasons == {"unreadable": 1, "empty": 2, "duplicate": 1}
    assert "data.split.rejected" in {finding.id for finding in done.findings}


def test_like_questions_stay_together_and_the_audit_sees_no_overlap(tmp_path):
    rows = [
        {"prompt": f"{'  ' * (i % 3)}Question {i // 4}".upper()[: 40 - i % 2], "completion": str(i)} for i in range(200)
    ]
    out = tmp_path / "out"
    prepare(source(tmp_path, rows), out, eval_share=0.3, test_share=0.3)
    asked = {name: {loose_text(row["prompt"]) for row in lines(out, name)} for name in ("train", "eval", "test")}
    assert (
        not asked["train"] & asked["test"] and not asked["train"] & asked["eval"] and not asked["eval"] & asked["test"]
    )
    assert all(asked.values())
    assert audit(out / "train.jsonl", test=out / "test.jsonl").test_overlap == 0


def test_messages_and_csv_come_out_normalised(tmp_path):
    chats = [
        {"messages": [{"role": "user", "content": f"é{i}"}, {"role": "assistant", "content": "b"}]} for i in range(9)
    ]
    prepare(source(tmp_path, chats), tmp_path / "chats", eval_share=0, test_share=0)
    assert lines(tmp_path / "chats", "train") == chats
    assert sorted(path.name for path in (tmp_path / "chats").iterdir()) == [
        "prepared.json",
        "rejects.jsonl",
        "train.jsonl",
    ]
    table = tmp_path / "rows.csv"
    table.write_text("ticket,queue,who\n" + "".join(f"t{i},{i % 2},x\n" for i in range(10)), encoding="utf-8")
    done = prepare(table, tmp_path / "csv", text_column="ticket", label_column="queue", eval_share=0, test_share=0)
    assert lines(tmp_path / "csv", "train")[3] == {"text": "t3", "label": "1"}
    assert done.dropped_columns == ["who"]


def test_too_few_rows_for_a_split_is_said(tmp_path):
    done = prepare(source(tmp_path, classes(3)), tmp_path / "out")
    assert {finding.id for finding in done.findings} >= {"data.split.empty"}
    assert "eval" not in done.splits


def test_rare_labels_are_said(tmp_path):
    rows = [*classes(60), {"text": "only one", "label": "rare"}]
    done = prepare(source(tmp_path, rows), tmp_path / "out")
    assert "data.split.label_missing" in {finding.id for finding in done.findings}


@pytest.mark.parametrize(
    ("rows", "options", "word"),
    [
        (classes(), {"eval_share": 0.5, "test_share": 0.5}, "leave rows"),
        ([{"text": "", "label": ""}], {}, "None of the 1 rows"),
        (["{"], {}, "None of the 1 rows"),
    ],
)
def test_refusals_leave_nothing_behind(tmp_path, rows, options, word):
    path = source(tmp_path, rows)
    with pytest.raises(PeftsmithError, match=word):
        prepare(path, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_use_is_refused(tmp_path):
    path = source(tmp_path, classes())
    (tmp_path / "out").mkdir()
    prepare(path, tmp_path / "out")
    before = sorted((item.name, item.stat().st_mtime_ns) for item in (tmp_path / "out").iterdir())
    with pytest.raises(PeftsmithError, match="in use"):
        prepare(path, tmp_path / "out")
    with pytest.raises(PeftsmithError, match="in use"):
        prepare(path, path)
    assert before == sorted((item.name, item.stat().st_mtime_ns) for item in (tmp_path / "out").iterdir())


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    path = source(tmp_path, classes())

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PeftsmithError, match="No space left"):
        prepare(path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


def test_a_source_that_changes_meanwhile_is_refused(tmp_path, monkeypatch):
    path = source(tmp_path, classes())
    real = module._write

    def write(*arguments):
        real(*arguments)
        path.write_text(path.read_text(encoding="utf-8") + "{}\n", encoding="utf-8")

    monkeypatch.setattr(module, "_write", write)
    with pytest.raises(PeftsmithError, match="changed while"):
        prepare(path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


row = st.one_of(
    st.builds(
        lambda text, label: {"text": text, "label": label}, st.text(max_size=4), st.sampled_from(["a", "b", "", 1, 0.5])
    ),
    st.sampled_from(["{", "[]", "null", "\x00", '{"text": "\\ud800", "label": "a"}', '{"text": "A", "label": "a"}']),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(row, max_size=25),
    shares=st.sampled_from([(0, 0), (0.1, 0.1), (0.4, 0.4), (0, 0.5)]),
    seed=st.integers(0, 5),
)
def test_written_and_rejected_make_what_was_read(tmp_path_factory, rows, shares, seed):
    folder = tmp_path_factory.mktemp("any")
    path = source(
        folder, [{"text": "one", "label": "a"}, {"text": "two", "label": "b"}, {"text": "three", "label": "a"}, *rows]
    )
    out = folder / "out"
    done = prepare(path, out, eval_share=shares[0], test_share=shares[1], seed=seed)
    assert {item["label"] for item in lines(out, "train")} == {
        label for counts in done.labels.values() for label in counts
    }
    written = [item for name in done.splits for item in lines(out, name)]
    rejects = lines(out, "rejects")
    read = list(read_rows(path))
    assert len(read) == done.read == len(written) + len(rejects) == done.written + done.rejected
    assert {item["row"] for item in rejects} <= {item.number for item in read}
    assert len({json.dumps(item) for item in written}) == len(written)
    kept = [item.value for item in read if item.number not in {reject["row"] for reject in rejects}]
    assert sorted(str(item["text"]) for item in kept) == sorted(item["text"] for item in written)


MIXED = [
    {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
    {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]},
    {"instruction": "i", "input": "", "output": "o"},
    {"prompt": "p", "completion": "c"},
    {"prompt": "p", "completion": "c", "label": True},
    {"prompt": "p", "chosen": "c", "rejected": "r"},
    {"text": "t"},
    {"text": "t", "label": "x"},
    {"premise": "p", "hypothesis": "h", "label": 1},
    {"tokens": ["a"], "ner_tags": ["O"]},
    {"article": "a", "summary": "s"},
    {"question": "q", "answer": "a"},
]


def varied(row, number):
    """The row with every text made its own by a number."""
    text = json.dumps(row)
    for word in ("u", "i", "p", "t", "a", "q"):
        text = text.replace(f'"{word}"', f'"{word} {number}"')
    return json.loads(text)


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    picks=st.lists(st.tuples(st.integers(0, len(MIXED) - 1), st.integers(0, 6)), min_size=1, max_size=40),
    broken=st.lists(st.sampled_from(["{", "7", '{"text": 5}', "{}", '{"messages": []}', "[]"]), max_size=5),
    group_by=st.sampled_from([None, "group"]),
    draw=st.randoms(use_true_random=False),
)
def test_no_row_of_any_mix_is_lost(tmp_path_factory, picks, broken, group_by, draw):
    folder = tmp_path_factory.mktemp("mix")
    rows = [*({**varied(MIXED[kind], number), "group": number} for kind, number in picks), *broken]
    draw.shuffle(rows)
    rows.sort(key=lambda row: row == "[]")  # a file that begins with [ is an array, not lines
    path = source(folder, rows)
    out = folder / "out"
    try:
        done = prepare(path, out, eval_share=0.2, test_share=0.2, group_by=group_by)
    except PeftsmithError as error:  # the columns of two formats are as frequent, and one has no usable row
        assert str(error).startswith("None of the") and not out.exists()
        return
    written = [item for name in done.splits for item in lines(out, name)]
    rejects = lines(out, "rejects")
    assert len(rows) == done.read == len(written) + len(rejects)
    assert [item["row"] for item in rejects] == sorted({item["row"] for item in rejects})
    assert all(item["reason"] for item in rejects)
    record = json.loads((out / "prepared.json").read_text(encoding="utf-8"))
    assert {name: facts["rows"] for name, facts in record["files"].items()} == {
        **{f"{name}.jsonl": split["rows"] for name, split in done.splits.items()},
        "rejects.jsonl": len(rejects),
    }
    for name, facts in record["files"].items():
        assert files.sha256_file(out / name) == facts["sha256"]
    again = prepare(out / "train.jsonl", folder / "again", eval_share=0, test_share=0)
    assert (again.format, again.written, again.rejected) == (done.format, done.splits["train"]["rows"], 0)
    assert lines(folder / "again", "train") == lines(out, "train")


def test_groups_stay_together(tmp_path):
    rows = [{"text": f"text {i}", "label": "ab"[i % 2], "user": i // 5 % 30} for i in range(300)]
    out = tmp_path / "out"
    done = prepare(source(tmp_path, rows), out, eval_share=0.2, test_share=0.2, group_by="user")
    user_of = {row["text"]: row["user"] for row in rows}
    users = {name: {user_of[row["text"]] for row in lines(out, name)} for name in done.splits}
    assert set(users) == {"train", "eval", "test"}
    assert sum(map(len, users.values())) == 30
    for name, share in (("eval", 0.2), ("test", 0.2)):
        assert abs(done.splits[name]["rows"] - share * 300) <= 10
    broken = [*rows, {"text": "no user", "label": "a"}]
    again = prepare(source(tmp_path, broken), tmp_path / "again", group_by="user")
    assert again.rejected == 1
    assert "groups rows" in lines(tmp_path / "again", "rejects")[0]["reason"]


def test_groups_join_through_like_questions(tmp_path):
    """Rows 0 and 1 share a group, 1 and 2 a question: all three belong together."""
    rows = [{"text": f"text {i}", "label": "a", "user": i} for i in range(3, 60)]
    rows += [
        {"text": "one", "label": "a", "user": 0},
        {"text": "two", "label": "a", "user": 0},
        {"text": "TWO", "label": "a", "user": 1},
    ]
    for seed in range(20):
        out = tmp_path / str(seed)
        done = prepare(source(tmp_path, rows), out, eval_share=0.3, test_share=0.3, seed=seed, group_by="user")
        assert len({name for name in done.splits for r in lines(out, name) if r["text"] in ("one", "two", "TWO")}) == 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_small_classes_are_always_trained_on(tmp_path, count):
    rows = [*classes(60), *({"text": f"rare {i}", "label": "rare"} for i in range(count))]
    for seed in range(10):
        done = prepare(source(tmp_path, rows), tmp_path / str(seed), eval_share=0.3, test_share=0.3, seed=seed)
        assert done.labels["train"]["rare"] >= 1
        assert sum(labels.get("rare", 0) for labels in done.labels.values()) == count


def test_one_row_is_for_training(tmp_path):
    done = prepare(source(tmp_path, classes(1)), tmp_path / "out", eval_share=0.0, test_share=0.9)
    assert list(done.splits) == ["train"]
    assert "data.split.empty" in {finding.id for finding in done.findings}


@pytest.mark.slow
def test_rows_cost_little_memory(tmp_path):
    """What each of 10,000 rows adds to the peak: a million may take 1.5 GiB, so that each may add 1.5 KiB."""
    script = (
        "import sys, json, pathlib\n"
        "from peftsmith.data import prepare\n"
        "def peak(): return int(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "def run(name, count):\n"
        "    with (folder / name).open('w', encoding='utf-8') as out:\n"
        "        for i in range(count):\n"
        "            text = f'{i} ' + 'some words of a question ' * 4\n"
        "            row = {'prompt': text, 'completion': f'answer {i % 1000}', 'user': i // 3}\n"
        "            out.write(json.dumps(row) + '\\n')\n"
        "    prepare.prepare(folder / name, folder / f'out-{name}', group_by='user')\n"
        "    return peak()\n"
        "few = run('few.jsonl', 2000)\n"
        "print((run('many.jsonl', 10_000) - few) * 1024 / 10_000)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1400, done.stdout
