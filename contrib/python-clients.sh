#!/bin/sh
# Makes a virtual environment with the Python clients that the tests drive, at the directory given. Does nothing when it
# is there already. Needs python3-venv and PyPI.
set -eu

directory="$1"
# The official client of Kubernetes.
requirements="kubernetes==37.0.2"

[ -e "$directory/complete" ] && exit 0
# Tests of one run may ask at the same time; one makes it, the others wait.
mkdir -p "$(dirname "$directory")"
exec 9>"$directory.lock"
flock 9
[ -e "$directory/complete" ] && exit 0
rm -rf "$directory"
python3 -m venv "$directory"
# shellcheck disable=SC2086
"$directory/bin/pip" install --quiet --disable-pip-version-check $requirements
touch "$directory/complete"
