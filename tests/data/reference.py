"""What transformers and TRL really make of rows. Runs in the training environment: reference.py REQUEST ANSWER.

REQUEST is JSON: {"model": folder, "cases": [{"folder", "examples": [{prompt, completion}], "max_length", "mode"}]}.
ANSWER gets for each case the rendered texts and ids of apply_chat_template, and the collated batch of a SFTTrainer.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path


def main(request: Path, answer: Path) -> None:
    import transformers
    from datasets import Dataset, disable_caching
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    transformers.logging.set_verbosity_error()
    disable_caching()
    asked = json.loads(request.read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(asked["model"])
    answers = []
    for case in asked["cases"]:
        tokenizer = AutoTokenizer.from_pretrained(case["folder"])
        texts, ids = [], []
        for example in case["examples"]:
            for messages, prompt in ((example["prompt"], True), (example["prompt"] + example["completion"], False)):
                texts.append(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
                encoded = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=prompt)
                ids.append(encoded["input_ids"])
        with tempfile.TemporaryDirectory() as output:
            trainer = SFTTrainer(
                model=model,
                args=SFTConfig(
                    output_dir=output,
                    completion_only_loss=True,
                    max_length=case["max_length"],
                    truncation_mode=case["mode"],
                    use_cpu=True,
                    bf16=False,
                    report_to="none",
                    disable_tqdm=True,
                ),
                train_dataset=Dataset.from_list(case["examples"]),
                processing_class=tokenizer,
            )
            rows = [trainer.train_dataset[place] for place in range(len(trainer.train_dataset))]
            batch = trainer.data_collator(rows) if rows else None
        collated = []
        for place in range(len(rows)):
            real = batch["attention_mask"][place].bool()
            collated.append(
                {
                    "input_ids": batch["input_ids"][place][real].tolist(),
                    "labels": batch["labels"][place][real].tolist(),
                    "padding_labels": sorted(set(batch["labels"][place][~real].tolist())),
                }
            )
        answers.append({"texts": texts, "ids": ids, "collated": collated})
    answer.write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
