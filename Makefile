# Every target sets up what it needs: `make demo` and `make test` work on a machine with only Python and make, without root.
#
#   make test PYTHON=python3.12 VENV=.venv-3.12                         another Python (3.10, 3.11 or 3.12)
#   make test TORCH_INDEX=URL                                           torch from another index, such as one of CPU builds
#   make test PYTEST='-n 0 -x tests/test_wheel.py'                      other arguments for pytest
PYTHON      ?= python3
VENV        ?= .venv
ZOO         ?= .venv-zoo
PEERS       ?= .venv-peers
PYTEST      ?= -n 2
TORCH_INDEX ?=
PIP         := python -m pip --disable-pip-version-check install -q -c constraints.txt
comma       := ,

# Set up again what would not run: an environment whose Python is gone, or one that was copied or moved with its checkout (the
# stamp names the folder it was made in).
$(foreach venv,$(VENV) $(ZOO) $(PEERS),$(shell test -x $(venv)/bin/python || rm -rf $(venv)/bin $(venv)/.ready))
$(foreach venv,$(VENV) $(ZOO) $(PEERS),$(if $(filter-out $(CURDIR),$(shell cat $(venv)/.ready 2>/dev/null)),$(shell rm -f $(venv)/.ready)))

.PHONY: help demo test lint zoo bench fuzz fuzz-files fuzz-kill fuzz-environment docs wheel clean distclean

help:
	@echo 'make demo       analyze a real network from end to end and write an HTML report'
	@echo 'make test       the tests'
	@echo 'make lint       ruff, pyright and the import contracts'
	@echo 'make bench      every published figure, into docs/results.md (installs the model zoo and the peers)'
	@echo 'make zoo        the environment with the model zoo that benchmarks use'
	@echo 'make fuzz       100,000 random graphs against brute force'
	@echo 'make fuzz-files 100,000 damaged files through the commands that read them'
	@echo 'make fuzz-kill  commands killed at 50 random moments, and ten started for the first time at once'
	@echo 'make fuzz-environment  faults of disks, folders, streams, limits and users, in the middle of every command'
	@echo 'make docs       the reference pages, and a check of every link'
	@echo 'make wheel      a wheel and an sdist, into dist/'
	@echo 'make clean      remove what was built; make distclean removes the environments too'

demo: $(VENV)/.ready
	$(VENV)/bin/python examples/demo.py

test: $(VENV)/.ready
	$(VENV)/bin/python -m pytest $(PYTEST)

lint: $(VENV)/.ready
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m pyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/python -c 'import sys; from importlinter.cli import lint_imports_command as lint; sys.exit(lint())'

zoo: $(ZOO)/.ready

bench: $(ZOO)/.ready $(PEERS)/.ready
	$(ZOO)/bin/python -m benchmarks.run

fuzz: $(VENV)/.ready
	$(VENV)/bin/python -m benchmarks.fuzz

fuzz-files: $(VENV)/.ready
	$(VENV)/bin/python -m benchmarks.fuzz_files

fuzz-kill: $(VENV)/.ready
	$(VENV)/bin/python -m benchmarks.kill

fuzz-environment: $(VENV)/.ready
	$(VENV)/bin/python -m benchmarks.environment_faults

docs: $(VENV)/.ready
	$(VENV)/bin/python docs/build.py

wheel: $(VENV)/.ready
	$(VENV)/bin/python -m build --no-isolation

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(ZOO) $(PEERS)

# torch comes first and alone: with a CPU build in place, the ranges of the other packages install nothing more.
# The link lets pyright find the package by its name: the root folder is the package, whatever it is called.
define install
	$(1)/bin/$(PIP) pip setuptools wheel
	$(1)/bin/$(PIP) --no-deps $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch $(3)
	PYTHONWARNINGS=ignore $(1)/bin/$(PIP) --no-build-isolation -e '.[$(2)]'
	mkdir -p .venv/src && ln -sfn ../.. .venv/src/neaptide
	echo '$(CURDIR)' > $(1)/.ready
endef

$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(call install,$(VENV),dev$(comma)mcu$(comma)search)

$(ZOO)/.ready: pyproject.toml constraints.txt | $(ZOO)/bin/pip
	$(call install,$(ZOO),dev$(comma)zoo$(comma)mcu$(comma)search,torchvision)

# Peers live apart: they pin old packages and patch torch when imported.
$(PEERS)/.ready: constraints.txt | $(PEERS)/bin/pip
	$(PEERS)/bin/$(PIP) torch
	$(PEERS)/bin/$(PIP) numpy setuptools transformers torchinfo fvcore deepspeed calflops ptflops thop
	echo '$(CURDIR)' > $@

# Debian splits ensurepip off into python3-venv, which needs root to install; a pip beside that Python does as well.
%/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null || { \
	  echo "Neaptide needs Python 3.10, 3.11 or 3.12; '$(PYTHON)' is $$(command -v $(PYTHON) >/dev/null && $(PYTHON) --version 2>&1 || echo missing)." \
	       "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $*; \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	  $(PYTHON) -m venv --without-pip $* && $(PYTHON) -m pip --python $*/bin/python install -q pip; \
	else echo "'$(PYTHON)' can make no environment with pip in it: install python3-venv (Debian, Ubuntu: sudo apt install" \
	  "python3-venv), or name another Python: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; fi
