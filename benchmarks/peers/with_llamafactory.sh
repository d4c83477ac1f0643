# LLaMA-Factory: sh with_llamafactory.sh [KEY=VALUE …]
python -c '
from datasets import Dataset, DatasetDict
rows = Dataset.from_json("rows.jsonl").rename_column("segments", "attention_mask")
DatasetDict(train=rows.select_columns(["input_ids", "labels", "attention_mask"])).save_to_disk("tokenized")
'
llamafactory-cli train with_llamafactory.yaml "$@"
