# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: setup demo test check site bench test-gpu bench-gpu

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python " + sys.version.split()[0] + " found, 3.11 or newer needed: make setup PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/glassbox demo $(ARGS)

test: setup
	$(MAKE) check

check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -m 'not gpu and not compile'
	GLASSBOX_SHAPE_CHECKS=0 $(BIN)/python -m pytest -m 'compile and not gpu'

# build/site/html/README.html; `make site ARGS="--runs runs"` adds the page of experiments
site: setup
	$(BIN)/python docs/site/build.py $(ARGS)

bench: setup
	$(BIN)/python -m benchmarks.step --write
	$(BIN)/python -m benchmarks.step --curve --write
	$(BIN)/python -m benchmarks.harvest --write
	$(BIN)/python -m benchmarks.index --write
	$(BIN)/python -m benchmarks.index_events --write
	$(BIN)/python -m benchmarks.many --write
	$(BIN)/python docs/performance.py

# the two below run where they stand, with the machine's own torch and triton
test-gpu:
	GLASSBOX_SHAPE_CHECKS=0 TRITON_INTERPRET=0 $(PYTHON) -m pytest -q -m 'gpu or not gpu' tests/sae/kernels --deselect tests/sae/kernels/test_compiling.py

bench-gpu:
	$(PYTHON) -m benchmarks.step_gpu --write
	$(PYTHON) docs/performance.py
