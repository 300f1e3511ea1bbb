#!/usr/bin/env bash
# Every program that is built beside the two commands knows --help, and takes no option that it does not have for the name of
# a file. (waybill, waybill-grpo: check_commands.sh, check_grpo_usage.sh.) usage: check_help.sh BUILD_DIR SOURCE_DIR
set -uo pipefail
build=$(realpath "$1") source=$(realpath "$2")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/here" && cd "$scratch/here" || exit 1
export OMPI_MCA_ess_singleton_isolated=1 OMPI_MCA_orte_tmpdir_base=$scratch
faults=0 programs=0
fault() {
    echo "FAULT: $*"
    sed 's/^/    out: /' "$scratch/out" | head -n 5
    sed 's/^/    err: /' "$scratch/err" | head -n 5
    faults=$((faults + 1))
}

# expect CODE COMMAND... : in a folder that stays empty
expect() {
    local code=$1 found
    shift
    timeout 60 "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
    found=$?
    [ $found -eq "$code" ] || fault "$*: expected exit code $code, found $found"
    [ -z "$(ls -A)" ] || { fault "$*: a file was written: $(ls -A)"; rm -rf ./*; }
}

for program in "$build"/bin/example_* "$build"/tests/bench_* "$build"/tests/*_oracle "$build"/tests/{schedules,soak} \
    "$source"/tests/{run,sanitize,fuzz}.sh "$source"/tests/bench/compare_model.sh "$source"/install-deps.sh \
    "$source"/examples/quickstart.sh; do
    [ -x "$program" ] || continue
    programs=$((programs + 1))
    expect 0 "$program" --help
    grep -q "usage: .*${program##*/}" "$scratch/out" || fault "$program --help: no line of usage"
    [ "${program##*/}" = run.sh ] || expect 2 "$program" --frobnicate # whose other arguments are ctest's
done
# Numbers that are none must not become 0, for which a soak ends at once.
for words in "--seconds x" "--seconds -1" "--seconds" "--seed 1x"; do
    expect 2 "$build/tests/soak" $words
done
[ $programs -ge 15 ] || fault "expected at least 15 programs, found $programs"
[ $faults -eq 0 ] && echo "$programs programs know --help"
exit $((faults > 0))
