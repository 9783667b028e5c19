"""The job that builds real trainers: what it answers, and that a hostile template ends the job and not the worker."""

from __future__ import annotations

import pytest

from peftsmith.machine import environment
from peftsmith.worker import client

pytestmark = pytest.mark.training

ROWS = [{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}] * 3


def case(model, **changes):
    return {
        "tokenizer": str(model), "template": None, "trainer": "sft", "options": {"max_length": 64}, "rows": ROWS,
        "batch": 2, "labels": [], **changes,
    }  # fmt: skip


def ask(tmp_path, cases, timeout=120):
    found = environment.require(tmp_path)
    return client.call(found, "collate", {"work": str(tmp_path), "cases": cases}, timeout=timeout)["cases"]


def test_batches_and_refusals(tmp_path, tiny_model, training_python):
    good, refused, template = ask(
        tmp_path,
        [
            case(tiny_model),
            case(tiny_model, options={"max_length": 64, "assistant_only_loss": True}),
            {"tokenizer": str(tiny_model), "template": None, "want_template": True},
        ],
    )
    assert good["kept"] == 3
    assert [len(batch["input_ids"]) for batch in good["batches"]] == [2, 1]
    assert good["batches"][0]["labels"][0][-1] != -100
    assert "not training-compatible" in refused["error"]
    assert template["training_template"] is None


def test_leak_sees_what_attention_lets_through(tmp_path, tiny_model, training_python):
    import json

    config = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    options = {"max_length": 64, "packing": True}
    kept, leaked = ask(
        tmp_path,
        [
            case(tiny_model, options={**options, "packing_strategy": "bfd"}, config=config),
            case(tiny_model, options={**options, "packing_strategy": "wrapped"}, config=config),
        ],
    )
    assert not kept["leak"]["leaks"] and kept["leak"]["largest"] < 1e-4
    assert leaked["leak"]["leaks"] and leaked["leak"]["largest"] > 1e-2


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10 ** 11 }}",
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% import 'os' as os %}",
    ],
)
def test_a_hostile_template_leaves_the_worker_alive(tmp_path, tiny_model, training_python, template):
    try:
        [answer] = ask(tmp_path, [case(tiny_model, template=template)], timeout=12)
        assert "error" in answer
    except client.JobFailed as failed:
        assert failed.cause
    assert client._locked(client.socket_path(environment.require(tmp_path)))
    [good] = ask(tmp_path, [case(tiny_model)])
    assert good["kept"] == 3
