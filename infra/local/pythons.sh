#!/usr/bin/env bash
# The whole pipeline in small, and parity with TRL, on every supported Python that this machine has: an
# environment for each in build/pythons (minutes, and 4 GB each; 8 GB where torch comes with CUDA).
# With arguments on those alone: pythons.sh 3.12 3.13. Fails where one fails, and where there is none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
shopt -s nullglob
tests=(tests/e2e/test_align.py::test_every_task_ran_and_the_summary_says_so tests/parity)
uv=${UV_PYTHON_INSTALL_DIR:-${XDG_DATA_HOME:-${HOME:-}/.local/share}/uv/python}

find_python() { # python3.13 that is a Python 3.13, on PATH or where pyenv and uv put it
  local candidate
  for candidate in "python$1" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$1".*/bin/python3 "$uv/cpython-$1".*/bin/python3; do
    if "$candidate" -I -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

versions=("$@")
if ((${#versions[@]} == 0)); then versions=(3.11 3.12 3.13 3.14); fi
told=()
failed=0
for version in "${versions[@]}"; do
  python=$(find_python "$version")
  environment=build/pythons/$version
  if [[ -z $python ]]; then
    told+=("$version  not on this machine")
  elif DPOFLOW_PYTHON=$python DPOFLOW_ENVIRONMENT=$environment bash infra/local/setup.sh &&
    "$environment/bin/python" -m pytest -q -m "not full" "${tests[@]}"; then
    told+=("$version  passed, with $("$environment/bin/python" --version)")
  else
    told+=("$version  FAILED")
    failed=1
  fi
done
printf '%s\n' "${told[@]}"
[[ $failed == 0 && "${told[*]}" == *passed* ]]
