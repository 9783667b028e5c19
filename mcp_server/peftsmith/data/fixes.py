"""Safe fixes for what the loss-mask proof finds: changes of the plan, tried on the sampled rows before being offered.

Knows: which finding which change mends: TRL's training template, a pad token of its own, loss on the answer alone.
Does not know: how a fix is applied (project/mask.py, only when asked), or max_length (supervision.py works it out).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from peftsmith.data import labels
from peftsmith.data.examples import AnyExample
from peftsmith.data.labels import Settings
from peftsmith.data.rendering import Renderer
from peftsmith.data.supervision import Supervision
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding

TEMPLATE_FILE = "training_template.jinja"
_PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")


def offer(
    findings: Sequence[Finding],
    sample: Sequence[AnyExample],
    renderer: Renderer,
    settings: Settings,
    training_template: Callable[[], str | None],
) -> tuple[list[Finding], dict[str, str]]:
    """The findings, those with a safe fix with `patch` in their evidence; and the files that patches name.

    `training_template` asks the training environment for TRL's own template; it is asked only where that may help.
    """
    made: list[Finding] = []
    texts: dict[str, str] = {}
    for each in findings:
        patch: dict[str, Any] = {}
        if each.id == "data.tokens.pad_is_eos" and settings.trainer in ("sft", "dpo", "kto"):
            other = distinct_pad(renderer)
            patch = {"training.pad_token": other} if other else {}
        elif each.id in ("data.mask.no_generation", "data.mask.assistant_empty"):
            patch = {"training.loss_on": "completion"}
        elif each.id == "data.template.reasoning_stripped":
            template = training_template()
            if template is not None and _mends(each.id, template, sample, renderer, settings):
                patch, texts[TEMPLATE_FILE] = {"training.chat_template": TEMPLATE_FILE}, template
        made.append(replace(each, evidence={**each.evidence, "patch": patch}) if patch else each)
    return made, texts


def distinct_pad(renderer: Renderer) -> str | None:
    """A special token of the vocabulary that pads without ending anything; None where there is none."""
    files = renderer.files
    taken = {*renderer.eos_ids, files.bos_id}
    ids = {text: files.tokenizer.token_to_id(text) for text in _PAD_NAMES if text in files.special_texts}
    return next((text for text, found in ids.items() if found is not None and found not in taken), None)


def _mends(id_: str, template: str, sample: Sequence[AnyExample], renderer: Renderer, settings: Settings) -> bool:
    """Whether the sampled rows no longer show the fault with this template, and no other error comes instead."""
    changed = replace(settings, template=template)
    try:
        tried = labels.renderer_for(Renderer(renderer.files), changed)
        seen = Supervision(tried, changed)
        for example, rows in zip(sample, labels.rows_of(tried, sample, changed), strict=True):
            seen.add(0, example, rows)
    except PeftsmithError:
        return False
    return all(each.id != id_ and each.severity != "error" for each in seen.findings())
