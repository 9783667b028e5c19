"""Writes knowledge/packing.json: on which architectures samples laid end to end do not see each other.

Run as: python -m peftsmith.worker.apart OUT.json [--types a,b]      (training environment; some minutes)

Every causal language model that the installed transformers knows is built small, with random weights, and given two
samples in one sequence as TRL's collator lays them (positions that begin again, no mask), and each of them alone.
Knows: how to build the small model and what to compare. Does not know: who may pack (knowledge/packing.py), or the
config of a base that is fine-tuned, which the loss-mask proof tries by itself (jobs/collate.py).
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peftsmith.worker import catalogue, shrink, skeleton

LEAK = 1e-3  # relative change of a hidden state, far above rounding
_LENGTHS = (9, 14)
_SECONDS = 90
_LARGEST = 200_000_000  # parameters
Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--types", help="only these, comma-separated")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    import torch
    import transformers
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, catalogue.too_slow)
    wanted = set(arguments.types.split(",")) if arguments.types else None
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    found = {}
    for _, model_type in catalogue.every_type(["causal-lm"]):
        if wanted is not None and model_type not in wanted:
            continue
        signal.alarm(_SECONDS)
        try:
            found[model_type] = tried(small(model_type), collator)
        except Exception as error:  # a type that cannot be tried stays unknown; it is reported
            print(f"{model_type}: unknown, {type(error).__name__}: {str(error)[:160]}", file=sys.stderr, flush=True)
        finally:
            signal.alarm(0)
        print(model_type, found.get(model_type), flush=True)
    arguments.output.write_text(written(transformers.__version__, found), encoding="utf-8")
    return 0


def written(version: str, found: dict[str, dict[str, Any]]) -> str:
    """The text of packing.json: one line a type, so that a new transformers gives a diff that can be read."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))
    return f'{{\n"transformers": {json.dumps(version)},\n"types": {{\n{lines}\n}}\n}}\n'


def small(model_type: str) -> Any:
    """A small model of a type with its default config."""
    import torch
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type](**shrink.NEEDED.get(model_type, {}))
    skeleton.cut_down(config)
    return built(config, torch.float32)


def built(config: Any, dtype: Any) -> Any:
    """A causal model with random weights; ValueError when it would be too large."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, dtype=dtype)
    parameters = sum(each.numel() for each in empty.parameters())
    if parameters > _LARGEST:
        raise ValueError(f"{parameters:,} parameters")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def tried(model: Any, collator: Collator) -> dict[str, Any]:
    """What is kept of a type: `apart` (True, False, or what its class says when it refuses), by which attention, and
    whether the head can be asked for the logits of some positions (`labelled`)."""
    import torch

    ids = torch.arange(7)[None]
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits  # a class that cannot do this much stays unknown
    try:
        seen = difference(model, collator)
        apart: bool | str = not seen["leaks"]
    except (ValueError, NotImplementedError) as error:
        apart = " ".join(str(error).split())[:160]
    return {
        "apart": apart,
        "attention": str(model.config._attn_implementation),
        "labelled": _labelled(model, ids, whole),
    }


def _labelled(model: Any, ids: Any, whole: Any) -> bool:
    """Whether logits of chosen positions are those of the whole, and no other loss hangs on the forward pass."""
    import torch

    chosen = torch.tensor([1, 4])
    if hasattr(model.config.get_text_config(), "output_router_logits"):
        return False  # the loss that balances experts would be lost
    try:
        with torch.no_grad():
            part = model(input_ids=ids, use_cache=False, logits_to_keep=chosen).logits
    except (TypeError, ValueError, RuntimeError):
        return False
    return part.shape[1] == 2 and bool(torch.allclose(part, whole[:, chosen], atol=1e-5))


def difference(model: Any, collator: Collator) -> dict[str, Any]:
    """How much two samples in one sequence change each other's hidden states, by what attention."""
    import torch

    draw = torch.Generator().manual_seed(0)
    most = model.config.get_text_config().vocab_size
    samples = [torch.randint(0, most, (length,), generator=draw).tolist() for length in _LENGTHS]

    def states(rows: list[list[int]]) -> Any:
        joined = [token for row in rows for token in row]
        packed = [{"input_ids": joined, "labels": joined, "seq_lengths": [len(row) for row in rows]}]
        batch = {name: value for name, value in collator(packed).items() if name != "labels"}
        with torch.no_grad():
            return model(**batch, use_cache=False, output_hidden_states=True).hidden_states[-1][0]

    together, alone = states(samples), torch.cat([states([row]) for row in samples])
    largest = float((together - alone).abs().max() / alone.abs().max())
    return {
        "leaks": not largest <= LEAK,
        "largest": round(largest, 6),
        "attention": str(model.config._attn_implementation),
    }


if __name__ == "__main__":
    sys.exit(main())
