"""A user's own loader: what is generated works, and one that fails, hangs or floods is named and leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peftsmith.data import loader as module
from peftsmith.data.loader import Loader, write
from peftsmith.data.prepare import prepare
from peftsmith.errors import PeftsmithError


def source(tmp_path):
    path = tmp_path / "source.txt"
    path.write_text("".join(f"Question {i}?\tAnswer {i}.\n" for i in range(20)), encoding="utf-8")
    return path


def test_the_generated_loader_passes_its_own_test_and_prepares(tmp_path):
    made = write(tmp_path, "my_rows")
    assert [path.name for path in made] == ["my_rows.py", "test_my_rows.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_rows.py"],
        cwd=tmp_path, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    prepared = prepare(source(tmp_path), tmp_path / "out", loader=Loader(made[0]))
    assert (prepared.format, prepared.read, prepared.written) == ("messages", 20, 20)
    record = json.loads((tmp_path / "out" / "prepared.json").read_text(encoding="utf-8"))
    assert record["loader_sha256"] and "loaded.jsonl" not in os.listdir(tmp_path / "out")
    assert "my_rows" not in sys.modules
    with pytest.raises(PeftsmithError, match="exists"):
        write(tmp_path, "my_rows")
    with pytest.raises(PeftsmithError, match="no name"):
        write(tmp_path, "../x")


def test_prints_do_not_stand_among_the_rows_and_secrets_stay_here(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_real_one")
    file = tmp_path / "noisy.py"
    file.write_text(
        "import os\nprint('hello')\n"
        "def rows(path):\n"
        "    os.write(1, b'raw')\n"
        "    for i in range(3):\n"
        "        print('row', i)\n"
        "        yield {'prompt': f'é{i}', 'completion': os.environ.get('HF_TOKEN', 'none')}\n",
        encoding="utf-8",
    )
    prepare(source(tmp_path), tmp_path / "out", loader=Loader(file), eval_share=0, test_share=0)
    text = (tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == [
        {"prompt": f"é{i}", "completion": "none"} for i in range(3)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("raise RuntimeError('the file is odd')", "the file is odd"),
        ("return iter([['no', 'dict']])", "row 1 is a list"),
        ("return iter([])", "no rows"),
        ("return iter([{'a': object()}])", "not JSON serializable"),
        ("import os; os._exit(7)", "status 7"),
        ("import time; time.sleep(600)", "longer than"),
        ("import subprocess; subprocess.run(['sleep', '600'])", "longer than"),
        ("return ({'text': 'a' * 1000} for _ in iter(int, 1))", "MiB of rows"),
    ],
)
def test_failures_are_named_and_leave_nothing(tmp_path, body, word):
    file = tmp_path / "bad.py"
    file.write_text(f"def rows(path):\n    {body}\n", encoding="utf-8")
    data = source(tmp_path)
    start = time.monotonic()
    with pytest.raises(PeftsmithError, match=word):
        prepare(data, tmp_path / "out", loader=Loader(file, seconds=1.5, largest=1 << 20))
    assert time.monotonic() - start < 20
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["bad.py", "source.txt"]


def test_what_a_loader_leaves_running_ends_with_it(tmp_path):
    file = tmp_path / "left.py"
    file.write_text(
        "import subprocess\n"
        "def rows(path):\n"
        "    child = subprocess.Popen(['sleep', '600'])\n"
        "    for i in range(3):\n"
        "        yield {'prompt': f'{child.pid} {i}', 'completion': 'a'}\n",
        encoding="utf-8",
    )
    prepare(source(tmp_path), tmp_path / "out", loader=Loader(file), eval_share=0, test_share=0)
    first, *_ = (tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8").split("\n")
    pid = json.loads(first)["prompt"].split()[0]
    for _ in range(50):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text(encoding="utf-8").split()[2] in "ZX":
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"process {pid} goes on")


def test_a_loader_that_is_no_python_file(tmp_path):
    for name in ("absent.py", "source.txt"):
        with pytest.raises(PeftsmithError, match="must be a Python file"):
            prepare(source(tmp_path), tmp_path / "out", loader=Loader(tmp_path / name))
    assert module.MOST_SECONDS > 0
