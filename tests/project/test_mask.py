"""The loss-mask proof of a project: in the lock, and void as soon as data, settings or tokenizer change."""

from __future__ import annotations

import json
import shutil

import pytest

from peftsmith import lock, plan
from peftsmith.errors import PeftsmithError
from peftsmith.project import check, mask
from peftsmith.run import start
from tests.project.small_project import make_project

pytestmark = pytest.mark.training


@pytest.fixture
def project(tmp_path, tiny_model, training_python):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    return make_project(tmp_path / "project", model)


def test_the_proof_is_in_the_lock_and_start_run_holds_on_to_it(project, tmp_path):
    checked = check.check(project, twin=False)
    kept = lock.load(project).proofs["mask"]
    assert kept["state"] == "proven"
    assert kept["counts"]["rows"] == kept["counts"]["kept"] == 24
    assert kept["shown"][0]["trained"] == ["billing<|im_end|>\n"]
    assert checked.proofs["mask"]["digest"] == kept["digest"]
    assert mask.changed_since(project, lock.load(project)) == []

    template = tmp_path / "model" / "chat_template.jinja"
    before = template.read_text(encoding="utf-8")
    template.write_text(before.replace("<|im_end|>", ""), encoding="utf-8")
    with pytest.raises(PeftsmithError, match=r"chat_template\.jinja"):
        start.start(project, kind="smoke", digest=checked.digest, adapter_run=None, max_steps=1)
    template.write_text(before, encoding="utf-8")
    assert mask.changed_since(project, lock.load(project)) == []

    path = project / plan.PLAN_FILE
    text = path.read_text(encoding="utf-8")
    path.write_text(plan.edit(text, {"training.max_length": 64}), encoding="utf-8")
    assert mask.changed_since(project, lock.load(project)) == ["the settings that decide about labels"]
    path.write_text(text, encoding="utf-8")
    (project / "data" / "train.jsonl").write_text(
        json.dumps({"text": "a", "label": "billing"}) + "\n", encoding="utf-8"
    )
    assert mask.changed_since(project, lock.load(project)) == ["data.train (data/train.jsonl)"]


def test_a_template_that_never_ends_a_turn_takes_the_digest(project, tmp_path):
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8").replace("<|im_end|>", ""), encoding="utf-8")
    checked = check.check(project, twin=False)
    assert checked.digest is None
    assert "data.tokens.end_untrained" in {each.id for each in checked.findings}
    assert checked.proofs["mask"]["state"] == "proven", "the fast path agrees with the trainer that nothing ends"


def test_remote_code_is_not_proven(project):
    text = (project / plan.PLAN_FILE).read_text(encoding="utf-8")
    wanted = plan.parse(plan.edit(text, {"base.trust_remote_code": True, "base.revision": "0" * 40}))
    kept, findings = mask.prove(project, wanted, None)
    assert kept["state"] == "unknown"
    assert [each.severity for each in findings] == ["unknown"]
