#!/usr/bin/env bash
# Everything that needs a GPU, on a machine with one or more, without a network: the CUDA tests, compute-sanitizer on those of the
# kernels, hf_oracle on every golden directory, GRPO on one GPU and on two, and the benchmarks beside PyTorch where it is
# there. Ends with a table of figures and with what was skipped and why. Goes on after a failure; exits with 1 if there was one.
#
# usage: tests/gpu.sh [BUILD]
#     BUILD: a build with CUDA and tests, perhaps made elsewhere and carried here; without it one is made in build-gpu.
#     WB_GPU_SECONDS: the limit of each step, 600 by default.
set -uo pipefail
case ${1:-} in
-h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit 0 ;;
esac
root=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$root/build-gpu}
limit=${WB_GPU_SECONDS:-600}
failed=() skipped=()
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

command -v nvidia-smi >/dev/null && card=$(nvidia-smi --query-gpu=name --format=csv,noheader) || card=
[ -n "$card" ] || { echo "tests/gpu.sh: expected a GPU, found none (nvidia-smi)" && exit 1; }
gpus=$(wc -l <<<"$card")
card=$(head -1 <<<"$card")

if [ $# -eq 0 ]; then
    cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=ON -DWB_CUDA=ON &&
        cmake --build "$build" -j "$(nproc)" || exit 1
fi
[ -d "$build/tests" ] || { echo "tests/gpu.sh: $build: expected a build with tests" && exit 1; }
mpi=(mpirun --allow-run-as-root --oversubscribe --mca btl_vader_single_copy_mechanism none)

# step NAME COMMAND...: its output goes to a file of that name; 77 means skipped, and the last line says why.
step() {
    local name=$1 log=$work/$1 seconds=$SECONDS verdict=0
    shift
    timeout "$limit" "$@" >"$log" 2>&1 || verdict=$?
    case $verdict in
    0) echo "ok       $name, $((SECONDS - seconds)) s" ;;
    77) skipped+=("$name: $(tail -1 "$log")") ;;
    124) [[ $name == *check-* ]] && skipped+=("$name: not done in $limit s") || failed+=("$name: more than $limit s") ;;
    *) failed+=("$name: exit $verdict") && tail -15 "$log" ;;
    esac
    return "$verdict"
}
# built PROGRAM: its path, or nothing.
built() {
    find "$build/tests" "$build/bin" -maxdepth 1 -name "$1" -type f -perm -1 2>/dev/null | head -1
}
# step_of NAME PROGRAM ARGUMENTS...: as step, skipped where the program was not built.
step_of() {
    local name=$1 program
    program=$(built "$2")
    if [ -z "$program" ]; then skipped+=("$name: $2 was not built") && return 77; fi
    step "$name" "$program" "${@:3}"
}

# ---- tests ----
for program in "$build"/tests/test_*_cuda "$build"/tests/test_{ops_bf16,ops_fused,graph_steps,same_bits,exchange_gpus}; do
    [ -x "$program" ] && step "$(basename "$program")" "$program"
done
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        tests=(test_products_cuda test_router_cuda test_plan_cuda test_sampling_cuda test_ops_cuda test_ops_fused test_attention_cuda)
        for test in "${tests[@]}"; do
            program=$(built $test)
            # A stream of another GPU is refused by what CUDA says of it: that is no error of this library.
            quiet=() size=()
            [ $tool = memcheck ] && quiet=(--report-api-errors no)
            [ $tool-$test = racecheck-test_attention_cuda ] && size=(few)
            [ -n "$program" ] && step "$tool-$test" compute-sanitizer --tool $tool "${quiet[@]}" --error-exitcode 1 "$program" 1 "${size[@]}"
        done
    done
else
    skipped+=("compute-sanitizer: not installed")
fi
for meta in "$root"/tests/golden/*/meta.json "$root"/tests/golden/oracles/*/meta.json; do
    folder=$(dirname "$meta")
    for dtype in f32 bf16; do
        step_of "hf_oracle-$dtype-$(basename "$folder")" hf_oracle --device cuda --dtype $dtype "$folder"
    done
done

# survives PROGRAM: it kills one of two ranks, and the other ends in bounded time with a message that names it.
survives() {
    local log=$work/$1-killed
    timeout 60 "${mpi[@]}" --enable-recovery -n 2 "$(built "$1")" 5 killed >"$log" 2>&1 || true
    if grep -q "of 2 survived: .*rank [01]" "$log"; then echo "ok       $1-killed"; else failed+=("$1-killed") && tail -5 "$log"; fi
}
# Mailboxes need no NCCL; ranks beyond the GPUs share them.
peers=$(built mpi_peers_cuda)
if [ -n "$peers" ]; then
    for ranks in 2 3; do step mpi_peers_cuda-$ranks "${mpi[@]}" -n $ranks "$peers"; done
    [ "$gpus" -lt 2 ] || survives mpi_peers_cuda
else
    skipped+=("mpi_peers_cuda: was not built, it needs MPI")
fi

