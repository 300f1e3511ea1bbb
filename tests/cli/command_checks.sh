# command_checks.sh - what the checks of `waybill` share: run a command, look at its exit code, stdout and stderr.
# usage, at the top of a check: . "$(dirname "$0")/../command_checks.sh"; at its end: finish "what is as it should be"
set -uo pipefail
build=$(realpath "$1") source=$(realpath "$2")
waybill=$build/bin/waybill
golden=$source/tests/golden/dump
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
: >"$scratch/out"
: >"$scratch/err"
faults=0

fault() {
    echo "FAULT: $*"
    sed 's/^/    out: /' "$scratch/out" | head -n 20 | cut -c 1-300
    sed 's/^/    err: /' "$scratch/err" | head -n 20 | cut -c 1-300
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
out_lacks() { grep -qF -- "$1" "$scratch/out" && fault "stdout has: $1"; }
err_has() { grep -qF -- "$1" "$scratch/err" || fault "stderr lacks: $1"; }
out_is_empty() { [ ! -s "$scratch/out" ] || fault "stdout is not empty"; }
err_is_empty() { [ ! -s "$scratch/err" ] || fault "stderr is not empty"; }
out_has_lines() {
    local found
    found=$(wc -l <"$scratch/out")
    [ "$found" -eq "$1" ] || fault "stdout: expected $1 lines, found $found"
}

# python CODE ARGUMENT... : Python judges a file, where there is one; its complaint goes to $scratch/err
python() {
    command -v python3 >/dev/null || return 0
    python3 -c "$@" 2>"$scratch/err"
}

# records_of DUMP : its records as JSON lines, rows by position: a prompt that is stored with another record is a run of its
# own, of which the copy need not have one. Without Python only how many there are.
records_of() {
    command -v python3 >/dev/null || { "$waybill" cat "$1" | wc -l; return; }
    "$waybill" cat --json "$1" | python3 -c 'import json, sys
for line in sys.stdin:
    record = json.loads(line)
    record["routes"] = {run["start"] + i: row for run in record["routes"] for i, row in enumerate(run["rows"])}
    print(json.dumps(record))'
}

# What every command does with --help and with options that it does not have.
check_help() {
    local command=$1
    expect 0 "$waybill" "$command" --help
    out_has "usage: waybill $command"
    err_is_empty
    cp "$scratch/out" "$scratch/help"
    expect 0 "$waybill" help "$command"
    cmp -s "$scratch/help" "$scratch/out" || fault "help $command is not $command --help"
    expect 2 "$waybill" "$command" --frobnicate "$golden/good_u8.wbr"
    err_has "no option --frobnicate"
    err_has "usage: waybill $command"
    out_is_empty
    expect 2 "$waybill" "$command" -x "$golden/good_u8.wbr"
    err_has "no option -x"
}

# A command that takes one DUMP: its help, and what it says of wrong command lines, bad dumps and output that is lost; a
# dump may come through a pipe.
check_dump_command() {
    local command=$1
    check_help "$command"
    "$waybill" "$command" "$golden/good_u8.wbr" >"$scratch/wanted" 2>"$scratch/err" || fault "$command"
    for dump in - /dev/stdin; do
        cat "$golden/good_u8.wbr" | "$waybill" "$command" "$dump" >"$scratch/out" 2>"$scratch/err"
        [ "${PIPESTATUS[1]}" -eq 0 ] || fault "$command of a pipe"
        err_is_empty
        [ "$command" = inspect ] || cmp -s "$scratch/wanted" "$scratch/out" || fault "$command of a pipe says something else"
    done
    "$waybill" "$command" - <"$golden/good_u8.wbr" >"$scratch/out" 2>"$scratch/err" || fault "$command of standard input"
    expect 2 "$waybill" "$command"
    err_has "DUMP is needed"
    expect 2 "$waybill" "$command" "$golden/good_u8.wbr" "$golden/good_u8.wbr"
    err_has "one DUMP at a time"
    expect 0 "$waybill" "$command" -- "$golden/good_u8.wbr"
    expect 1 "$waybill" "$command" -- --help
    expect 1 "$waybill" "$command" "$scratch/nothing.wbr"
    err_has "nothing.wbr"
    expect 1 "$waybill" "$command" "$golden/bad_version_2.wbr"
    err_has "version 2"
    expect 1 "$waybill" "$command" "$golden/bad_trailer.wbr"
    [ -w /dev/full ] || return 0
    "$waybill" "$command" "$golden/good_u8.wbr" >/dev/full 2>"$scratch/err"
    [ $? -eq 1 ] || fault "$command to a full disk: expected exit code 1"
    err_has "the output cannot be written"
}

finish() {
    [ $faults -eq 0 ] && echo "$1"
    exit $((faults > 0))
}
