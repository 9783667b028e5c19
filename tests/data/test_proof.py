"""The loss-mask proof: what it counts, what it finds, and that it is proven only where the real trainer agrees."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from peftsmith.data import labels, proof
from peftsmith.data.examples import Chat, Judged, Plain, Preference
from peftsmith.data.labels import Settings
from peftsmith.data.templating import BATCH_SECONDS
from peftsmith.machine import environment
from peftsmith.worker import client
from tests.data.templates import MORE, TEMPLATES, with_template
from tests.tiny import CHATML, write_tiny_model


def chat(row):
    asked = row["asked"] if isinstance(row["asked"], list) else [{"role": "user", "content": row["asked"]}]
    return Chat(asked, [{"role": "assistant", "content": row["said"]}])


def write(path: Path, rows: list[dict], example=chat) -> proof.Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return proof.Source(path, example)


def many(count: int = 12) -> list[dict]:
    return [{"asked": f"where is parcel {number}", "said": "here " * number + "it is"} for number in range(count)]


def found(made: proof.Proof) -> dict[str, dict]:
    return {each.id: dict(each.evidence) for each in made.findings}


def test_without_an_environment_it_is_unknown_and_never_proven(tmp_path, tiny_model):
    made = proof.prove(write(tmp_path / "r.jsonl", many()), tiny_model, Settings(), None)
    assert made.state == "unknown"
    assert "data.mask.unproven" in found(made)
    assert made.counts["rows"] == made.counts["kept"] == 12
    assert 0 < made.counts["share_trained"] < 1
    assert made.shown[0] == {"row": 1, "tokens": made.shown[0]["tokens"], "trained": ["it is<|im_end|>\n"]}


def test_sample_has_first_longest_drawn_and_odd_rows(tmp_path, tiny_model):
    rows = many(200)
    rows[150] = {"asked": "a " * 400, "said": "too long a question"}
    made = proof.prove(write(tmp_path / "r.jsonl", rows), tiny_model, Settings(max_length=256), None)
    assert {1, 2, 3, 4, 151, 200} <= set(made.sample)
    assert found(made)["data.tokens.completion_cut"]["rows"] == [151]
    assert made.counts["kept"] == 199
    again = proof.prove(write(tmp_path / "r.jsonl", rows), tiny_model, Settings(max_length=256), None)
    assert (again.sample, again.digest) == (made.sample, made.digest)
    assert proof.prove(write(tmp_path / "r.jsonl", rows), tiny_model, Settings(), None, seed=7).sample != made.sample


def test_digest_follows_data_settings_template_and_tokenizer(tmp_path):
    model = write_tiny_model(tmp_path / "model")
    source = write(tmp_path / "r.jsonl", many())
    digests = {proof.prove(source, model, Settings(), None).digest}
    digests.add(proof.prove(source, model, Settings(max_length=100), None).digest)
    (model / "chat_template.jinja").write_text(CHATML + " ", encoding="utf-8")
    digests.add(proof.prove(source, model, Settings(), None).digest)
    digests.add(proof.prove(write(tmp_path / "r.jsonl", many(11)), model, Settings(), None).digest)
    config = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "<|im_end|>"}), encoding="utf-8")
    changed = proof.prove(write(tmp_path / "r.jsonl", many(11)), model, Settings(), None)
    assert len({*digests, changed.digest}) == 5
    padding = found(changed)["data.tokens.pad_is_eos"]
    assert padding["masked_by_collator"] is False
    assert padding["patch"] == {"training.pad_token": "<|pad|>"}


def test_what_max_length_cuts_comes_with_a_patch(tmp_path, tiny_model):
    made = proof.prove(write(tmp_path / "r.jsonl", many(40)), tiny_model, Settings(max_length=32), None)
    evidence = found(made)["data.tokens.truncated"]
    longer = evidence["patch"]["training.max_length"]
    assert longer >= made.counts["lengths"]["max"]
    healed = proof.prove(write(tmp_path / "r.jsonl", many(40)), tiny_model, Settings(max_length=longer), None)
    assert "data.tokens.truncated" not in found(healed)


def test_unusable_rows_are_counted_and_named(tmp_path, tiny_model):
    from peftsmith.data.convert import to_example
    from peftsmith.data.mapping import Mapping

    mapping = Mapping.of("prompt_completion")
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a"}, {"prompt": "a", "completion": ""}]
    source = write(tmp_path / "r.jsonl", rows, lambda row: to_example(row, mapping))
    made = proof.prove(source, tiny_model, Settings(), None)
    assert made.counts["unusable"] == 2
    assert found(made)["data.rows.empty"]["rows"]


@pytest.mark.parametrize(
    ("template", "settings", "expected"),
    [
        ("marked", Settings(columns="messages", completion_only_loss=True), "data.mask.ineffective"),
        ("chatml", Settings(assistant_only_loss=True), "data.mask.no_generation"),
        ("chatml", Settings(assistant_only_loss=True), "data.mask.assistant_empty"),
        ("tail_unmarked", Settings(assistant_only_loss=True), "data.tokens.end_untrained"),
        ("chatml", Settings(packing=True, packing_strategy="wrapped"), "data.packing.leaks"),
        ("chatml", Settings(packing=True, max_length=None), "data.mask.refused"),
        ("{{ '<|start_header|>' }}" + CHATML, Settings(), "data.template.token_missing"),
        ("{{ bos_token + bos_token }}" + CHATML, Settings(), "data.tokens.double_bos"),
        (CHATML.replace("+ '<|im_end|>'", ""), Settings(), "data.tokens.end_untrained"),
        (TEMPLATES["other_prompt"], Settings(), "data.tokens.boundary_merged"),
        (None, Settings(), "data.template.missing"),
    ],
)
def test_findings(tmp_path, tiny_model, template, settings, expected):
    text = {"chatml": CHATML, **TEMPLATES, **MORE}.get(template, template)
    folder = with_template(tiny_model, tmp_path / "m", text or "")
    if text is None:
        (folder / "chat_template.jinja").unlink()
    made = proof.prove(write(tmp_path / "r.jsonl", many()), folder, settings, None)
    assert expected in found(made)
    assert made.state in ("unknown", "refused")


def test_reasoning_of_earlier_turns_is_missed(tmp_path, tiny_model):
    folder = with_template(tiny_model, tmp_path / "m", TEMPLATES["thinking"])
    turns = [
        {"role": "user", "content": "how far"},
        {"role": "assistant", "content": "far", "reasoning_content": "a mile is long"},
        {"role": "user", "content": "and back"},
    ]
    made = proof.prove(write(tmp_path / "r.jsonl", [{"asked": turns, "said": "as far"}]), folder, Settings(), None)
    assert found(made)["data.template.reasoning_stripped"]["rows"] == [1]


def test_ids_without_an_embedding(tmp_path):
    folder = write_tiny_model(tmp_path / "m", vocab_size=300)
    rows = [{"asked": "the parcel never came", "said": "the warehouse"}]
    assert "data.tokens.outside_embedding" in found(
        proof.prove(write(tmp_path / "r.jsonl", rows), folder, Settings(), None)
    )


HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "recursion": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "allocation": "{{ 'x' * 10 ** 11 }}",
    "marks": "{% for a in range(99999) %}{% for b in range(99) %}{% generation %}{% endgeneration %}"
    "{% endfor %}{% endfor %}",
    "import": "{% import 'os' as os %}",
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_in_a_finding_and_reach_no_trainer(tmp_path, tiny_model, monkeypatch, name):
    from peftsmith.data import templating

    assert BATCH_SECONDS > 2
    monkeypatch.setattr(templating, "BATCH_SECONDS", 2.0)
    monkeypatch.setattr(client, "call", lambda *_, **__: pytest.fail("the trainer was asked"))
    folder = with_template(tiny_model, tmp_path / "m", HOSTILE[name])
    known = environment.Environment("/python", "3.11", {}, [], True, "test")
    made = proof.prove(write(tmp_path / "r.jsonl", many()), folder, Settings(), known)
    assert made.state == "unknown"
    assert {"data.template.unsafe", "data.template.refuses"} & found(made).keys()
    assert made.counts["kept"] == 0


@pytest.mark.training
def test_the_real_trainer_agrees_or_the_proof_says_so(tmp_path, tiny_model, training_python, monkeypatch):
    known = environment.require(tmp_path)
    source = write(tmp_path / "r.jsonl", many(30))
    config = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    for settings in (Settings(), Settings(packing=True, max_length=64), Settings(max_length=None, padding_free=True)):
        made = proof.prove(source, tiny_model, settings, known, config=config)
        assert made.state == "proven", made.findings
        assert "data.packing.leaks" not in found(made), "this attention keeps samples apart by their positions"
    texts = write(tmp_path / "t.jsonl", many(8), lambda row: Plain("", row["said"]))
    assert proof.prove(texts, tiny_model, Settings(), known).state == "proven"
    pairs = write(tmp_path / "p.jsonl", many(8), lambda row: Preference(row["asked"], row["said"], "no"))
    assert proof.prove(pairs, tiny_model, Settings(trainer="dpo"), known).state == "proven"
    judged = write(tmp_path / "k.jsonl", many(8), lambda row: Judged(row["asked"], row["said"], len(row["said"]) > 9))
    assert proof.prove(judged, tiny_model, Settings(trainer="kto"), known).state == "proven"

    right = labels.truncated
    monkeypatch.setattr(labels, "truncated", lambda row, settings: replace(right(row, settings), spans=[(0, 2)]))
    wrong = proof.prove(source, tiny_model, Settings(), known)
    assert wrong.state == "differs"
    assert found(wrong)["data.mask.differs"]["rows"] == wrong.sample[:4]


@pytest.mark.training
def test_a_known_family_gets_its_training_template(tmp_path, tiny_model, training_python):
    known = environment.require(tmp_path)
    place = next(Path(training_python).parent.parent.glob("lib/python*/site-packages/trl/chat_templates/qwen3.jinja"))
    folder = with_template(tiny_model, tmp_path / "m", place.read_text(encoding="utf-8"))
    made = proof.prove(write(tmp_path / "r.jsonl", many()), folder, Settings(assistant_only_loss=True), known)
    assert made.state == "proven"
    assert "data.template.swapped" in found(made)
    refused = proof.prove(write(tmp_path / "r.jsonl", many()), tiny_model, Settings(assistant_only_loss=True), known)
    assert refused.state == "unknown"
    assert found(refused)["data.mask.assistant_empty"]["count"] == 12
