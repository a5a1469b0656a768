#!/bin/sh
# Build the messages for another Python, and use one: tools/messages_on_python.sh 3.12
# Python 3.12 is ROS 2 Jazzy's own; .venv may have another one.
set -eu
cd "$(dirname "$0")/.."
version=$1
works() { "$1" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "'"$version"'")'; }
for python in "python$version" "$HOME/.pyenv/versions/$version".*/bin/python \
    "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
    if works "$python" >/dev/null 2>&1; then
        exec tools/setup.sh tools.bootstrap --venv "build/python$version" --python "$python" \
            --messages-only
    fi
done
echo "SKIPPED: messages on Python $version: there is no python$version on this machine"
