# make setup | check | test | test-slow | test-gpu | bench. PYTHON=python3.12 picks another interpreter.
PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.dev-installed

.PHONY: setup check test test-slow test-gpu bench

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("domainkit needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --editable '.[dev]'
	touch $@

check: setup
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	$(PY) -m pytest tests/test_layers.py

test: check
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

test-slow: setup
	$(PY) -m pytest -m slow || test $$? -eq 5  # 5: there are none

test-gpu: setup
	TRITON_INTERPRET=0 $(PY) -m pytest -m gpu || test $$? -eq 5

bench: setup
	$(PY) benchmarks/startup.py
	$(PY) benchmarks/training_speed.py --tokens 12000 --examples 300 --dtypes float32
	$(PY) benchmarks/tokenizer.py
	$(PY) benchmarks/glossary_map.py
	$(PY) benchmarks/glossary.py
	$(PY) benchmarks/terms.py
	$(PY) benchmarks/adaptation.py default
	$(PY) benchmarks/adaptation.py long
	$(PY) benchmarks/linking.py
	$(PY) benchmarks/medical.py default
	$(PY) benchmarks/lsh_time.py group
	$(PY) benchmarks/lsh_time.py layer
	$(PY) benchmarks/lsh_time.py base
	$(PY) benchmarks/lsh_attention.py perplexity --lengths 8192 16384 32768
	$(PY) benchmarks/lsh_attention.py copy --lengths 4096 8192 16384 32768 65536
	$(PY) benchmarks/lsh_attention.py four-bit
	$(PY) benchmarks/long_documents.py scores
	$(PY) benchmarks/long_documents.py memory
	$(PY) benchmarks/lsh_recall.py
	$(PY) benchmarks/streamed.py  # writes 13.5 GB into the temporary folder
	$(PY) benchmarks/kills.py
	$(PY) benchmarks/reuse.py
	$(PY) benchmarks/activations.py
	$(PY) benchmarks/plan.py
	$(PY) benchmarks/precision.py
	$(PY) benchmarks/quantization.py splits
	$(PY) benchmarks/quantization.py text
	$(PY) benchmarks/quantization.py speed
	$(PY) benchmarks/quantization.py shape