# ---- GRPO ----
grpo=$(built waybill-grpo) waybill=$(built waybill)
# train NAME RANKS OPTION...
train() {
    local name=$1 run=("${mpi[@]}" -n "$2" "$grpo" --device cuda --quiet) out=$work/out-$1
    step "grpo-base-$name" "${run[@]}" --make-base "$work/base-$name" --warmup-steps 40 || return
    step "grpo-$name" "${run[@]}" --model "$work/base-$name" --out "$out" --steps 12 --lr 6e-4 --seed 3 "${@:3}" || return
    grep -E '^reward|^data plane|^experts moved' "$work/grpo-$name"
    [ -n "$waybill" ] && step "verify-$name" "$waybill" verify "$out/dump"
}
# exact NAME: in a run in bf16 each step's first forward had the log-probabilities and the experts of the rollout, bit for bit.
exact() {
    local metrics=$work/out-$1/metrics.jsonl name='kl_k1\|kl_k3\|ratio_outside\|routed_differently'
    grep -o "\"\($name\)\":[^,}]*" "$metrics" >"$work/exact" 2>/dev/null
    [ "$(wc -l <"$work/exact")" = 48 ] && ! grep -v ':-\?0\.0*$' "$work/exact" && echo "ok       KL of $1 is 0 at every first update" && return
    failed+=("exact-$1: expected 12 steps with KL 0 and no row routed differently, found otherwise in metrics.jsonl")
}
if [ -z "$grpo" ]; then
    skipped+=("GRPO: waybill-grpo was not built")
else
    train one-f32 1
    train one-bf16 1 --dtype bf16 && exact one-bf16
    if [ "$gpus" -ge 2 ]; then
        train two-live 2 --eplb live --redundant-experts 8 --rebalance-every 5
        train two-bf16 2 --dtype bf16 && exact two-bf16
    else
        skipped+=("GRPO on 2 GPUs: this machine has $gpus")
    fi
fi
if [ "$gpus" -ge 2 ] && [ -n "$(built mpi_exchange_nccl)" ]; then
    step mpi_exchange_nccl "${mpi[@]}" -n 2 "$(built mpi_exchange_nccl)"
    survives mpi_exchange_nccl
    step bench_decode_2 "${mpi[@]}" -n 2 "$(built bench_decode_mpi)" 8
    step bench_rebalance "${mpi[@]}" -n 2 "$(built bench_rebalance_mpi)" 4 cuda
    step bench_exchange_nccl "${mpi[@]}" -n 2 "$(built bench_exchange_nccl_mpi)"
else
    skipped+=("NCCL: needs two GPUs and a build with NCCL, found $gpus GPUs")
fi
if [ "$gpus" -ge 2 ] && [ -n "$(built bench_peers_mpi)" ]; then
    step bench_peers "${mpi[@]}" -n 2 "$(built bench_peers_mpi)"
else
    skipped+=("bench_peers: needs two GPUs and a build with MPI, found $gpus GPUs")
fi

# ---- benchmarks ----
step_of bench_router bench_router_cuda
step_of bench_sampling bench_sampling_cuda
for tokens in 16384 32768; do step_of "bench_layer-$tokens" bench_layer_cuda $tokens; done
step_of bench_layer-zipf bench_layer_cuda 16384 2048 768 128 8 0.7
step_of bench_attention bench_attention_cuda
step_of bench_products bench_products_cuda
step_of bench_train bench_train_cuda 8 16384 1
if [ "$gpus" -ge 2 ]; then
    step_of bench_train-2 bench_train_cuda 8 16384 2
else
    skipped+=("bench_train on 2 GPUs: this machine has $gpus")
fi
# All layers, as many requests as fit: an H100 has no room for the keys and values of 256.
step_of bench_engine bench_engine_cuda 8
step_of bench_engine-48 bench_engine_cuda 48 64 128
if python3 -c 'import torch; torch.zeros(1).cuda()' 2>/dev/null; then
    step peers python3 "$root/tests/bench/peers_cuda.py"
    if python3 -c 'import transformers' 2>/dev/null; then
        step peers-train python3 "$root/tests/bench/peer_model_cuda.py" train 8
        step peers-generate python3 "$root/tests/bench/peer_model_cuda.py" generate 48 64 128
    else
        skipped+=("peers of whole models: python3 has no transformers")
    fi
else
    skipped+=("peers: python3 has no torch that sees the GPU")
fi

