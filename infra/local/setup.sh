#!/usr/bin/env bash
# Finds a Python that can run this project and hands over to set_up.py, which makes .venv.
# DPOFLOW_PYTHON=/path/to/python names one to use instead of the first that is found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fits() { # Runs, not just exists: version managers leave commands behind that start nothing.
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null
}

for candidate in ${DPOFLOW_PYTHON:+"$DPOFLOW_PYTHON"} python3.11 python3.12 python3 python; do
  if fits "$candidate"; then
    exec "$candidate" -I infra/local/set_up.py
  fi
  if [[ -n ${DPOFLOW_PYTHON:-} ]]; then
    echo "make setup: DPOFLOW_PYTHON=$DPOFLOW_PYTHON is no Python 3.11 or 3.12; name another, or unset it" >&2
    exit 1
  fi
done
echo "make setup: no Python 3.11 or 3.12 here; install one (Debian: apt-get install python3.11-venv), or name it: DPOFLOW_PYTHON=/path/to/python3.11 make setup" >&2
exit 1
