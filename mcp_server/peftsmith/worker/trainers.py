"""Each trainer of TRL and transformers, built as a script would build it, around a tiny random model.

Knows: the trainers' constructors, and the preprocessing of transformers' own example scripts.
Does not know: what is done with a trainer (jobs/collate.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _sft(tokenizer: Any, case: dict[str, Any], output: str) -> Any:
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model=_causal(tokenizer),
        args=SFTConfig(**_common(output, case), **case["options"]),
        train_dataset=_dataset(case["rows"]),
        processing_class=tokenizer,
    )


def _dpo(tokenizer: Any, case: dict[str, Any], output: str) -> Any:
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        model=_causal(tokenizer),
        ref_model=_causal(tokenizer),
        args=DPOConfig(**_common(output, case), **case["options"]),
        train_dataset=_dataset(case["rows"]),
        processing_class=tokenizer,
    )


def _kto(tokenizer: Any, case: dict[str, Any], output: str) -> Any:
    from trl import KTOConfig, KTOTrainer

    return KTOTrainer(
        model=_causal(tokenizer),
        ref_model=_causal(tokenizer),
        args=KTOConfig(**_common(output, case), **case["options"]),
        train_dataset=_dataset(case["rows"]),
        processing_class=tokenizer,
    )


def _classification(tokenizer: Any, case: dict[str, Any], output: str) -> Any:
    """Preprocessing of transformers' own run_glue.py."""
    from transformers import DataCollatorWithPadding, LlamaForSequenceClassification

    def tokenize(row: dict[str, Any]) -> dict[str, Any]:
        made = tokenizer(row["text"], row["second"], truncation=True, max_length=case["options"]["max_length"])
        return {**made, "label": case["labels"].index(row["label"])}

    _need_padding(tokenizer)
    model = LlamaForSequenceClassification(_config(tokenizer, num_labels=len(case["labels"])))
    return _trainer(model, tokenizer, case, output, tokenize, DataCollatorWithPadding(tokenizer, **_multiple(case)))


def _tagging(tokenizer: Any, case: dict[str, Any], output: str) -> Any:
    """Preprocessing of transformers' own run_ner.py: the first token of a word carries its tag."""
    from transformers import DataCollatorForTokenClassification, LlamaForTokenClassification

    def tokenize(row: dict[str, Any]) -> dict[str, Any]:
        made = tokenizer(
            row["words"], truncation=True, max_length=case["options"]["max_length"], is_split_into_words=True
        )
        labels, before = [], None
        for word in made.word_ids():
            labels.append(-100 if word is None or word == before else case["labels"].index(row["tags"][word]))
            before = word
        return {**made, "labels": labels}

    _need_padding(tokenizer)
    model = LlamaForTokenClassification(_config(tokenizer, num_labels=len(case["labels"])))
    collator = DataCollatorForTokenClassification(tokenizer, **_multiple(case))
    return _trainer(model, tokenizer, case, output, tokenize, collator)


def _answers(tokenizer: Any, case: dict[str, Any], output: str) -> Any:
    """Preprocessing of the generated scripts: windows of run_qa.py, without its slip at a window's last word."""
    from transformers import DataCollatorWithPadding, LlamaForQuestionAnswering

    def tokenize(rows: dict[str, list[Any]]) -> dict[str, Any]:
        made = tokenizer(
            rows["question"],
            rows["context"],
            truncation="only_second" if case["options"]["max_length"] else False,
            max_length=case["options"]["max_length"],
            stride=case["options"]["stride"],
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        firsts, lasts = [], []
        for window, row in enumerate(made["overflow_to_sample_mapping"]):
            ids, offsets = made["input_ids"][window], made["offset_mapping"][window]
            first = last = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
            if rows["answers"][row]:
                text, start = rows["answers"][row][0], rows["starts"][row][0]
                start, end = start + len(text) - len(text.lstrip()), start + len(text.rstrip())
                places = [place for place, owner in enumerate(made.sequence_ids(window)) if owner == 1]
                inside = [place for place in places if offsets[place][1] > start and offsets[place][0] < end]
                if inside and offsets[places[0]][0] <= start and offsets[places[-1]][1] >= end:
                    first, last = inside[0], inside[-1]
            firsts.append(first)
            lasts.append(last)
        ids, mask = made["input_ids"], made["attention_mask"]
        return {"input_ids": ids, "attention_mask": mask, "start_positions": firsts, "end_positions": lasts}

    _need_padding(tokenizer)
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    model = LlamaForQuestionAnswering(_config(tokenizer))
    collator = DataCollatorWithPadding(tokenizer, **_multiple(case))
    return _trainer(model, tokenizer, case, output, tokenize, collator, batched=True)


def _seq2seq(tokenizer: Any, case: dict[str, Any], output: str) -> Any:
    """Preprocessing of transformers' own run_summarization.py."""
    from transformers import (
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        T5Config,
        T5ForConditionalGeneration,
    )

    def tokenize(row: dict[str, Any]) -> dict[str, Any]:
        options = case["options"]
        made = tokenizer(row["source"], truncation=True, max_length=options["max_length"])
        target = tokenizer(text_target=row["target"], truncation=True, max_length=options["max_target_length"])
        return {**made, "labels": target["input_ids"]}

    _need_padding(tokenizer)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        pad_token_id=tokenizer.pad_token_id, decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    rows = _dataset(case["rows"])
    return Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(**_common(output, case)),
        train_dataset=rows.map(tokenize, remove_columns=rows.column_names),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model, **_multiple(case)),
        processing_class=tokenizer,
    )


def _trainer(
    model: Any,
    tokenizer: Any,
    case: dict[str, Any],
    output: str,
    tokenize: Any,
    collator: Any,
    *,
    batched: bool = False,
) -> Any:
    from transformers import Trainer, TrainingArguments

    rows = _dataset(case["rows"])
    return Trainer(
        model=model,
        args=TrainingArguments(**_common(output, case)),
        train_dataset=rows.map(tokenize, batched=batched, remove_columns=rows.column_names),
        data_collator=collator,
        processing_class=tokenizer,
    )


TRAINERS: dict[str, Callable[[Any, dict[str, Any], str], Any]] = {
    "sft": _sft,
    "dpo": _dpo,
    "kto": _kto,
    "classification": _classification,
    "tagging": _tagging,
    "answers": _answers,
    "seq2seq": _seq2seq,
}


def _need_padding(tokenizer: Any) -> None:
    """As the scripts do: a tokenizer without a pad token pads with its end token."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def _multiple(case: dict[str, Any]) -> dict[str, Any]:
    return {"pad_to_multiple_of": case["options"].get("pad_to_multiple_of")}


def _common(output: str, case: dict[str, Any]) -> dict[str, Any]:
    return {
        "output_dir": output,
        "per_device_train_batch_size": case["batch"],
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


def _dataset(rows: list[dict[str, Any]]) -> Any:
    """Mixed values (a tool's arguments) stay as they are instead of being filled up with nulls."""
    from datasets import Dataset

    return Dataset.from_list(rows, on_mixed_types="use_json")


def _config(tokenizer: Any, **more: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=tokenizer.pad_token_id, **more,
    )  # fmt: skip


def _causal(tokenizer: Any) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(_config(tokenizer))
