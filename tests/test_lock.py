"""The digest notices every change that a check has not seen."""

import pytest

from peftsmith import files, lock, plan
from peftsmith.errors import PeftsmithError
from tests.test_plan import good


@pytest.fixture
def project(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "x", "label": "a"}\n', encoding="utf-8")
    (tmp_path / "train.py").write_text("print(1)\n", encoding="utf-8")
    text = plan.dump(good())
    files.write_text(tmp_path / plan.PLAN_FILE, text)
    hashed = files.sha256_file(tmp_path / "train.py")
    locked = lock.Lock(
        peftsmith="0",
        plan_sha256=files.sha256_text(text),
        base={},
        data={
            "train": lock.DataFile(
                path="data/train.jsonl", sha256=files.sha256_file(tmp_path / "data/train.jsonl"), rows=1
            )
        },
        versions={},
        interpreter=None,
        estimate={},
        why={},
        files={"train.py": hashed},
        checked={"train.py": hashed},
    )
    digest = lock.compute_digest(tmp_path, locked)
    lock.save(tmp_path, locked.model_copy(update={"digest": digest}))
    return tmp_path


def test_nothing_has_changed(project):
    locked = lock.load(project)
    assert locked.digest is not None
    assert lock.changed_since(project, locked, locked.digest) == []


@pytest.mark.parametrize("name", ["train.py", "plan.yaml", "data/train.jsonl"])
def test_an_edited_or_removed_file_is_named(project, name):
    locked = lock.load(project)
    before = (project / name).read_bytes()
    (project / name).write_bytes(before + b"\n# edited\n")
    assert any(name in each for each in lock.changed_since(project, locked, locked.digest))
    (project / name).unlink()
    assert any(name in each for each in lock.changed_since(project, locked, locked.digest))
    (project / name).write_bytes(before)
    assert lock.changed_since(project, locked, locked.digest) == []


def test_an_edited_lock_and_a_foreign_digest_are_noticed(project):
    locked = lock.load(project)
    assert lock.changed_since(project, locked.model_copy(update={"interpreter": "/other"}), locked.digest) == [
        lock.LOCK_FILE
    ]
    assert "digest" in lock.changed_since(project, locked, "0" * 64)


def test_a_missing_or_broken_lock_says_what_to_do(tmp_path):
    with pytest.raises(PeftsmithError, match="plan_finetune"):
        lock.load(tmp_path)
    (tmp_path / lock.LOCK_FILE).write_text("{}", encoding="utf-8")
    with pytest.raises(PeftsmithError, match="not a valid lock"):
        lock.load(tmp_path)
