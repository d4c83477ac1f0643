"""The base model, its trunk and top, and the adapter bundle."""

import logging

# On CPUs with AVX512-BF16 importing bitsandbytes (peft does) warns of a kernel that domainkit does not want.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
