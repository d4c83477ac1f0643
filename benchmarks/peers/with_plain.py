# Plain PEFT and the Hugging Face Trainer: python with_plain.py BITS EPOCHS DTYPE

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

bits, epochs, dtype = sys.argv[1:]
four = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=getattr(torch, dtype),
)
model = AutoModelForCausalLM.from_pretrained(
    "base", dtype=torch.float32, device_map="cpu", quantization_config=four if bits == "4" else None
)
lora = LoraConfig(
    task_type="CAUSAL_LM",
    r=16,
    lora_alpha=32,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    layers_to_transform=[28, 29],
)
rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
trainer = Trainer(
    model=get_peft_model(model, lora),
    args=TrainingArguments(
        output_dir="out",
        per_device_train_batch_size=1,
        num_train_epochs=int(epochs),
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        save_strategy="epoch",
        report_to=[],
    ),
    train_dataset=[{key: row[key] for key in ("input_ids", "labels", "position_ids")} for row in rows],
)
trainer.train()
trainer.save_model()
