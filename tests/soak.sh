#!/usr/bin/env bash
# The engine for a long time: every path at once on two ranks with small pools and with memory that is refused now and then
# (soak.c), half of the time under AddressSanitizer and UndefinedBehaviorSanitizer; then 10,000 random schedules.
# usage: tests/soak.sh [SECONDS [SEED]]          600 seconds; a seed by the clock, which is printed
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in
--help) sed -n '2,4s/^# //p' tests/soak.sh; exit 0 ;;
-*) sed -n '2,4s/^# //p' tests/soak.sh >&2; exit 2 ;;
esac
seconds=${1:-600} seed=${2:-$(date +%s)}
[[ $seconds =~ ^[0-9]+$ && $seconds -ge 10 && $seed =~ ^[0-9]+$ ]] ||
    { echo "tests/soak.sh: expected 10 seconds or more and a number for a seed, found $seconds $seed" >&2 && exit 2; }
echo "tests/soak.sh $seconds $seed"

export OMP_WAIT_POLICY=passive
export LSAN_OPTIONS=suppressions=$PWD/tests/support/lsan.supp:print_suppressions=0
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
cmake -S . -B build-address -DCMAKE_BUILD_TYPE=RelWithDebInfo -DWB_SANITIZE=address,undefined -DWB_CUDA=OFF -DBUILD_TESTING=ON >/dev/null
[ -e build/CMakeCache.txt ] || cmake -S . -B build -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=ON >/dev/null
cmake --build build-address -j "$(nproc)" --target soak
cmake --build build -j "$(nproc)" --target soak schedules

# The second option: see sanitize.sh.
ASAN_OPTIONS=detect_leaks=1:intercept_tls_get_addr=0 build-address/tests/soak --seconds $((seconds / 2)) --seed "$seed"
build/tests/soak --seconds $((seconds - seconds / 2)) --seed "$seed"
build/tests/schedules --first "$seed" --count 10000
