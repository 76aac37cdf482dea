# Every target sets up what it needs: `make demo` and `make test` work on a machine with only Python and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test lint bench fuzz docs clean

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY)
	$(BIN)/python -m pytest -n 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

fuzz: $(READY)
	$(BIN)/python -m benchmarks.fuzz

docs: $(READY)
	$(BIN)/python docs/build.py

# torch first: with it in place the ranges of the other packages install nothing more.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install -q torch -c constraints.txt
	$(BIN)/python -m pip install -q -e '.[dev]' -c constraints.txt
	mkdir -p $(VENV)/src && ln -sfn ../.. $(VENV)/src/neaptide
	touch $@
