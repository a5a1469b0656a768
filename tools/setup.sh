#!/bin/sh
# Run a tool with the first Python that can: tools/setup.sh MODULE [ARGUMENTS...]
# What .venv is made of is chosen later, by tools/bootstrap.py; PYTHON names it.
set -eu
cd "$(dirname "$0")/.."
for python in "${PYTHON:-}" python3 python3.11 python3.12 python3.13; do
    if [ -n "$python" ] &&
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' >/dev/null 2>&1; then
        exec "$python" -m "$@"
    fi
done
echo 'No Python 3.9 or newer found; setup wants Python 3.11, 3.12 or 3.13:' >&2
echo '  sudo apt install python3.11 python3.11-venv python3.11-dev' >&2
exit 1
