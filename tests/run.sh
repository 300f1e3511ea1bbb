#!/usr/bin/env bash
# Installs what is missing, builds with warnings as errors and runs every test.
# usage: tests/run.sh [--clang] [ctest arguments]
#   tests/run.sh -R dump        only the tests whose name has "dump"
#   tests/run.sh --clang        with clang, in build-clang, instead of the system's compiler in build
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" = --help ]; then sed -n '2,5s/^# //p' tests/run.sh; exit 0; fi

build=build packages=(--tests)
if [ "${1:-}" = --clang ]; then
    shift
    build=build-clang packages+=(--clang)
    export CC=clang
fi
./install-deps.sh "${packages[@]}"
cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DWB_WERROR=ON -DBUILD_TESTING=ON
cmake --build "$build" -j "$(nproc)"
ctest --test-dir "$build" --no-tests=error --output-on-failure -j "$(nproc)" "$@"
