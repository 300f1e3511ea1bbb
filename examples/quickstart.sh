#!/usr/bin/env bash
# From a bare Debian 12 or Ubuntu 24.04 to a model trained under routing replay, in a few minutes on two cores: installs what
# is missing, builds, makes a tiny Mixture-of-Experts checkpoint, trains it with two MPI ranks and says what replay changed.
# usage: examples/quickstart.sh [--device cuda]
#   --device cuda   trains on GPUs, one a rank: two ranks, or one where there is one GPU
set -euo pipefail
cd "$(dirname "$0")/.."
ranks=2 device=()
case "$*" in
"") ;;
"--device cuda")
    gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then # a list, which CUDA reads up to the first that is no device; empty: none
        named=$(tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | awk '/^[ \t]*(-|$)/ { exit } { n++ } END { print n + 0 }')
        [ "$named" -ge "$gpus" ] || gpus=$named
    fi
    [ "$gpus" -ge 1 ] ||
        { echo "quickstart: --device cuda: expected a GPU, found none (nvidia-smi --list-gpus, CUDA_VISIBLE_DEVICES)" >&2; exit 1; }
    ! grep -q '^WB_CUDA:BOOL=OFF' build/CMakeCache.txt 2>/dev/null ||
        { echo "quickstart: --device cuda: expected a build with CUDA in build/, found WB_CUDA=OFF in its CMakeCache.txt" >&2; exit 1; }
    [ "$gpus" -ge 2 ] || ranks=1
    device=(--device cuda) ;;
--help) sed -n '2,5s/^# //p' examples/quickstart.sh; exit 0 ;;
*) echo "quickstart: expected nothing or --device cuda, found $*" >&2; exit 2 ;;
esac

# A folder of its own: the base, the checkpoint and the dump of an earlier run stay.
out=build/quickstart n=1
while [ -e "$out" ]; do n=$((n + 1)) && out=build/quickstart-$n; done
rank=(mpirun -n "$ranks" --oversubscribe --mca mpi_yield_when_idle 1)
[ "$(id -u)" -eq 0 ] && rank+=(--allow-run-as-root)

echo "== packages and build"
./install-deps.sh
# A build folder that tests/run.sh made keeps its tests; a fresh one needs none here.
[ -e build/CMakeCache.txt ] || cmake -S . -B build -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF >/dev/null
# Everything, so that it can be installed.
cmake --build build -j "$(nproc)" | grep -E "error|Built target" || true
[ -x build/bin/waybill-grpo ] || { echo "quickstart: waybill-grpo was not built (is Open MPI there?)" >&2; exit 1; }

mkdir -p "$out"
echo "== a base checkpoint: qwen3_moe, 4 layers, 16 experts, top-4, warmed up on sums"
"${rank[@]}" build/bin/waybill-grpo "${device[@]}" --make-base "$out/base" --warmup-steps 40

echo "== GRPO under routing replay, rollout in bf16, training in f32"
"${rank[@]}" build/bin/waybill-grpo "${device[@]}" --model "$out/base" --out "$out" --task arithmetic --replay rollout \
    --rollout-dtype bf16 --steps 80 --lr 6e-4 --compare-every 1

echo
build/bin/waybill verify "$out/dump"
cat <<TXT

Next:
  build/bin/waybill stats $out/dump              expert load by layer
  build/bin/waybill eplb $out/dump --ranks 4 --slots 20 --nodes 2     where experts should live
  build/bin/waybill cat $out/dump --limit 1 --routes
  ${rank[*]} build/bin/waybill-grpo ${device[*]:+--device cuda }--model $out/base --out $out-off --rollout-dtype bf16 --steps 80 --lr 6e-4 --replay off     the same without replay
  build/bin/waybill-grpo --help
TXT
