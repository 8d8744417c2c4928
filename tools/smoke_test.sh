#!/usr/bin/env bash
# Test the distributions in a separate environment: smoke_test.sh DIST_FOLDER
#
# First the wheel alone, then the source distribution without a compiler, then with one. One environment, with one
# installation of torch, serves all three. CONSTRAINTS=FILE is passed to pip; PYTHON=PATH selects the Python.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
wheel=$(realpath "$1"/*.whl)
sdist=$(realpath "$1"/*.tar.gz)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
python=$(echo "$place"/venv/*/python) # bin, or Scripts on Windows
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=2
if [ -n "${CONSTRAINTS:-}" ]; then
    PIP_CONSTRAINT=$(realpath "$CONSTRAINTS")
    export PIP_CONSTRAINT
fi
cd "$place"

try() {
    "$python" -W error -W "ignore:Failed to initialize NumPy" "$here/smoke_test.py" "$@"
}

echo "The wheel"
"$python" -m pip install "$wheel"
try cpu reference
"$python" -m sia_layers info

echo "The source distribution, without a compiler"
CC=no-compiler-at-all "$python" -m pip install --force-reinstall --no-deps --no-cache-dir "$sdist"
try reference

echo "The source distribution, with a compiler"
"$python" -m pip install --force-reinstall --no-deps --no-cache-dir "$sdist"
try cpu reference
