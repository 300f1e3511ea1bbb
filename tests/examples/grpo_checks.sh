# grpo_checks.sh - what the checks of waybill-grpo share: a folder of their own, runs on some ranks, what a refusal must say.
# usage, at the top of a check: . "$(dirname "$0")/grpo_checks.sh"
set -uo pipefail
build=$(realpath "$1") source=$(realpath "$2")
grpo=$build/bin/waybill-grpo
waybill=$build/bin/waybill
[ -x "$grpo" ] || { echo "skipped: waybill-grpo was not built (no MPI)"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1

# Session folders of mpirun here, and not where every job of the machine has its own come and go.
export OMPI_MCA_orte_tmpdir_base=$work OMP_NUM_THREADS=1
mpi=(mpirun --allow-run-as-root --oversubscribe --mca mpi_yield_when_idle 1)
# run RANKS arguments...
run() { "${mpi[@]}" -n "$1" "$grpo" "${@:2}"; }
fail() { echo "FAILED: $*"; exit 1; }
# refused "what the message must say" arguments... : on two ranks
refused() {
    local part=$1
    shift
    if run 2 --quiet "$@" >log 2>&1; then fail "accepted: $*"; fi
    grep -qF -- "$part" log || { cat log; fail "no '$part' in the message of: $*"; }
}
# until_so 'CONDITION': waits for it, for as long as a machine that does much else may need.
until_so() {
    for _ in $(seq 1200); do eval "$1" && return; sleep 0.1; done
    fail "not so after two minutes: $1"
}
field() { sed -n "s/.*\"$2\":\([-0-9.e+]*\).*/\1/p" "$1"; } # the last one of that name in each line
# The ranks below the shell that waits for an mpirun; other runs on this machine are none of ours.
ranks_below() {
    for child in $(pgrep -P "$1"); do
        [ "$(cat "/proc/$child/comm" 2>/dev/null)" = waybill-grpo ] && echo "$child"
        ranks_below "$child"
    done
}
# For checks that draw at random: SEED is the third argument, or what tests/support/test_seed.h says of WB_TEST_SEED.
seeded() {
    local seed=${1:-${WB_TEST_SEED:-1}}
    [ "$seed" != random ] || seed=$$
    RANDOM=$seed
    echo "seed $seed"
}
