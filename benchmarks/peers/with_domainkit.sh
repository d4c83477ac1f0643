# domainkit: sh with_domainkit.sh [--set KEY=VALUE …]; LoRA of rank 16 on the last two layers is what it does unasked
domainkit finetune finance --task lm --no-glossary "$@"
