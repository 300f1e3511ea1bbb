#!/usr/bin/env bash
# Dumps read by msgpack and numpy alone (the lines of the README) say what `waybill cat` says.
# usage: check_read_dump.sh BUILD_DIR SOURCE_DIR
set -euo pipefail
if ! command -v python3 >/dev/null; then
    echo "skipped: no python3"
    exit 77
fi
golden=$2/tests/golden/dump
python3 "$2/tests/tools/read_dump.py" "$1/bin/waybill" "$golden"/good_{u8,u8_valid,u16,no_index}.wbr

# The README's own lines, on a golden file.
lines=$(sed -n '/^```python$/,/^```$/p' "$2/README.md" | sed '1d;$d' | sed "s|dump.wbr|$golden/good_u8.wbr|")
printed=$(python3 -c "$lines" | grep -c "\[\[\[")
[ "$printed" -gt 0 ] || { echo "FAILED: the README's lines print no routes"; exit 1; }
