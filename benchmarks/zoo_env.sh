#!/bin/sh
# Make .venv-zoo: CPU torch, this repository, and the model zoos at the versions of constraints.txt. Run from the repository root.
# torchvision goes in without its dependencies (its wheel would pull a CUDA torch); benchmarks/torchvision_shim.py makes it importable.
set -eu
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv-zoo}
test -x "$VENV/bin/python" || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip install -q "$@"; }
pip torch -c constraints.txt
pip --no-deps "$(grep '^torchvision==' constraints.txt)"
pip timm transformers diffusers sentencepiece -c constraints.txt
pip -e '.[testing]' pytest -c constraints.txt
