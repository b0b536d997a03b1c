#!/usr/bin/env bash
# Makes the environment of `make test-sglang`, a CPU server of SGLang: sglang.sh VENV (3 GB, some minutes).
# SGLang requires CUDA packages that a CPU server does not use and cannot load; so its packages are named one by one, and
# nothing is installed for being required.
set -euo pipefail
venv=$1 here=$(dirname "$0")
python=${PYTHON:-python3}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || { echo "could not make a virtual environment: install python3-venv" >&2; exit 2; }
echo "Installing SGLang into $venv (once; some minutes) ..."
"$venv/bin/python" -m pip install --disable-pip-version-check --no-compile --no-deps -r "$here/sglang-requirements.txt"
"$venv/bin/python" -c 'import importlib.metadata as m; print("sglang", m.version("sglang"), "torch", m.version("torch"))'
touch "$venv/.installed"
