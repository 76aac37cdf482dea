#!/bin/sh
# Make .venv-peers: CPU torch and the FLOP counters that benchmarks/flops.py sets beside Neaptide. Run from the repository root.
# They live apart from .venv because they pin old packages and patch torch when imported.
set -eu
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv-peers}
test -x "$VENV/bin/python" || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip install -q "$@"; }
pip torch -c constraints.txt
pip numpy setuptools fvcore==0.1.5.post20221221 ptflops==0.7.5 calflops==0.3.2 transformers \
    thop==0.1.1.post2209072238 deepspeed==0.19.8 torchinfo==1.8.0 -c constraints.txt
