# `make demo` and `make test` need nothing but Python 3.11 or newer: they make their own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check world clean

demo: $(STAMP)
	$(BIN)/sao run demo --out runs/demo

test: $(STAMP)
	$(BIN)/pytest -m "not slow"
	$(BIN)/pytest -m slow

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
	$(BIN)/pip install -q -c constraints.txt -e ".[dev,hub]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build runs
