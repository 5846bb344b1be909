#!/bin/sh
# Makes target/NAME, a virtual environment of Python with what loadtest/NAME/requirements.txt lists, unless it is there: `venv.sh clients`.
set -eu

wanted=loadtest/$1/requirements.txt
made=target/$1
! cmp -s "$wanted" "$made/requirements.txt" || exit 0
echo "missing: $(tr '\n' ' ' <"$wanted"). Installing from PyPI into $made"
python3 -m venv --clear "$made"
"$made/bin/python" -m pip install --quiet --requirement "$wanted"
cp "$wanted" "$made/"
