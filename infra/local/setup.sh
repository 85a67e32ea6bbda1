#!/usr/bin/env bash
# Finds a Python that can run this project and hands over to set_up.py, which makes .venv.
# DPOFLOW_PYTHON=/path/to/python names one to use instead of the first that is found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
shopt -s nullglob

fits() { # Runs, not just exists: version managers leave commands behind that start nothing.
  "$1" -I -c 'import sys, sysconfig
sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15)         # what pyproject.toml says
         or sys.implementation.name != "cpython"
         or bool(sysconfig.get_config_var("Py_GIL_DISABLED")))  # few of the wheels are made for it' 2>/dev/null
}

whole() { # Debian ships venv and pip apart from Python.
  "$1" -I -c 'import venv, ensurepip' 2>/dev/null || "$1" -I -c 'import venv, pip' 2>/dev/null
}

go() { exec "$1" -E -s infra/local/set_up.py; }

if [[ -n ${DPOFLOW_PYTHON:-} ]]; then
  if fits "$DPOFLOW_PYTHON"; then go "$DPOFLOW_PYTHON"; fi
  echo "make setup: DPOFLOW_PYTHON=$DPOFLOW_PYTHON is no CPython 3.11 to 3.14; name another, or unset it" >&2
  exit 1
fi

# The Python that made .venv, lest one that was installed since makes it anew. Then 3.11, with which
# the images run and most is tested, and newer ones. Last what pyenv and uv put where PATH does not look.
made=$(sed -n 's/^executable = //p' "${DPOFLOW_ENVIRONMENT:-.venv}/pyvenv.cfg" 2>/dev/null || true)
uv=${UV_PYTHON_INSTALL_DIR:-${XDG_DATA_HOME:-${HOME:-}/.local/share}/uv/python}
candidates=(${made:+"$made"} python3.11 python3.12 python3.13 python3.14 python3 python
  "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.1[1-4].*/bin/python3 "$uv"/cpython-3.1[1-4]*/bin/python3)
half=
for candidate in "${candidates[@]}"; do
  if ! fits "$candidate"; then continue; fi
  if whole "$candidate"; then go "$candidate"; fi
  half=${half:-$candidate}
done
if [[ -n $half ]]; then go "$half"; fi # which says what is missing
echo "make setup: no Python 3.11 to 3.14 here; install one (Debian: apt-get install python3-venv), or name it: DPOFLOW_PYTHON=/path/to/python3.13 make setup" >&2
exit 1
