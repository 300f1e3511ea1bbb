#!/usr/bin/env bash
# check_killed_ranks.sh - a rank of a job over MPI is killed (SIGKILL) at a random moment, of a random schedule of exchanges or while
# experts move: every other one ends in bounded time with a message that names it, and nobody calls MPI_Abort. Prints its seed.
# Usage: check_killed_ranks.sh BUILD_DIR SOURCE_DIR [SEED]
set -euo pipefail
programs=$1/tests
seed=${3:-${WB_TEST_SEED:-1}}
[ "$seed" != random ] || seed=$(date +%s)

command -v mpirun >/dev/null && [ -x "$programs/mpi_exchange" ] || { echo "no mpirun, or mpi_exchange was not built" && exit 77; }
# mpirun itself ends a job that has lost a rank, unless it is told not to.
mpi=(mpirun --allow-run-as-root --oversubscribe --mca mpi_yield_when_idle 1 --mca btl_vader_single_copy_mechanism none
     --enable-recovery)
output=$(mktemp)
trap 'rm -f "$output"' EXIT

# kill_one PROGRAM RANKS : the program kills one of its ranks, and prints a line of each survivor
kill_one() {
    seed=$((seed + 1))
    echo "$1, $2 ranks, seed $seed"
    timeout 100 "${mpi[@]}" -n "$2" "$programs/$1" "$seed" killed >"$output" 2>&1 || true
    survivors=$(grep -c "of $2 survived" "$output" || true)
    [ "$survivors" -ne $(($2 - 1)) ] || return 0
    echo "expected $(($2 - 1)) survivors that name the rank, found $survivors:" >&2
    cat "$output" >&2
    exit 1
}

for ranks in 2 3 4; do
    for _ in 1 2; do kill_one mpi_exchange "$ranks"; done
    kill_one mpi_rebalance "$ranks"
done
