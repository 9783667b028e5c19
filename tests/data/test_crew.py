"""Several processes say what one says, whatever kind of file the rows stand in, and their failures are told."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest

from peftsmith.data import audit, crew, lots, reading
from peftsmith.data.examine import Checks, Examiner
from peftsmith.data.formats import Mapping
from peftsmith.data.part import Part
from peftsmith.errors import PeftsmithError

WORDS = [f"word{number}" for number in range(400)]


def rows(count, seed=0):
    """Chats, some of them twice, some with faults."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        asked, said = (" ".join(draw.choices(WORDS, k=draw.randint(3, 40))) for _ in range(2))
        if number % 50 == 7:
            said = f"write to jane.doe{number}@acme-mail.net \ufffd"
        made.append({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]})
    return made + made[:20] + [{"messages": []}]


def in_crew(monkeypatch, count):
    monkeypatch.setattr(crew, "processes_for", lambda size: count)


def report(path, model, **options):
    made = audit.audit(path, model=str(model), max_length=64, **options)
    return made.to_json(), [(each.id, each.message, each.evidence) for each in made.findings]


@pytest.mark.slow
def test_several_processes_say_what_one_says(tmp_path, tiny_model, monkeypatch):
    data, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    made = rows(1500)
    data.write_text("\n".join(map(json.dumps, made)) + "\n\n{broken\n", encoding="utf-8")
    test.write_text("\n".join(map(json.dumps, [*rows(40, seed=3), *made[:5]])), encoding="utf-8")
    in_crew(monkeypatch, 1)
    alone = report(data, tiny_model, test=test)
    in_crew(monkeypatch, 3)
    assert report(data, tiny_model, test=test) == alone
    assert {each[0] for each in alone[1]} >= {"data.rows.duplicate", "data.rows.malformed", "data.rows.personal"}
    assert alone[0]["test_overlap"] == 10  # five rows that stand twice


def test_labels_are_told_by_several_processes(tmp_path, monkeypatch):
    data = tmp_path / "rows.jsonl"
    labelled = [{"text": f"text {number % 900}", "label": "ab"[number % 900 % 2]} for number in range(1200)]
    labelled[1000]["label"] = "B"
    data.write_text("\n".join(map(json.dumps, labelled)), encoding="utf-8")
    in_crew(monkeypatch, 1)
    alone = audit.audit(data)
    in_crew(monkeypatch, 2)
    assert audit.audit(data).to_json() == alone.to_json()
    assert "data.labels.contradictory" in {each.id for each in alone.findings}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".arrow"])
def test_lots_hold_the_rows_of_a_file(tmp_path, suffix):
    path = written(tmp_path / f"rows{suffix}", [{"prompt": f"p {n}", "completion": f"c {n}"} for n in range(1100)])
    seen = [row for lot in lots.lots(path) for row in lot.rows()]
    assert seen == list(reading.read_rows(path))
    assert len(seen) == 1100


def test_shards_are_numbered_through(tmp_path):
    for shard in range(3):
        written(tmp_path / f"part-{shard}.jsonl", [{"text": f"{shard} {n}"} for n in range(600)])
    seen = [row for lot in lots.lots(tmp_path) for row in lot.rows()]
    assert seen == list(reading.read_rows(tmp_path))
    assert [row.number for row in seen] == list(range(1, 1801))


def test_odd_tables_are_taken_apart_where_they_are_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    words = pa.array(["a", "b", None, "a"]).dictionary_encode()
    pq.write_table(pa.table({"text": words, "more": [[{"x": 1}], [], None, [{"x": 2}]]}), path)
    made = list(lots.lots(path))
    assert [row for lot in made for row in lot.rows()] == list(reading.read_rows(path))


def test_a_part_survives_packing(tmp_path, tiny_model):
    path = written(tmp_path / "rows.jsonl", rows(100))
    checks = Checks(Mapping("messages"), tiny_model, 64, (), None, True, True, True)
    assert Checks.of_plain(checks.plain()) == checks
    [part] = map(Examiner(checks).examine, lots.lots(path))
    again = Part.unpacked(part.packed())
    assert vars(again) | {"tallies": 0, "token_tallies": 0} == vars(part) | {"tallies": 0, "token_tallies": 0}
    assert again.tallies.by_id == part.tallies.by_id
    assert again.token_tallies.by_id == part.token_tallies.by_id
    assert part.usable == 120 and part.tallies.by_id


def test_a_process_that_dies_is_told(tmp_path, monkeypatch):
    path = written(tmp_path / "rows.jsonl", rows(2000))
    started = crew._started

    def dying(checks):
        process = started(checks)
        process.kill()
        process.wait()
        return process

    monkeypatch.setattr(crew, "_started", dying)
    in_crew(monkeypatch, 2)
    with pytest.raises(PeftsmithError, match="ended early"):
        audit.audit(path)


def test_processes_end_with_the_audit(tmp_path, monkeypatch):
    path = written(tmp_path / "rows.jsonl", rows(2000))
    seen: list[subprocess.Popen[bytes]] = []
    started = crew._started
    monkeypatch.setattr(crew, "_started", lambda checks: seen.append(started(checks)) or seen[-1])
    checks = Checks(Mapping("messages"), None, 64, (), None, False, False, False)
    parts = crew.parts(checks, lots.lots(path), 2)
    next(parts)
    parts.close()
    assert len(seen) == 2 and all(process.poll() is not None for process in seen)


def test_small_files_are_left_to_this_process():
    assert crew.processes_for(1000) == 1
    assert crew.processes_for(1 << 30) == min(8, crew.cores())


def test_a_packed_table_counts_by_what_it_holds(tmp_path):
    same = [{"text": "the same words in every row"}] * 20_000
    packed, plain = written(tmp_path / "rows.parquet", same), written(tmp_path / "rows.jsonl", same)
    draw = random.Random(0)
    long = [{"text": " ".join(draw.choices(WORDS, k=40))} for _ in range(3000)]
    compressed = written(tmp_path / "long.parquet", long)
    assert lots.size(plain) == plain.stat().st_size
    assert lots.size(packed) >= packed.stat().st_size
    assert lots.size(compressed) > 1.2 * compressed.stat().st_size
    written(tmp_path / "shards" / "a.jsonl", same[:10])
    written(tmp_path / "shards" / "b.jsonl", same[:10])
    assert lots.size(tmp_path / "shards") == 2 * (tmp_path / "shards" / "a.jsonl").stat().st_size


def written(path: Path, values):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, values)), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(values), encoding="utf-8")
    elif path.suffix == ".csv":
        lines = [",".join(each.values()) for each in values]
        path.write_text("\n".join([",".join(values[0]), *lines]), encoding="utf-8")
    else:
        _table(path, values)
    return path


def _table(path, values):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(values)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as stream:
        stream.write_table(table)
