#!/usr/bin/env bash
# waybill-grpo's command line: --help, and for every option that it lists what is not a value of it. (`waybill`: check_commands.sh.)
# usage: check_grpo_usage.sh BUILD_DIR SOURCE_DIR
set -uo pipefail
grpo=$1/bin/waybill-grpo
[ -x "$grpo" ] || { echo "skip: built without MPI"; exit 77; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# One process that looks for no mpirun. Its session folder is its own: in /tmp all such processes share one, and the first to
# end takes it away from the one that is just starting.
export OMPI_MCA_ess_singleton_isolated=1 OMPI_MCA_orte_tmpdir_base=$scratch OMP_NUM_THREADS=1
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
err_has() { grep -qF -- "$1" "$scratch/err" || fault "stderr lacks: $1"; }
out_is_empty() { [ ! -s "$scratch/out" ] || fault "stdout is not empty"; }

# refused NAME ARGUMENT... : a wrong command line; one line on stderr names the option
refused() {
    local name=$1
    shift
    expect 2 "$grpo" --model "$scratch/none" --out "$scratch/out_dir" "$@"
    err_has "waybill-grpo: "
    err_has "$name"
    out_is_empty
    [ "$(grep -c "^waybill-grpo: " "$scratch/err")" -eq 1 ] || fault "$*: expected one line of its own on stderr" # Open MPI may add its own
}

# empty NAME WHAT : an empty value
empty() { refused "$1: expected $2 (see --help), found an empty value" "$1="; }

expect 0 "$grpo" --help
for text in "usage: mpirun" "--model DIR" "--replay MODE" "Exit status"; do
    grep -qF -- "$text" "$scratch/out" || fault "--help lacks: $text"
done
! grep -q "waybill" "$scratch/err" || fault "--help: a message on stderr"
cp "$scratch/out" "$scratch/help"
[ "$(grep -c '^[A-Z].*:$' "$scratch/help")" -ge 10 ] || fault "--help has no groups"
expect 0 "$grpo" -h

expect 0 "$grpo" --version
grep -qE '^waybill-grpo [0-9]+\.[0-9]+\.[0-9]+$' "$scratch/out" || fault "--version: expected its name and the version"

# ---- an output that takes nothing
if [ -w /dev/full ]; then
    for option in --help --version; do
        "$grpo" "$option" >/dev/full 2>"$scratch/err"
        [ $? -eq 1 ] || fault "$option: a full disk is no failure"
        err_has "waybill-grpo: the output cannot be written: No space left on device"
    done
fi

"$grpo" --help 2>"$scratch/err" | head -1 >/dev/null
[ "${PIPESTATUS[0]}" -eq 0 ] || fault "--help: a reader that has enough is a failure"

# ---- every option of the help
options=0
while read -r name value rest; do
    options=$((options + 1))
    case "$value" in
    DIR | FILE | CMD | TASK | LIST)
        refused "$name" "$name" # a value is missing
        empty "$name" "$value"
        ;;
    N | G | X | GIB | SECONDS)
        refused "$name" "$name"
        empty "$name" "$value"
        refused "$name 7x" "$name" 7x
        [ "$name" = --seed ] || refused "$name 1e300" "$name" 1e300
        refused "$name -1" "$name" -1
        ;;
    *)
        if [[ "$rest" =~ \[([a-z0-9_|]+)\]$ ]]; then
            refused "$name" "$name"
            empty "$name" "$value"
            refused "${BASH_REMATCH[1]}" "$name" no_such_choice
            refused "${BASH_REMATCH[1]}" "$name" "${BASH_REMATCH[1]%%|*}x"
        else
            refused "no_such_argument" "$name" no_such_argument # a flag takes no value
            refused "$name: expected no value, found 'yes'" "$name=yes"
        fi
        ;;
    esac
done < <(grep -E '^  --' "$scratch/help" | grep -v -e '--version')
[ $options -gt 20 ] || fault "expected more than 20 options in the help, found $options"

# ---- particular values
for number in nan inf ' ' 0x; do refused "--lr $number" --lr "$number"; done
refused "--steps 1.5" --steps 1.5
refused "--steps 0" --steps 0
refused "--samples 1" --samples 1
refused "--top-p 0" --top-p 0
refused "--temperature 0: expected at least 1e-06: a greedy sample is a point mass" --temperature 0
refused "--seed 18446744073709551616" --seed 18446744073709551616
refused "--frobnicate" --frobnicate
refused "--reward-cmd: expected CMD" --reward-cmd ''
refused "--model: expected DIR" --model ''
refused "--lr 7x" --lr=7x
refused "--replay no_such_choice" --replay=no_such_choice
refused "--resume: expected no value, found ''" --resume=
refused "unknown option --frobnicate=1" --frobnicate=1
refused "unknown option --l=1" --l=1
refused "unknown option --help=1" --help=1
refused "unknown option =1" =1
refused "stray" stray
refused "--threads: expected at most $(getconf _NPROCESSORS_ONLN), the cores of this host, found 4000" --threads 4000

# ---- options together
expect 2 "$grpo"
err_has "--model"
expect 2 "$grpo" --model "$scratch/none"
err_has "--out"
refused "--reward-cmd" --task jsonl:prompts.jsonl
refused "--updates 3" --prompts 16 --updates 3
mkdir -p "$scratch/run/checkpoint/trainer" && echo '{}' >"$scratch/run/checkpoint/trainer/state.json"
for list in abc 1,,2 -1 1,; do refused "--stop-token $list: expected none" --out "$scratch/run" --stop-token "$list"; done
refused "--rollout-bits 1: expected 0, or 2 to 8 bits" --rollout-bits 1
refused "--tis-cap 2: expected --ratio token beside it" --tis-cap 2 --ratio sequence
refused "--eval-task sums: expected arithmetic or jsonl:FILE" --eval-task sums
refused "--eval-task jsonl:prompts.jsonl needs --reward-cmd" --eval-task jsonl:prompts.jsonl
for option in "--eval-every 2" "--eval-temperature 1" --keep-best; do
    # shellcheck disable=SC2086
    refused "${option%% *}: expected --eval-task beside it" $option
done
refused "--task sums: expected arithmetic or jsonl:FILE" --task sums --reward-cmd true
refused "--model: expected none beside --make-base" --make-base "$scratch/base"
for option in "--steps 3" --resume "--task arithmetic" "--lr 1e-3"; do
    # shellcheck disable=SC2086
    expect 2 "$grpo" --make-base "$scratch/base" $option
    err_has "${option%% *}: expected none beside --make-base"
done
[ ! -e "$scratch/base" ] || fault "a wrong command line made the base's folder"
[ ! -e "$scratch/out_dir" ] || fault "a wrong command line made the output folder"

# ---- a good command line, a bad model: 1, and the message names the path
expect 1 "$grpo" --model "$scratch/none" --out "$scratch/out_dir" --quiet
err_has "$scratch/none"
expect 1 "$grpo" --model="$scratch/a=b" --out="$scratch/out_dir" --steps=2 --lr=1e-3 --replay=record --seed=7 --quiet
err_has "$scratch/a=b" # the value is all that is behind the first '='

# ---- several ranks say it once
if command -v mpirun >/dev/null; then
    expect 2 env -u OMPI_MCA_ess_singleton_isolated mpirun --allow-run-as-root --oversubscribe -n 2 "$grpo" --frobnicate
    [ "$(grep -c 'unknown option --frobnicate' "$scratch/err")" -eq 1 ] || fault "2 ranks: expected the message once"
fi

[ $faults -eq 0 ] && echo "waybill-grpo refuses what is wrong with its $options options"
exit $((faults > 0))
