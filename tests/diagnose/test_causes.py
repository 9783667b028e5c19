"""The exact texts that libraries write, and the cause that each stands for."""

from __future__ import annotations

import json
import random
import string
import time
from pathlib import Path

import pytest

from peftsmith import plan
from peftsmith.diagnose import causes
from peftsmith.errors import PeftsmithError
from peftsmith.finding import catalogue
from peftsmith.run import store

PLAN = {
    "schema_version": plan.SCHEMA_VERSION,
    "name": "x",
    "task": "chat",
    "base": {"model": "owner/model"},
    "data": {"train": "train.jsonl", "format": "messages"},
}
TOKEN = "hf" + "_" + "QwErTyUiOpAsDfGhJkLzXcVbNmqwertyui"

# Row of the failure table (or -), cause, the text itself with its line ends written as \\n.
TEXTS = [
    line.replace("\\n", "\n").split("\t")
    for line in Path(__file__).with_name("texts.tsv").read_text(encoding="utf-8").splitlines()
]


def write_plan(folder, batch_size):
    text = plan.dump(plan.validate({**PLAN, "training": {"batch_size": batch_size}}))
    (folder / "plan.yaml").write_text(text, encoding="utf-8")


def flat(**training):
    return plan.flatten(plan.validate({**PLAN, "training": training}))


def look(text, exit_code=1, **training):
    return causes.diagnose_text(text, exit_code=exit_code, flat=flat(**training))


@pytest.mark.parametrize(("row", "cause", "text"), TEXTS)
def test_each_text_has_its_cause_and_no_other(row, cause, text):
    log = f"Loading\n  3%|3 | 3/100\r  4%|4 | 4/100\nTraceback (most recent call last):\n\x1b[31m{text}\x1b[0m\nbye\n"
    report = look(log)
    assert [item.id for item in report.findings] == [cause]
    assert row == "-" or int(row) in report.findings[0].rows
    assert report.findings[0].evidence["line"] in log.replace("\x1b[31m", "").replace("\x1b[0m", "")


def test_every_cause_of_the_table_is_tried_here_and_in_the_catalogue():
    named = {cause.finding for cause in causes.causes()}
    assert named == {cause for _, cause, _ in TEXTS}
    entries = {id_ for id_ in catalogue() if id_.startswith("diagnose.")}
    assert entries == named | {"diagnose.cause.unknown"}


@pytest.mark.parametrize(
    ("training", "patch"),
    [
        ({"gradient_checkpointing": False, "batch_size": 8}, {"training.gradient_checkpointing": True}),
        (
            {"batch_size": 8, "gradient_accumulation": 3},
            {"training.batch_size": 4, "training.gradient_accumulation": 6},
        ),
        ({"batch_size": 9}, {"training.batch_size": 3, "training.gradient_accumulation": 3}),
        ({"batch_size": 1}, {}),
    ],
)
def test_out_of_memory_keeps_the_effective_batch(training, patch):
    before = flat(**training)
    assert look("CUDA out of memory", **training).patch == patch
    after = {**before, **patch}
    size, steps = "training.batch_size", "training.gradient_accumulation"
    assert after[size] * after[steps] == before[size] * before[steps]


def test_patches_apply_to_a_plan():
    text = plan.dump(plan.validate(PLAN))
    bf16 = "Your setup doesn't support bf16/gpu. You need to assign use_cpu"
    for log, field, value in [
        ("Target modules {'c_attn'} not found in the base model", None, None),
        (bf16 + " You need Ampere+ GPU with cuda>=11.0.", "training.precision", "fp16"),
        (bf16, "training.precision", "fp32"),
    ]:
        patch = look(log).patch
        assert patch == ({field: value} if field else {})
        assert plan.flatten(plan.parse(plan.edit(text, patch))) == {**flat(), **patch}
    named = plan.flatten(plan.validate({**PLAN, "method": {"target_modules": ["c_attn"]}}))
    report = causes.diagnose_text("Target modules {'c_attn'} not found in the base model", exit_code=1, flat=named)
    assert report.patch == {"method.target_modules": "all-linear"}
    assert look(bf16, precision="fp16").patch == {}


