"""Runs in the training environment: a generated train.py's loss and gradients against the trainer's own, on one batch.

python with_losses.py PROJECT BASE OUTPUT: one JSON document on stdout.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from pathlib import Path

import torch
from trl import SFTTrainer

project, base, output = (Path(each) for each in sys.argv[1:])
sys.path.insert(0, str(project))
spec = importlib.util.spec_from_file_location("train", project / "train.py")
train = importlib.util.module_from_spec(spec)
spec.loader.exec_module(train)
with contextlib.redirect_stdout(sys.stderr):
    trainer = train.main(["--base", str(base), "--output", str(output), "--max-steps", "1"])
size = trainer.args.per_device_train_batch_size
rows = [trainer.train_dataset[place] for place in range(min(size, len(trainer.train_dataset)))]
names = ("input_ids", "labels", "seq_lengths")
rows = [{name: row[name] for name in names if name in row} for row in rows]
losses, gradients = [], []
trainer.model.train()
for compute in (type(trainer).compute_loss, SFTTrainer.compute_loss):
    for items in (None, torch.tensor(7)):
        trainer.model.zero_grad()
        batch = trainer.data_collator(rows)
        loss = compute(trainer, trainer.model, dict(batch), num_items_in_batch=items)
        loss.backward()
        losses.append(loss.item())
        grads = [each.grad.flatten() for each in trainer.model.parameters() if each.grad is not None]
        gradients.append(torch.cat(grads))
largest = [
    float((gradients[place] - gradients[place + 2]).abs().max() / gradients[place].abs().max()) for place in (0, 1)
]
logged = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
print(json.dumps({"losses": losses, "gradients": largest, "logged": logged, "trainer": type(trainer).__name__}))
