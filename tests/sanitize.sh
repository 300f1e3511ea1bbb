#!/usr/bin/env bash
# Every test under AddressSanitizer + UndefinedBehaviorSanitizer, then under ThreadSanitizer (clang; libomp's Archer tells it
# about OpenMP's joins). usage: tests/sanitize.sh [address|thread]
set -euo pipefail
cd "$(dirname "$0")/.."

./install-deps.sh --tests --sanitizers
export CC=clang
export ASAN_OPTIONS=detect_leaks=1 LSAN_OPTIONS=suppressions=$PWD/tests/lsan.supp:print_suppressions=0
# Open MPI's own progress threads and shared memory are not instrumented.
export TSAN_OPTIONS="ignore_noninstrumented_modules=1 suppressions=$PWD/tests/tsan.supp"

run() {
    local name=$1 flags=$2
    cmake -S . -B "build-$name" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DWB_SANITIZE="$flags" -DWB_CUDA=OFF
    cmake --build "build-$name" -j "$(nproc)"
    ctest --test-dir "build-$name" --output-on-failure
}
case "${1:-all}" in
address) run address address,undefined ;;
thread) run thread thread ;;
all) run address address,undefined; run thread thread ;;
*) sed -n '2,3s/^# //p' "$0"; exit 2 ;;
esac
