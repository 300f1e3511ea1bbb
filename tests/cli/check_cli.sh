#!/usr/bin/env bash
# Every subcommand of `waybill` on golden dumps, good, bad and cut: output, exit code, stdout against stderr.
# usage: check_cli.sh BUILD_DIR SOURCE_DIR
set -uo pipefail
waybill=$1/bin/waybill
golden=$2/tests/golden/dump
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
faults=0

fault() {
    echo "FAULT: $*"
    sed 's/^/    out: /' "$scratch/out"
    sed 's/^/    err: /' "$scratch/err"
    faults=$((faults + 1))
}

# expect CODE COMMAND... : runs it, output to $scratch/out and err
expect() {
    local code=$1
    shift
    "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
    local found=$?
    [ "$found" -eq "$code" ] || fault "$*: expected exit code $code, found $found"
}
out_has() { grep -qF -- "$1" "$scratch/out" || fault "stdout lacks: $1"; }
err_has() { grep -qF -- "$1" "$scratch/err" || fault "stderr lacks: $1"; }
out_is_empty() { [ ! -s "$scratch/out" ] || fault "stdout is not empty"; }
err_is_empty() { [ ! -s "$scratch/err" ] || fault "stderr is not empty"; }

# ---- the command line
expect 2 "$waybill"
out_is_empty
err_has "usage:"
expect 2 "$waybill" frobnicate
err_has "no command frobnicate"
expect 0 "$waybill" --version
out_has "waybill "
expect 0 "$waybill" --help
out_has "inspect"
for command in inspect verify cat stats; do
    expect 0 "$waybill" $command --help
    out_has "usage: waybill $command"
    err_is_empty
    expect 2 "$waybill" $command --frobnicate "$golden/good_u8.wbr"
    err_has "usage: waybill $command"
    out_is_empty
    expect 2 "$waybill" $command
    err_has "a DUMP is needed"
    expect 2 "$waybill" $command "$golden/good_u8.wbr" "$golden/good_u8.wbr"
    expect 1 "$waybill" $command "$scratch/nothing.wbr"
    err_has "nothing.wbr"
    expect 1 "$waybill" $command "$golden/bad_version_2.wbr"
    err_has "version 2"
    expect 1 "$waybill" $command "$golden/bad_trailer.wbr"
done
expect 2 "$waybill" cat --limit many "$golden/good_u8.wbr"
expect 2 "$waybill" cat --limit
expect 2 "$waybill" cat --tokens=yes "$golden/good_u8.wbr"

# ---- verify: the exit code is the verdict
for file in "$golden"/good_*.wbr; do
    expect 0 "$waybill" verify "$file"
    out_has "OK: 3 records"
    err_is_empty
done
for file in "$golden"/bad_*.wbr; do
    expect 1 "$waybill" verify "$file"
    out_has "FAILED"
done
size=$(stat -c %s "$golden/good_no_index.wbr")
head -c $((size - 1)) "$golden/good_no_index.wbr" >"$scratch/cut.wbr"
expect 1 "$waybill" verify "$scratch/cut.wbr"
out_has "CUT"
out_has "The 2 records before are whole"
expect 0 "$waybill" inspect "$scratch/cut.wbr"
out_has "lost  "
expect 0 "$waybill" cat "$scratch/cut.wbr"
[ "$(wc -l <"$scratch/out")" -eq 2 ] || fault "cat of a cut dump: expected 2 records"
err_has "cut"
mkdir "$scratch/directory"
cp "$golden/good_u8.wbr" "$scratch/directory/part-0.wbr"
expect 0 "$waybill" verify "$scratch/directory"
cp "$golden/good_u8.wbr" "$scratch/directory/part-1.wbr"
expect 1 "$waybill" verify "$scratch/directory"
err_has "part-0.wbr"
err_has "part-1.wbr"
cp "$golden/good_u16.wbr" "$scratch/directory/part-1.wbr"
expect 1 "$waybill" verify "$scratch/directory"
err_has "num_experts: expected 8, found 300"

# ---- inspect
expect 0 "$waybill" inspect "$golden/good_u16.wbr"
out_has "2 chosen of 300, u16: 8 bytes a row"
out_has "test_moe"
out_has "every file has its index"
expect 0 "$waybill" inspect "$golden/good_no_index.wbr"
out_has "1 of 1 files have no whole index"
expect 0 "$waybill" inspect "$golden/good_zstd.wbr"
out_has "zstd in 3"
expect 0 "$waybill" inspect --rid golden-1 "$golden/good_u8.wbr"
out_has "rows of record golden-0"
expect 1 "$waybill" inspect --rid golden-9 "$golden/good_u8.wbr"
err_has "golden-9"

# ---- cat
expect 0 "$waybill" cat "$golden/good_u8.wbr"
[ "$(wc -l <"$scratch/out")" -eq 3 ] || fault "cat: expected 3 lines"
out_has '{"rid":"golden-0","group":1,'
expect 0 "$waybill" cat --limit 1 "$golden/good_u8.wbr"
[ "$(wc -l <"$scratch/out")" -eq 1 ] || fault "cat --limit 1: expected 1 line"
expect 0 "$waybill" cat --rid=golden-2 --tokens --routes "$golden/good_u8_valid.wbr"
out_has '"routes":[{"start":2,"rows":[['
out_has 'null'
expect 1 "$waybill" cat --rid golden-9 "$golden/good_u8.wbr"
out_is_empty

# ---- stats: good_u8 has 32 rows of 2 slots a layer
expect 0 "$waybill" stats "$golden/good_u8.wbr"
out_has "records 3, tokens 39, valid rows 32"
expect 0 "$waybill" stats --json "$golden/good_u8.wbr"
out_has '"choices":64'

# ---- valid JSON, where there is a judge of it
if command -v python3 >/dev/null; then
    for file in "$golden"/good_*.wbr; do
        "$waybill" cat --tokens --routes "$file" | python3 -c '
import json, sys
for line in sys.stdin: json.loads(line)' || fault "cat $file: not JSON lines"
        "$waybill" stats --json "$file" | python3 -c '
import json, sys
s = json.load(sys.stdin)
for layer in s["layers"]: assert sum(layer["counts"]) == layer["choices"], layer
assert s["valid_rows"] > 0' || fault "stats --json $file"
    done
fi

# ---- output that cannot be written
if [ -w /dev/full ]; then
    for command in inspect verify cat stats; do
        "$waybill" $command "$golden/good_u8.wbr" >/dev/full 2>"$scratch/err"
        [ $? -eq 1 ] || fault "$command to a full disk: expected exit code 1"
    done
fi
"$waybill" cat "$golden/good_u8.wbr" 2>"$scratch/err" | true
[ "${PIPESTATUS[0]}" -le 1 ] || fault "cat to a closed pipe: expected 0 or 1"

[ $faults -eq 0 ] && echo "the command line is as it should be"
exit $((faults > 0))
