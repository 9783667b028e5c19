"""What real trainers make of rows: the prepared set and the batches that their own collators build.

Knows: one case after the other, what a batch is on the wire, the limit on memory, whether packed samples see each
other on a small model.
Does not know: how a trainer is built (trainers.py), what the result is compared with (data/comparison.py), or how rows
came about.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from peftsmith.worker import apart, skeleton, trainers
from peftsmith.worker.child import Report

# A template that allocates without end must not take the machine down: this much above what the libraries hold.
ROOM_BYTES = 4 << 30
_BATCHED = (
    "input_ids", "labels", "attention_mask", "position_ids", "completion_mask", "label", "start_positions",
    "end_positions",
)  # fmt: skip


def run(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    """`{"work": folder, "cases": [case]}` -> `{"cases": [answer]}`.

    A case: tokenizer (folder), template (text or None), trainer, options (keywords of its config), rows (as the
    trainer's data set takes them), batch (rows a batch), labels (names of classes or tags). Its answer holds
    `batches` (lists of ids, labels and masks, as the collator returns them) and `kept` (rows of the prepared set), or
    `error` (what the trainer raised). With `want_template`, `training_template` is TRL's own for this tokenizer, where
    it has one. With `config` (config.json) `leak` says whether samples laid end to end see each other.
    """
    work = Path(arguments["work"])
    _limit()
    _settle(work)
    answers = []
    for number, case in enumerate(arguments["cases"]):
        report("case", {"number": number})
        answers.append(_case(case, work))
    return {"cases": answers}


def _case(case: dict[str, Any], work: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(case["tokenizer"])
    if case.get("template") is not None:
        tokenizer.chat_template = case["template"]
    answer: dict[str, Any] = {"pad_is_eos": tokenizer.pad_token_id is not None and _pads_with_eos(tokenizer)}
    if case.get("want_template"):
        answer["training_template"] = training_template(tokenizer)
    if "trainer" not in case:
        return answer
    try:
        with tempfile.TemporaryDirectory(dir=work) as output:
            trainer = trainers.TRAINERS[case["trainer"]](tokenizer, case, output)
            prepared = trainer.train_dataset
            size = case["batch"]
            batches = [
                _plain(trainer.data_collator(_columns(trainer, prepared, start, size)))
                for start in range(0, len(prepared), size)
            ]
            if case.get("config") is not None:
                answer["leak"] = leak(trainer, case["config"])
        return {**answer, "kept": len(prepared), "batches": batches}
    except MemoryError:
        return {**answer, "error": "MemoryError: the template or the rows took more memory than a proof may"}
    except Exception as error:  # what a trainer raises for these rows and settings is the answer
        return {**answer, "error": f"{type(error).__name__}: {error}"[:2000]}


def _columns(trainer: Any, prepared: Any, start: int, size: int) -> list[dict[str, Any]]:
    """Rows as the data loader hands them over: without the columns that Trainer takes out."""
    trainer._set_signature_columns_if_needed()
    wanted = set(trainer._signature_columns or ()) | {"label", "label_ids", "labels"}
    kept = [name for name in prepared.column_names if name in wanted]
    part = prepared.select(range(start, min(start + size, len(prepared)))).select_columns(kept)
    return [part[place] for place in range(len(part))]


def _plain(batch: Any) -> dict[str, Any]:
    return {name: batch[name].tolist() for name in _BATCHED if name in batch}


def leak(trainer: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Whether two samples in one sequence change each other's hidden states, on a small model of this architecture.

    The batch is the trainer's collator's own. What is seen is this processor's attention, which is named.
    """
    import torch
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as folder:
        cleaned = {name: value for name, value in config.items() if name not in ("quantization_config", "auto_map")}
        (Path(folder) / "config.json").write_text(json.dumps(cleaned), encoding="utf-8")
        loaded = AutoConfig.from_pretrained(folder)
    skeleton.cut_down(loaded)
    return apart.difference(apart.built(loaded, torch.float32), trainer.data_collator)


def training_template(tokenizer: Any) -> str | None:
    """TRL's template with generation blocks for this tokenizer; None when it has none for it, or needs none."""
    from trl.chat_template_utils import get_training_chat_template

    try:
        found: str | None = get_training_chat_template(tokenizer)
    except Exception:  # a template that TRL cannot try out has no training twin either
        return None
    return found


def _pads_with_eos(tokenizer: Any) -> bool:
    return bool(tokenizer.pad_token_id == tokenizer.eos_token_id)


def _settle(work: Path) -> None:
    """Temporary files and the caches of datasets go to `work`, which the caller removes."""
    import datasets
    import torch
    import transformers

    os.environ["TMPDIR"] = tempfile.tempdir = str(work)
    datasets.config.HF_DATASETS_CACHE = work / "datasets"
    datasets.disable_caching()
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    transformers.set_seed(0)


def _limit() -> None:
    """Cap the address space where the system can (Linux)."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return
    import resource

    held = int(status.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + ROOM_BYTES, held + ROOM_BYTES))
