#!/usr/bin/env bash
# formats and the waybill command build and run where there is no MPI, no OpenMP and no CUDA.
# usage: check_no_mpi.sh BUILD_DIR SOURCE_DIR
set -uo pipefail
source=$2
[ -z "${WB_SANITIZE:-}" ] || { echo "skip: the ordinary build checks this"; exit 77; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
step() {
    "$@" >"$scratch/output" 2>&1 && return 0
    echo "FAULT: $*"
    sed 's/^/    /' "$scratch/output"
    exit 1
}

step cmake -S "$source" -B "$scratch/build" -DCMAKE_C_COMPILER="${CC:-cc}" -DCMAKE_BUILD_TYPE=Debug -DWB_WERROR=ON \
    -DBUILD_TESTING=OFF -DWB_MPI=OFF -DWB_CUDA=OFF \
    -DCMAKE_DISABLE_FIND_PACKAGE_MPI=ON -DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON
step cmake --build "$scratch/build" --target waybill_cli
waybill=$scratch/build/bin/waybill
step "$waybill" verify "$source/tests/golden/dump/good_zstd.wbr"
step "$waybill" --help
step cmake --build "$scratch/build" --target help
if grep -E 'comm_mpi|waybill_mpi|waybill-grpo' "$scratch/output"; then echo "FAULT: targets that need MPI"; exit 1; fi
if ldd "$waybill" | grep -iE 'mpi|gomp|libomp|cuda'; then echo "FAULT: the waybill command links the above"; exit 1; fi
echo "formats and the waybill command need neither MPI nor OpenMP nor CUDA"
