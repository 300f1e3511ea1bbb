# command_checks.sh - what the checks of `waybill` share: run a command, look at its exit code, stdout and stderr.
# usage, at the top of a check: . "$(dirname "$0")/../command_checks.sh"; at its end: finish "what is as it should be"
set -uo pipefail
build=$1 source=$2
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

# A command that takes one DUMP: its help, and what it says of wrong command lines, bad dumps and output that is lost.
check_dump_command() {
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
    expect 2 "$waybill" "$command"
    err_has "a DUMP is needed"
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
