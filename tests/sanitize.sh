#!/usr/bin/env bash
# Every test under AddressSanitizer + UndefinedBehaviorSanitizer, then under ThreadSanitizer, which Archer, a tool of clang's
# OpenMP runtime, tells where threads fork and join.
# usage: tests/sanitize.sh [address|thread [ctest arguments]]
set -euo pipefail
cd "$(dirname "$0")/.."

./install-deps.sh --tests --clang
export CC=clang
export LSAN_OPTIONS=suppressions=$PWD/tests/support/lsan.supp:print_suppressions=0
export UBSAN_OPTIONS=print_stacktrace=1
# An allocation that cannot be is refused with NULL, as without a sanitizer: tests ask for such ones.
null=allocator_may_return_null=1
# Open MPI and the OpenMP runtime are not instrumented: what they do to their own memory is not looked at.
export TSAN_OPTIONS=ignore_noninstrumented_modules=1:$null

# Open MPI's leaks are known by the modules in their stacks, which only the slow unwinder finds: these modules have no frame pointers.
with_mpi='^mpi_|^check_grpo'

# clang before 18 cannot map its shadow where a kernel randomises addresses by more than 28 bits; a container may forbid this.
fixed_addresses=()
if setarch -R true 2>/dev/null; then fixed_addresses=(setarch -R); fi

# A pass means nothing if threads of OpenMP are not looked at: a race of them must be reported, a sum without one not.
check_openmp_is_seen() {
    local source=build-thread/openmp.c program=build-thread/openmp
    cat >"$source" <<'END'
#include <stdlib.h>
int main(int argc, char **argv) {
    long n = atol(argv[1]), sum = 0, *squares = calloc((size_t)n, sizeof *squares);
#pragma omp parallel for num_threads(4)
    for (long i = 0; i < n; i++) squares[argc > 2 ? 0 : i] += i;
#pragma omp parallel for num_threads(3) reduction(+ : sum)
    for (long i = 0; i < n; i++) sum += squares[n - 1 - i];
    free(squares);
    return sum == 0;
}
END
    "$CC" -g -O1 -fopenmp -fsanitize=thread -o "$program" "$source"
    "${fixed_addresses[@]}" "$program" 1000 || { echo "Archer does not work: false races"; exit 1; }
    if "${fixed_addresses[@]}" "$program" 1000 race 2>/dev/null; then
        echo "a race of OpenMP threads is not seen"
        exit 1
    fi
}

# Up to LLVM 16 the leak checker takes some blocks of thread-local memory for ones of an old glibc, reads beyond them and ends a test that
# has passed with "Tracer caught signal 11"; it need not look at thread-local memory of loaded modules.
tls=intercept_tls_get_addr=0

# tests ASAN-OPTIONS CTEST-ARGUMENTS...
tests() {
    ASAN_OPTIONS=detect_leaks=1:$tls:$null:$1 "${fixed_addresses[@]}" ctest --no-tests=error --output-on-failure -j "$(nproc)" "${@:2}"
}

run() {
    local name=$1 flags=$2
    shift 2
    cmake -S . -B "build-$name" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DWB_SANITIZE="$flags" -DWB_CUDA=OFF -DBUILD_TESTING=ON
    if [ "$name" = thread ]; then check_openmp_is_seen; fi
    cmake --build "build-$name" -j "$(nproc)"
    # Both are run, whatever the first says.
    local verdict=0
    tests fast_unwind_on_malloc=1 --test-dir "build-$name" -E "$with_mpi" "$@" || verdict=1
    tests fast_unwind_on_malloc=0 --test-dir "build-$name" -R "$with_mpi" "$@" || verdict=1
    return $verdict
}
case "${1:-all}" in
address) run address address,undefined "${@:2}" ;;
thread) run thread thread "${@:2}" ;;
all) run address address,undefined; run thread thread ;;
*) sed -n '2,4s/^# //p' tests/sanitize.sh; [ "$1" = --help ] && exit 0 || exit 2 ;;
esac
