# TRL's SFTTrainer: python with_trl.py BITS EPOCHS DTYPE

import sys

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

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
trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        output_dir="out",
        per_device_train_batch_size=1,
        num_train_epochs=int(epochs),
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        max_length=512,
        packing=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="epoch",
        report_to=[],
    ),
    train_dataset=load_dataset("json", data_files="train.jsonl", split="train"),
    processing_class=AutoTokenizer.from_pretrained("base"),
    peft_config=LoraConfig(
        task_type="CAUSAL_LM",
        r=16,
        lora_alpha=32,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        layers_to_transform=[28, 29],
    ),
)
trainer.train()
trainer.save_model()
