"""A seeded dozen of model types through the functions of benchmarks/targets.py: PEFT adapts what our presets say."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from peftsmith.model import catalogue

ROOT = Path(__file__).resolve().parents[2]
ALWAYS = ("causal-lm mixtral", "causal-lm gpt2", "seq2seq t5", "sequence-classification bert")
COUNT = 12


def chosen() -> list[str]:
    every = sorted(f"{task} {kind}" for kind in catalogue.types() for task in catalogue.tasks(kind)
                   if (catalogue.entry(kind, task) or {}).get("transformers") and task != "image-text")  # fmt: skip
    rest = [each for each in every if each not in ALWAYS]
    return [*ALWAYS, *random.Random(5).sample(rest, COUNT - len(ALWAYS))]


@pytest.fixture(scope="module")
def results(training_python):
    code = (
        "import json, sys\n"
        "from benchmarks import implied, targets\n"
        "import transformers; transformers.logging.set_verbosity_error()\n"
        "pairs = [each.split(' ', 1) for each in json.loads(sys.argv[1])]\n"
        "print(json.dumps({f'{t} {m}': [targets.compare(m, t), implied.check(m, t, variations=2)] for t, m in pairs}))"
    )
    paths = [str(ROOT / "mcp_server"), str(ROOT)]
    done = subprocess.run(
        [training_python, "-W", "ignore", "-c", code, json.dumps(chosen())],
        capture_output=True, text=True, check=False, timeout=300, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", chosen())
def test_peft_adapts_what_the_presets_say(results, name):
    compared, _ = results[name]
    if name in ALWAYS:
        assert compared["built"] and compared["presets"] >= 3, compared
    assert not compared.get("wrong"), compared


@pytest.mark.parametrize("name", chosen())
def test_the_catalogue_says_nothing_wrong(results, name):
    _, checked = results[name]
    assert checked["wrong"] == []
    assert not checked["complete"] or checked["full"] or checked.get("why")
