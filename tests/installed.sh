#!/bin/sh
# Runs tests against an installed ksmpy: PACKAGE (a wheel or a source archive) goes into a new environment of PYTHON,
# and the tests run from a copy that has no ksmpy of its own. usage: tests/installed.sh PYTHON PACKAGE [pytest arguments]
set -eu
python=$1
package=$2
shift 2

place=$(mktemp -d)
chmod 755 "$place" # some tests become an ordinary user, who imports from there
trap 'rm -rf "$place"' EXIT INT TERM
"$python" -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$package[test]"
git ls-files -z --cached --others --exclude-standard tests csrc bench pyproject.toml |
    tar -c --null -T - | tar -x -C "$place"
cd "$place"
"$place/venv/bin/python" -c 'import sys, ksmpy; print(ksmpy.__file__, sys.version)'
"$place/venv/bin/python" -m pytest --short "$@"
