"""Keywords against the libraries that are really installed in the training environment."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from peftsmith.worker import client

pytestmark = pytest.mark.training
OLD = {
    "trl.SFTConfig": {"max_seq_length": "max_length", "evaluation_strategy": "eval_strategy"},
    "trl.SFTTrainer": {"tokenizer": "processing_class", "max_seq_length": None},
    "transformers.AutoModelForCausalLM.from_pretrained": {
        "load_in_4bit": "quantization_config",
        "use_auth_token": "token",
        "use_flash_attention_2": "attn_implementation",
    },
    "peft.LoraConfig": {"rank": None, "lora_alfa": "lora_alpha"},
}
NOW = {
    "trl.SFTConfig": ["output_dir", "max_length", "completion_only_loss", "use_cpu", "activation_checkpointing"],
    "trl.SFTTrainer": ["model", "args", "train_dataset", "processing_class", "peft_config", "callbacks"],
    "transformers.AutoModelForCausalLM.from_pretrained": ["dtype", "quantization_config", "revision", "device_map"],
    "transformers.AutoTokenizer.from_pretrained": ["revision", "trust_remote_code"],
    "transformers.BitsAndBytesConfig": ["load_in_4bit", "bnb_4bit_quant_type", "bnb_4bit_compute_dtype"],
    "peft.LoraConfig": ["r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "task_type"],
    "peft.PeftModel.from_pretrained": ["is_trainable"],
    "datasets.Dataset.from_list": ["features"],
}


@pytest.fixture(scope="module")
def ask(training_python):
    environment = SimpleNamespace(interpreter=training_python, key="real")
    yield lambda calls: client.call(environment, "signatures", {"calls": calls}, timeout=60)
    client.stop(environment)


def test_keywords_of_today_are_all_known(ask):
    answer = ask(NOW)
    assert answer["unknown"] == answer["missing"] == answer["deprecated"] == answer["open"] == []
    assert answer["checked"] == sum(len(keywords) for keywords in NOW.values())


def test_old_keywords_are_unknown_with_their_new_name(ask):
    answer = ask({name: list(keywords) for name, keywords in OLD.items()})
    found = {(each["callable"], each["keyword"]): each["nearest"] for each in answer["unknown"]}
    assert found == {(name, old): new for name, keywords in OLD.items() for old, new in keywords.items()}


def test_keywords_that_still_work_but_were_renamed_are_deprecated(ask):
    answer = ask({"transformers.AutoModelForCausalLM.from_pretrained": ["torch_dtype"]})
    assert answer["deprecated"] == [
        {
            "callable": "transformers.AutoModelForCausalLM.from_pretrained",
            "keyword": "torch_dtype",
            "nearest": "dtype",
        }
    ]


def test_a_class_that_is_gone_is_missing_and_kwargs_are_open(ask):
    answer = ask({"trl.DataCollatorForCompletionOnlyLM": [], "json.dumps": ["frobnicate"], "progress.Progress": ["x"]})
    assert [each["callable"] for each in answer["missing"]] == ["trl.DataCollatorForCompletionOnlyLM"]
    assert answer["open"] == ["json.dumps", "progress.Progress"]


def test_nothing_outside_of_the_libraries_is_imported(ask):
    assert ask({"antigravity_of_mine.run": ["x"]})["open"] == ["antigravity_of_mine.run"]
