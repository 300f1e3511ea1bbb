#!/usr/bin/env bash
# Dumps read by msgpack and numpy alone (the lines of the README) say what `waybill cat` says.
# usage: check_read_dump.sh BUILD_DIR SOURCE_DIR
set -euo pipefail
if ! command -v python3 >/dev/null; then
    echo "skipped: no python3"
    exit 77
fi
golden=$2/tests/golden/dump
exec python3 "$2/tests/read_dump.py" "$1/bin/waybill" "$golden"/good_{u8,u8_valid,u16,no_index}.wbr
