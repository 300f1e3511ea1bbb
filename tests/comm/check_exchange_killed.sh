#!/usr/bin/env bash
# check_exchange_killed.sh - a rank of an exchange over MPI is killed (SIGKILL) at a random moment of a random schedule: every
# other one ends in bounded time with a message that names it, and nobody calls MPI_Abort. Prints its seed.
# Usage: check_exchange_killed.sh BUILD_DIR SOURCE_DIR [SEED]
set -euo pipefail
program=$1/tests/mpi_exchange
seed=${3:-$(date +%s)}

command -v mpirun >/dev/null && [ -x "$program" ] || { echo "no mpirun, or mpi_exchange was not built" && exit 77; }
# mpirun itself ends a job that has lost a rank, unless it is told not to.
mpi=(mpirun --allow-run-as-root --oversubscribe --mca mpi_yield_when_idle 1 --mca btl_vader_single_copy_mechanism none
     --enable-recovery)
output=$(mktemp)
trap 'rm -f "$output"' EXIT

for ranks in 2 3 4; do
    for trial in 1 2; do
        seed=$((seed + 1))
        echo "$ranks ranks, seed $seed"
        timeout 100 "${mpi[@]}" -n "$ranks" "$program" "$seed" killed >"$output" 2>&1 || true
        survivors=$(grep -c "of $ranks survived" "$output" || true)
        if [ "$survivors" -ne $((ranks - 1)) ]; then
            echo "trial $trial: expected $((ranks - 1)) survivors that name the rank, found $survivors:" >&2
            cat "$output" >&2
            exit 1
        fi
    done
done
