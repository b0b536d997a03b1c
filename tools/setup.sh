#!/usr/bin/env bash
# Makes the virtual environment: setup.sh VENV EXTRA[-dev]. make calls it; a second call is harmless.
set -euo pipefail
venv=$1 extras=${2//-/,}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; found $("$python" --version). Set PYTHON=." >&2; exit 2; }
if [ ! -x "$venv/bin/python" ]; then
  "$python" -m venv "$venv" || { echo "could not make a virtual environment: install python3-venv" >&2; exit 2; }
fi
echo "Installing tau2-lightning[$extras] into $venv (once; some minutes) ..."
# One command, so that the resolver chooses one torch for everything. Bytecode is compiled at the first import instead.
"$venv/bin/python" -m pip install --disable-pip-version-check --no-compile -e ".[$extras]"
case ",$extras," in *,cpu,*)
  # The CPU engine requires these packages, but their wheels on PyPI are CUDA builds that do not import beside CPU torch.
  # With them, lightning, torchmetrics and transformers fail to import too. Nothing here uses images or sound.
  "$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec ;;
esac
touch "$venv/.installed-${2}"
# The -dev set-up contains the smaller one.
case "$2" in *-dev) touch "$venv/.installed-${2%-dev}" ;; esac
