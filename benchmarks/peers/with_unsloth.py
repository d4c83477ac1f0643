# Unsloth: python with_unsloth.py BITS EPOCHS DTYPE

import sys

import torch
from unsloth import FastLanguageModel

# isort: split
# Unsloth patches what comes after it
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

bits, epochs, dtype = sys.argv[1:]
model, tokenizer = FastLanguageModel.from_pretrained(
    "base", max_seq_length=512, load_in_4bit=bits == "4", dtype=getattr(torch, dtype)
)
model = FastLanguageModel.get_peft_model(
    model,
    r=16,
    lora_alpha=32,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    layers_to_transform=[28, 29],
    use_gradient_checkpointing=False,
)
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=load_dataset("json", data_files="rows.jsonl", split="train").select_columns(["input_ids", "labels"]),
    args=SFTConfig(
        output_dir="out",
        per_device_train_batch_size=1,
        num_train_epochs=int(epochs),
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        max_length=512,
        save_strategy="epoch",
        report_to=[],
    ),
)
trainer.train()
trainer.save_model()
