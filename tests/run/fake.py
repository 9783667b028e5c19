"""A checked project whose scripts are small stdlib stand-ins: what is tested with it is process supervision only.

Knows: the files and the lock that start_run wants to see.
Does not know: any training. The environment variable FAKE says how the stand-in behaves.
"""

from __future__ import annotations

import sys
from pathlib import Path

from peftsmith import files, lock, plan

SCRIPT = """
import argparse, json, os, signal, subprocess, sys, time
from pathlib import Path

parser = argparse.ArgumentParser()
for name in ("base", "output", "max-steps", "adapter"):
    parser.add_argument("--" + name)
given = parser.parse_args()
output = Path(given.output)
how = os.environ.get("FAKE", "")
steps = int(given.max_steps or 6)
print("argv", sys.argv[1:], "cwd", os.getcwd())
print("environment", {k: os.environ.get(k) for k in ("PYTHONUNBUFFERED", "DO_NOT_TRACK", "PYTHONPATH", "MY_OWN")})
if "ignore-term" in how:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "children" in how:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    (output / "child").write_text(str(child.pid))
pause = 0.4 if "slow" in how else 0.01
metrics = open(output / "metrics.jsonl", "a")
for step in range(1, steps + 1):
    time.sleep(pause)
    row = {"step": step, "max_steps": steps, "loss": 2.0 / step, "grad_norm": 1.0, "seconds": step * pause}
    metrics.write(json.dumps(row) + "\\n")
    metrics.flush()
    if step == 2 and "crash" in how:
        print("Authorization: " + "hf" + "_" + "QwErTyKLMNOPsDfGhJkLzXcVbNmqwertyu" + "\\x1b[31m red")
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if step == 2 and "shot" in how:
        os.kill(os.getpid(), signal.SIGKILL)
    if step == 2 and "hang" in how:
        time.sleep(120)
metrics.write('{"step": 99, "max_st')  # as if this process were in the middle of a line
metrics.close()
if "leave" not in how:
    (output / "adapter").mkdir()
    done = {"ok": "not-ok" not in how, "kind": "train", "metrics": {"loss": 0.5}, "artefacts": {"x": "../../plan.yaml"}}
    (output / "done.json").write_text(json.dumps(done))
"""


def make_project(folder: Path, base: Path) -> tuple[Path, str]:
    """Write the project into `folder`; returns it and the digest of its check."""
    folder.mkdir()
    text = plan.dump(
        plan.validate(
            {
                "schema_version": plan.SCHEMA_VERSION,
                "name": "fake",
                "task": "chat",
                "base": {"model": str(base)},
                "data": {"train": "train.jsonl", "format": "messages"},
            }
        )
    )
    files.write_text(folder / "plan.yaml", text)
    files.write_text(folder / "train.jsonl", '{"messages": []}\n')
    hashes = {}
    for name in ("train.py", "evaluate.py", "merge.py"):
        files.write_text(folder / name, SCRIPT)
        hashes[name] = files.sha256_text(SCRIPT)
    data = {"train": lock.DataFile(path="train.jsonl", sha256=files.sha256_file(folder / "train.jsonl"), rows=1)}
    made = lock.Lock(
        peftsmith="0",
        plan_sha256=files.sha256_text(text),
        base={"model": str(base), "folder": str(base)},
        data=data,
        versions={},
        interpreter=sys.executable,
        estimate={},
        proofs={"twin": {"ok": True}},
        why={},
        files=hashes,
        checked=hashes,
    )
    digest = lock.compute_digest(folder, made)
    lock.save(folder, made.model_copy(update={"digest": digest}))
    return folder, digest
