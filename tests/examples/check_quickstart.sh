#!/usr/bin/env bash
# check_quickstart.sh - examples/quickstart.sh runs as many ranks as there are GPUs that it may use, two at the most; what it calls is
# made up. (What it does is check_learning.sh's and check_readme.sh's.) usage: check_quickstart.sh BUILD_DIR SOURCE_DIR
set -uo pipefail
source=$(realpath "$2")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
faults=0
mkdir -p "$scratch/bin" "$scratch/tree/examples" "$scratch/tree/build/bin"
cp "$source/examples/quickstart.sh" "$scratch/tree/examples"
touch "$scratch/tree/build/CMakeCache.txt"
for program in bin/cmake tree/install-deps.sh tree/build/bin/waybill tree/build/bin/waybill-grpo; do
    printf '#!/bin/sh\nexit 0\n' >"$scratch/$program"
done
printf '#!/bin/sh\necho "mpirun $*"\n' >"$scratch/bin/mpirun"
printf '#!/bin/sh\nseq "$GPUS" | sed "s/.*/GPU &: made up/"\n' >"$scratch/bin/nvidia-smi"
chmod +x "$scratch"/bin/* "$scratch"/tree/install-deps.sh "$scratch"/tree/build/bin/*
export PATH=$scratch/bin:$PATH
unset CUDA_VISIBLE_DEVICES

# ranks EXPECTED NAME=VALUE... : of a run on GPUs; 0: it is refused
ranks() {
    local found
    env "${@:2}" bash "$scratch/tree/examples/quickstart.sh" --device cuda >"$scratch/out" 2>&1
    found=$(sed -n 's/^mpirun -n \([0-9]*\) .*/\1/p' "$scratch/out" | sort -u)
    [ "${found:-0}" = "$1" ] && { [ "$1" != 0 ] || grep -q "expected a GPU, found none" "$scratch/out"; } && return
    echo "FAULT: ${*:2}: expected $1 ranks, found ${found:-0}:"
    sed 's/^/    /' "$scratch/out"
    faults=$((faults + 1))
}
ranks 0 GPUS=0
ranks 1 GPUS=1
ranks 2 GPUS=2
ranks 2 GPUS=8
ranks 1 GPUS=8 CUDA_VISIBLE_DEVICES=3
ranks 1 GPUS=8 CUDA_VISIBLE_DEVICES=GPU-8932f937
ranks 2 GPUS=8 CUDA_VISIBLE_DEVICES=3,5
ranks 1 GPUS=8 CUDA_VISIBLE_DEVICES=3,-1,5
ranks 1 GPUS=1 CUDA_VISIBLE_DEVICES=0,1
ranks 0 GPUS=8 CUDA_VISIBLE_DEVICES=-1
ranks 0 GPUS=8 CUDA_VISIBLE_DEVICES=
[ $faults -eq 0 ] && echo "the quickstart has a rank for each GPU that it may use, up to two"
exit $((faults > 0))
