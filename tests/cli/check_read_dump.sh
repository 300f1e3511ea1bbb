#!/usr/bin/env bash
# Dumps read by msgpack, numpy and zstandard alone say what `waybill cat` says.
# usage: check_read_dump.sh BUILD_DIR SOURCE_DIR
set -euo pipefail
# The first python3 of PATH may be one without the system's packages.
for python in python3 /usr/bin/python3 ''; do
    [ -n "$python" ] || { echo "skip: no python3 with msgpack, numpy and zstandard"; exit 77; }
    "$python" -c 'import msgpack, numpy, zstandard' 2>/dev/null && break
done
golden=$2/tests/golden/dump
"$python" "$2/tests/tools/read_dump.py" "$1/bin/waybill" "$golden"/good_*.wbr "$golden"/versions "$golden"/files

# A file that was cut: what is before the cut.
cut=$(mktemp -d)
trap 'rm -rf "$cut"' EXIT
head -c -40 "$golden/good_no_index.wbr" >"$cut/cut.wbr"
"$python" "$2/tests/tools/read_dump.py" "$1/bin/waybill" "$cut/cut.wbr" 2>/dev/null

# The README shows the same reader.
shown() { sed -n "/^def read(path/,/yield record, rows/p" "$1"; }
[ -n "$(shown "$2/README.md")" ] && diff <(shown "$2/README.md") <(shown "$2/tests/tools/read_dump.py")
