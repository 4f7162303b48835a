#!/bin/sh
# The tests of bindings/python: installs the package into a fresh environment and tests what was installed.
# Usage: tests/python/run.sh [pytest arguments]. $PYTHON picks the interpreter (3.9 or newer).
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
venv=$root/target/venv
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check numpy pytest
unset DUALPIPE_LIBRARY PYTHONPATH
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps "$root/bindings/python"
mkdir -p "$root/target/tmp"
cd "$root/target/tmp"
PYTHONDONTWRITEBYTECODE=1 exec "$venv/bin/python" -m pytest -q -p no:cacheprovider "$root/tests/python" "$@"
