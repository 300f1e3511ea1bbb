#!/usr/bin/env bash
# Installs what is missing, builds with warnings as errors and runs every test.
# usage: tests/run.sh [ctest arguments]     (tests/run.sh -R dump: only the tests whose name has "dump")
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" = --help ]; then sed -n '2,3s/^# //p' tests/run.sh; exit 0; fi

./install-deps.sh --tests
cmake -S . -B build -DCMAKE_BUILD_TYPE=Release -DWB_WERROR=ON -DBUILD_TESTING=ON
cmake --build build -j "$(nproc)"
ctest --test-dir build --no-tests=error --output-on-failure -j "$(nproc)" "$@"