# figure LOG PATTERN FIELD: field FIELD, counted from the end, of the first line of a step that matches.
figure() {
    awk -v pattern="$2" -v field="$3" '$0 ~ pattern { print $(NF + 1 - field); exit }' "$work/$1" 2>/dev/null
}
# peer NAME [STEP]
peer() {
    awk -F '\t' -v name="$1" '$1 == name { print $2; exit }' "$work/${2:-peers}" 2>/dev/null
}
# row NAME VALUE UNIT OTHER-NAME OTHER-VALUE
row() {
    [ -n "$2" ] || return 0
    local ratio=-
    [ -n "$5" ] && ratio=$(awk -v a="$2" -v b="$5" 'BEGIN { printf "%.2f", a / b }')
    printf '| %-44s | %9s %-8s | %-24s %9s | %5s |\n' "$1" "$2" "$3" "$4" "${5:--}" "$ratio"
}
printf '\n%s, %s of them\n| figure | here | beside | ratio |\n|---|---|---|---|\n' "$card" "$gpus"
row "top-k, T 16384, E 128, K 8" "$(figure bench_router '^topk +softmax_norm +T +16384 E +128' 10)" us "torch.topk" "$(peer topk)"
row "moe_plan, T 16384, E 128, K 8" "$(figure bench_router '^moe_plan +softmax_norm +T +16384 E +128' 10)" us "" ""
row "replayed routes, T 16384, E 128" "$(figure bench_router '^replay +softmax_norm +T +16384 E +128' 9)" "of native" "" ""
for rows in 64 256; do
    row "logprob_forward, $rows rows, V 151936" "$(figure bench_sampling "^logprob_forward +rows +$rows V 151936" 11)" us "copy" \
        "$(figure bench_sampling "^logprob_forward +rows +$rows V 151936" 6)"
    row "sample, temperature 1, $rows rows, V 151936" "$(figure bench_sampling "^sample, temperature 1 +rows +$rows V 151936" 11)" us "copy" \
        "$(figure bench_sampling "^sample, temperature 1 +rows +$rows V 151936" 6)"
done
for tokens in 16384 32768; do
    row "MoE layer forward, T $tokens" "$(figure bench_layer-$tokens '^layer, forward  ' 5)" TFLOP/s "torch dense" "$(peer dense)"
    row "MoE layer both, steady, T $tokens" "$(figure bench_layer-$tokens 'backward, steady' 5)" TFLOP/s "torch dense, steady" "$(peer 'dense steady')"
done
row "MoE layer forward, T 16384, zipf .7" "$(figure bench_layer-zipf '^layer, forward  ' 5)" TFLOP/s "uniform" \
    "$(figure bench_layer-16384 '^layer, forward  ' 5)"
row "attention forward, 4 x 4096" "$(figure bench_attention '^forward' 2)" TFLOP/s "torch flash" "$(peer 'flash forward')"
row "attention backward, 4 x 4096" "$(figure bench_attention '^backward' 2)" TFLOP/s "torch flash" "$(peer 'flash backward')"
for batch in 64 256; do
    row "decode, batch $batch, context 8192" "$(figure bench_attention "^decode, batch +$batch, context +8192" 6)" GB/s \
        "copy, read + written" "$(peer copy)"
done
# What it costs that a row's bits do not depend on the number of rows: below 1 it costs nothing.
for rows in 64 256 2048 16384; do
    for shape in "5120 2048" "2048 4096" "151936 2048"; do
        row "product of $rows rows, ${shape/ / x }" "$(figure bench_products "M +$rows, N +${shape/ /, K +}:" 4)" us "cuBLAS, free order" \
            "$(peer "product $rows $shape")"
    done
done
for run in bench_train bench_train-2; do
    gpus_of=1 && [ $run = bench_train ] || gpus_of=2
    row "training of 8 layers of Q30, $gpus_of GPU, native" "$(figure $run '^step, native' 6)" tok/s "transformers, 1 GPU" "$(peer train peers-train)"
    row "training of 8 layers of Q30, $gpus_of GPU, replayed" "$(figure $run '^step, replayed' 6)" tok/s "native" "$(figure $run '^step, native' 6)"
    row "training of 8 layers of Q30, $gpus_of GPU, a GPU" "$(figure $run '^step, replayed' 2)" TFLOP/s "torch dense" "$(peer dense)"
done
for batch in 64 128; do
    row "decode of Q30, batch $batch, context 1024" "$(figure bench_engine-48 "^batch +$batch," 15)" tok/s "generate_batch" \
        "$(peer "generate_batch decode $batch" peers-generate)"
    row "decode of Q30, batch $batch, context 1024" "$(figure bench_engine-48 "^batch +$batch," 15)" tok/s "static batch" \
        "$(peer "static decode $batch" peers-generate)"
    row "prefill of Q30, $batch prompts of 1024" "$(figure bench_engine-48 "^batch +$batch," 22)" tok/s "generate_batch" \
        "$(peer "generate_batch prefill $batch" peers-generate)"
done
row "decode of 8 layers of Q30, batch 64, recording" "$(figure bench_engine '^batch +64,' 4)" % "goal" 0.3
row "decode, 2 ranks, batch 64 each, mailboxes" "$(figure bench_decode_2 '^batch +64 a rank, mailboxes, graphs' 5)" tok/s "exchange" \
    "$(figure bench_decode_2 '^batch +64 a rank, exchange' 5)"
row "NCCL, 64 MiB to a rank" "$(awk -F '|' '/65536 KiB/ { print $6 + 0 }' "$work/bench_exchange_nccl" 2>/dev/null)" GB/s \
    "raw send / receive" "$(awk -F '|' '/65536 KiB/ { print $5 + 0 }' "$work/bench_exchange_nccl" 2>/dev/null)"

for what in "${skipped[@]}"; do echo "skipped: $what"; done
for what in "${failed[@]}"; do echo "FAILED: $what"; done
[ ${#failed[@]} -eq 0 ]