def test_nothing_is_patched_without_a_plan():
    report = causes.diagnose_text("CUDA out of memory", exit_code=1, flat=None)
    assert report.patch == {} and [item.id for item in report.findings] == ["diagnose.memory.cuda_out_of_memory"]


def test_a_kill_without_a_text_is_known_by_its_exit_code():
    assert [item.id for item in look("step 3", exit_code=-9).findings] == ["diagnose.process.killed"]
    assert [item.id for item in look("No space left on device", exit_code=-9).findings] == ["diagnose.disk.full"]


def test_the_unknown_is_said_to_be_unknown():
    report = look("fine\nKeyError: 'text'\nmore\nstill going\n")
    assert [(item.id, item.severity) for item in report.findings] == [("diagnose.cause.unknown", "unknown")]
    assert report.findings[0].evidence["lines"] == ["KeyError: 'text'"]
    assert look("").findings[0].evidence["lines"] == []
    assert look("one\ntwo").findings[0].evidence["lines"] == ["one", "two"]


def test_evidence_is_clean_and_without_secrets():
    log = (
        f"ValueError: \x1b[31m{TOKEN}\u202e and CUDA out of memory {TOKEN[:9]}\u200b{TOKEN[9:]}\nRuntimeError: {TOKEN}"
    )
    shown = json.dumps([item.to_json() for item in look(log).findings + look(log.replace("CUDA", "")).findings])
    assert TOKEN not in shown and "\\u202e" not in shown and "\\u001b" not in shown and "redacted" in shown


def test_a_log_file_of_any_script(tmp_path):
    (tmp_path / "train.log").write_bytes(b"\xff\xfe garbage\nAttempting to unscale FP16 gradients.\n")
    report = causes.diagnose(tmp_path, run_id=None, log=tmp_path / "train.log")
    assert [item.id for item in report.findings] == ["diagnose.precision.unscale_fp16"]
    with pytest.raises(PeftsmithError, match="folder, not a log"):
        causes.diagnose(tmp_path, run_id=None, log=tmp_path)
    with pytest.raises(PeftsmithError, match="no run to diagnose"):
        causes.diagnose(tmp_path, run_id=None, log=None)
    with pytest.raises(PeftsmithError, match="not both"):
        causes.diagnose(tmp_path, run_id="x", log=tmp_path / "train.log")


def test_a_run_is_judged_with_its_own_plan(tmp_path):
    write_plan(tmp_path, 8)
    run = store.create(tmp_path, "train", ["x"], tmp_path)
    (run.folder / "log.txt").write_text("CUDA out of memory\n", encoding="utf-8")
    write_plan(tmp_path, 2)
    assert causes.diagnose(tmp_path, run_id=run.id, log=None).patch["training.batch_size"] == 4
    assert causes.diagnose(tmp_path, run_id=None, log=None).patch["training.batch_size"] == 4
    (run.folder / "done.json").write_text('{"ok": true}', encoding="utf-8")
    (run.folder / "log.txt").write_text("all well\n", encoding="utf-8")
    assert causes.diagnose(tmp_path, run_id=run.id, log=None).findings == []


@pytest.mark.slow
def test_long_hostile_logs_take_no_time(tmp_path):
    draw = random.Random(0)
    pieces = ["Target module ", "Target modules ", "size mismatch for ", "{'loss': 1.", "Cannot merge "]
    for text in (
        "Target module x\n" * 40_000,
        "'loss': 0.0, " * 40_000,
        "".join(draw.choice(pieces) + draw.choice(string.printable) * 5 for _ in range(30_000)),
        "\x1b[" + ";" * 500_000,
    ):
        (tmp_path / "log").write_text(text, encoding="utf-8")
        began = time.process_time()
        causes.diagnose(tmp_path, run_id=None, log=tmp_path / "log")
        assert time.process_time() - began < 5


def test_only_the_ends_of_a_huge_log_are_read(tmp_path):
    middle = "x\n" * 1_000_000 + "Attempting to unscale FP16 gradients\n" + "x\n" * 1_000_000
    (tmp_path / "log").write_text(f"CUDA out of memory\n{middle}No space left on device\n", encoding="utf-8")
    report = causes.diagnose(tmp_path, run_id=None, log=tmp_path / "log")
    assert [item.id for item in report.findings] == ["diagnose.memory.cuda_out_of_memory", "diagnose.disk.full"]
