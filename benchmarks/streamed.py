"""Peak memory of fine-tuning the last two layers of a 7B-shape Llama: layers streamed from disk against plain QLoRA.

    python benchmarks/streamed.py [--folder /tmp/llama-7b-shape] [--layers 32] [--width 4096] [--sides plain …]

The model is written first, unless the folder is there: random weights in bfloat16, one file per layer (13.5 GB), and a
tokenizer trained on the shipped finance text. Then each side runs in a process of its own, one after the other:
`finetune finance` with its `lm` task on under a thousand tokens, with `stream=always`, in 4 and in 16 bits; and
Transformers + PEFT (4 bits, NF4, double quantization, `prepare_model_for_kbit_training`, LoRA on the same two layers),
one training step on 512 tokens. Sides that are not measured keep what the result file says of them. Memory is what
counts here; seconds are those of the machine as it was.

Of each side: the most that was resident (VmHWM), and how much of it, at most, was not a file's pages (RssAnon): those
the system may take back, if somebody else needs the room.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 32_000
SETTINGS = (
    'glossary=""', "stream=always", "layers=2", "epochs=1", "context=256", "batch=2", "activations=float16",
    "lm.tokens=512", "lm.test_tokens=64",
)  # fmt: skip
STEP = 512  # tokens of the training step
SAMPLE = 0.05  # seconds between looks at a process's memory


def write(folder: Path, layers: int, width: int) -> None:
    """A Llama of random weights, a layer at a time: its shape is Llama 2 7B's."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    intermediate = width * 11008 // 4096
    draft = folder.with_name(f".{folder.name}")
    draft.mkdir(parents=True)
    LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=width // 128, num_key_value_heads=width // 128, max_position_embeddings=4096,
        architectures=["LlamaForCausalLM"], bos_token_id=1, eos_token_id=2, dtype="bfloat16",
    ).save_pretrained(draft)  # fmt: skip
    tokenizer().save_pretrained(draft)
    torch.manual_seed(0)
    shapes = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (intermediate, width), "mlp.up_proj": (intermediate, width)}
    shapes |= {"mlp.down_proj": (width, intermediate)}
    where, size = {}, 0
    for number in range(layers + 1):
        if number < layers:
            values = {f"model.layers.{number}.{name}.weight": noise(*shape) for name, shape in shapes.items()}
            norms = [f"model.layers.{number}.{name}_layernorm.weight" for name in ("input", "post_attention")]
        else:
            values = {name: noise(VOCABULARY, width) for name in ("model.embed_tokens.weight", "lm_head.weight")}
            norms = ["model.norm.weight"]
        values |= {name: torch.ones(width, dtype=torch.bfloat16) for name in norms}
        file = f"model-{number + 1:05d}-of-{layers + 1:05d}.safetensors"
        save_file(values, draft / file, metadata={"format": "pt"})
        where |= dict.fromkeys(values, file)
        size += sum(value.numel() * value.element_size() for value in values.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (draft / "model.safetensors.index.json").write_text(json.dumps(index))
    draft.rename(folder)


def noise(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=shape[-1] ** -0.5)


def texts(name: str = "fed") -> list[str]:
    from domainkit.assets import ROOT

    lines = (ROOT / f"tasks/finance/data/{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def tokenizer() -> Any:
    """Byte-level BPE, as many tokens as the embedding has rows or the shipped text gives."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    made.train_from_iterator([text for name in ("fed", "cfpb", "statutes-finance") for text in texts(name)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def ours(folder: Path, bits: int) -> dict[str, Any]:
    from safetensors import safe_open

    from domainkit.model.store import VALUES
    from domainkit.recipes import Request, finetune

    with tempfile.TemporaryDirectory() as work:
        os.environ["DOMAINKIT_CACHE"] = f"{work}/cache"
        settings = (*SETTINGS, f"bits={bits}")
        request = Request("finance", str(folder), Path(work) / "run", tasks=("lm",), limit=200, overrides=settings)
        run = finetune(request)
        report = json.loads((run / "reports" / "lm.json").read_text())
        tokens = 0
        for shard in (Path(work) / "cache" / "activations").rglob("*.safetensors"):
            with safe_open(shard, "numpy") as file:
                tokens += file.get_slice(VALUES).get_shape()[0]
        return {"tokens through the trunk": tokens, "summary": report["summary"]}


def plain(folder: Path) -> dict[str, Any]:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                             bnb_4bit_compute_dtype=torch.bfloat16)  # fmt: skip
    model: Any = AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, dtype=torch.bfloat16,
                                                      device_map={"": "cpu"}, local_files_only=True)  # fmt: skip
    model = prepare_model_for_kbit_training(model)
    depth = model.config.num_hidden_layers
    maps = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=maps,
                        layers_to_transform=[depth - 2, depth - 1])  # fmt: skip
    model = get_peft_model(model, config).train()
    ids = AutoTokenizer.from_pretrained(folder)(" ".join(texts()[:20]), return_tensors="pt")["input_ids"][:, :STEP]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    return {"tokens of the step": ids.numel(), "loss": round(float(loss.detach()), 4)}


def measured(side: str, folder: Path) -> dict[str, Any]:
    """Run one side in a process of its own, and look at its memory all the while."""
    began, load = time.perf_counter(), os.getloadavg()[0]
    most = dict.fromkeys(("VmHWM", "RssAnon", "RssFile"), 0)
    with tempfile.TemporaryFile("w+") as out:
        line = [sys.executable, __file__, "--folder", str(folder), "--side", side]
        process = subprocess.Popen(line, stdout=out)
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                break
            for row in status.splitlines():
                name, _, value = row.partition(":")
                if name in most:
                    most[name] = max(most[name], int(value.split()[0]))
            time.sleep(SAMPLE)
        if process.wait():
            raise SystemExit(f"{side} ended with {process.returncode}")
        out.seek(0)
        told = json.loads(out.read().splitlines()[-1])
    sizes = {name: round(size * 1024 / 1e9, 2) for name, size in most.items()}
    return {
        "peak resident, GB": sizes["VmHWM"],
        "of it not a file's pages, at most, GB": sizes["RssAnon"],
        "a file's pages, at most, GB": sizes["RssFile"],
        "seconds": round(time.perf_counter() - began),
        "load": [load, os.getloadavg()[0]],
        **told,
    }


SIDES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "streamed-16": partial(ours, bits=16), "streamed-4": partial(ours, bits=4), "plain": plain,
}  # fmt: skip
PEAKS = ("peak resident, GB", "of it not a file's pages, at most, GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "llama-7b-shape")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--sides", choices=SIDES, nargs="+", default=list(SIDES))
    parser.add_argument("--side", choices=SIDES, help="measure it in this process, and print what it tells")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(SIDES[args.side](args.folder)))
        return
    from machine import read_results, write_results

    if not args.folder.is_dir():
        write(args.folder, args.layers, args.width)
    size = sum(file.stat().st_size for file in args.folder.glob("*.safetensors"))
    before = read_results("streamed")
    results: dict[str, Any] = before["results"] if before else {}
    own = results.setdefault(f"{args.layers} layers of width {args.width}", {"GB on disk": round(size / 1e9, 2)})
    for side in args.sides:
        own[side] = measured(side, args.folder)
        if "plain" in own:
            own["plain over streamed"] = {
                name: {key: round(own["plain"][key] / own[name][key], 2) for key in PEAKS}
                for name in SIDES if name in own and name != "plain"
            }  # fmt: skip
        path = write_results("streamed", results, settings=SETTINGS, vocabulary=VOCABULARY)
        print(side, json.dumps(own, indent=1, ensure_ascii=False), path, flush=True)


if __name__ == "__main__":
    main()
