# LLaMA-Factory: sh with_llamafactory.sh [KEY=VALUE …]
python -c '
from datasets import Dataset, DatasetDict
DatasetDict(train=Dataset.from_json("train.jsonl")).save_to_disk("tokenized")
'
llamafactory-cli train with_llamafactory.yaml "$@"
