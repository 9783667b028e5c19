from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

model = AutoModelForCausalLM.from_pretrained("base", dtype="bfloat16")
tokenizer = AutoTokenizer.from_pretrained("base")
adapter = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_prj"], task_type="CAUSAL_LM")
trainer = SFTTrainer(
    model=model,
    args=SFTConfig(output_dir="output", learning_rate=2e-4, max_length=1024, bf16=True),
    train_dataset=load_dataset("json", data_files="train.jsonl", split="train"),
    processing_class=tokenizer,
    peft_config=adapter,
)
trainer.train()
