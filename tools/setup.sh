#!/usr/bin/env bash
# Make the virtual environment: setup.sh VENV EXTRA[-dev]. Called by make; safe to call again.
set -euo pipefail
venv=$1 extras=${2//-/,}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; found $("$python" --version). Set PYTHON=." >&2; exit 2; }
if [ ! -x "$venv/bin/python" ]; then
  "$python" -m venv "$venv" || { echo "could not make a virtual environment: install python3-venv" >&2; exit 2; }
fi
echo "Installing tau2-lightning[$extras] into $venv (once; some minutes) ..."
# One command, so that the resolver agrees on torch for everything. Bytecode is compiled when first imported instead.
"$venv/bin/python" -m pip install --disable-pip-version-check --no-compile -e ".[$extras]"
case ",$extras," in *,cpu,*)
  # The CPU engine asks for these; the wheels on PyPI are CUDA builds that do not import beside CPU torch, and with them
  # installed lightning, torchmetrics and transformers do not import either. Nothing here uses images or sound.
  "$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec ;;
esac
touch "$venv/.installed-${2}"
# What the larger set-up holds, the smaller one need not install again.
case "$2" in *-dev) touch "$venv/.installed-${2%-dev}" ;; esac
