#!/usr/bin/env bash
# Runs every fuzz target for SECONDS seconds (default 60) from its seeds: golden files and small ones. usage: tests/fuzz.sh [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
case "$seconds" in
*[!0-9]*) sed -n '2s/^# //p' tests/fuzz.sh; [ "$1" = --help ] && exit 0 || exit 2 ;;
esac

./install-deps.sh --tests --clang
CC=clang cmake -S . -B build-fuzz -DCMAKE_BUILD_TYPE=RelWithDebInfo -DWB_SANITIZE=address,undefined -DWB_FUZZ=ON \
    -DWB_CUDA=OFF -DWB_MPI=OFF -DBUILD_TESTING=ON
for source in tests/fuzz/fuzz_*.c; do
    name=$(basename "$source" .c)
    cmake --build build-fuzz -j "$(nproc)" --target "$name"
    mkdir -p "build-fuzz/corpus/$name"
    seeds=() words=()
    [ -d "tests/fuzz/seeds/$name" ] && seeds=("tests/fuzz/seeds/$name")
    [ -f "tests/fuzz/$name.dict" ] && words=(-dict="tests/fuzz/$name.dict")
    echo "== $name, $seconds s"
    "build-fuzz/tests/$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
        -artifact_prefix="build-fuzz/$name-" "${words[@]}" "build-fuzz/corpus/$name" "${seeds[@]}"
done
