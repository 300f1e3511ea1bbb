#!/usr/bin/env bash
# Dumps read by msgpack and numpy alone (the lines of the README) say what `waybill cat` says.
# usage: check_read_dump.sh BUILD_DIR SOURCE_DIR
set -euo pipefail
# The first python3 of PATH may be one without the system's packages.
for python in python3 /usr/bin/python3 ''; do
    [ -n "$python" ] || { echo "skip: no python3 with msgpack and numpy"; exit 77; }
    "$python" -c 'import msgpack, numpy' 2>/dev/null && break
done
golden=$2/tests/golden/dump
"$python" "$2/tests/tools/read_dump.py" "$1/bin/waybill" "$golden"/good_{u8,u8_valid,u16,no_index,sampling}.wbr

# The README's own lines, on a golden file.
lines=$(sed -n '/^```python$/,/^```$/p' "$2/README.md" | sed '1d;$d' | sed "s|dump.wbr|$golden/good_u8.wbr|")
printed=$("$python" -c "$lines" | grep -c "\[\[\[")
[ "$printed" -gt 0 ] || { echo "FAILED: the README's lines print no routes"; exit 1; }
