#!/usr/bin/env bash
# Everything that needs a GPU, on a machine with one or more, without a network: the CUDA tests, compute-sanitizer on those of the
# kernels, hf_oracle on every golden directory, GRPO on one GPU and on two, and the benchmarks beside PyTorch where it is
# there. Ends with a table of figures, each beside its floor and its peer where it has one, and with what was skipped and why.
# Goes on after a failure; exits with 1 if there was one.
#
# usage: tests/gpu.sh [BUILD [PART...]]
#     BUILD: a build with CUDA and tests, perhaps made elsewhere and carried here; without it one is made in build-gpu.
#     PART: only these of tests, sanitizers, oracles, grpo, exchange, benchmarks, peers; without one all. The table shows what
#     the parts measured.
#     WB_GPU_SECONDS: the limit of each step, 300 by default. A step of compute-sanitizer or of a peer that is not done by
#     then is skipped, any other has failed.
set -uo pipefail
case ${1:-} in
-h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit 0 ;;
esac
root=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$root/build-gpu}
parts=${*:2}
limit=${WB_GPU_SECONDS:-300}
failed=() skipped=()
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

command -v nvidia-smi >/dev/null && card=$(nvidia-smi --query-gpu=name --format=csv,noheader) || card=
[ -n "$card" ] || { echo "tests/gpu.sh: expected a GPU, found none (nvidia-smi)" && exit 1; }
gpus=$(wc -l <<<"$card")
if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    named=$(tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | wc -l)
    [ "$named" -ge "$gpus" ] || gpus=$named
fi
card=$(head -1 <<<"$card")
gib=$(($(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -1) / 1024))

if [ $# -eq 0 ]; then
    cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=ON -DWB_CUDA=ON &&
        cmake --build "$build" -j "$(nproc)" || exit 1
fi
[ -d "$build/tests" ] || { echo "tests/gpu.sh: $build: expected a build with tests" && exit 1; }
mpi=(mpirun --allow-run-as-root --oversubscribe --mca btl_vader_single_copy_mechanism none)

# reason LOG: the last line that is not mpirun's.
reason() {
    { sed '/^-----/,$d' "$1" | grep . || cat "$1"; } | tail -1
}
# step NAME COMMAND...: its output goes to a file of that name; 77 means skipped, and the last line says why.
step() {
    local name=$1 log=$work/$1 seconds=$SECONDS verdict=0
    shift
    timeout -k 10 "$limit" "$@" >"$log" 2>&1 || verdict=$?
    case $verdict in
    0) echo "ok       $name, $((SECONDS - seconds)) s" ;;
    77) skipped+=("$name: $(reason "$log")") ;;
    124) [[ $name == *check-* || $name == peers* ]] && skipped+=("$name: not done in $limit s") || failed+=("$name: more than $limit s") ;;
    *) failed+=("$name: exit $verdict") && tail -15 "$log" ;;
    esac
    return "$verdict"
}
# built PROGRAM: its path, or nothing.
built() {
    find "$build/tests" "$build/bin" -maxdepth 1 -name "$1" -type f -executable 2>/dev/null | head -1
}
# step_of NAME PROGRAM ARGUMENTS...: as step, skipped where the program was not built.
step_of() {
    local name=$1 program
    program=$(built "$2")
    if [ -z "$program" ]; then skipped+=("$name: $2 was not built") && return 77; fi
    step "$name" "$program" "${@:3}"
}

# wanted PART: whether it was asked for.
wanted() {
    case " ${parts:-$1} " in *" $1 "*) ;; *) return 1 ;; esac
}
for part in $parts; do
    case $part in
    tests | sanitizers | oracles | grpo | exchange | benchmarks | peers) ;;
    *) echo "tests/gpu.sh: part '$part': expected tests, sanitizers, oracles, grpo, exchange, benchmarks or peers" && exit 2 ;;
    esac
done
# With a build without CUDA, or for a later driver, every test would be skipped, and nothing would fail.
probe=$(built test_stream_cuda)
if [ -n "$probe" ]; then
    verdict=0
    timeout -k 10 "$limit" "$probe" >"$work/probe" 2>&1 || verdict=$?
    [ "$verdict" != 77 ] ||
        { echo "tests/gpu.sh: $build: expected a build that opens a GPU, found: $(reason "$work/probe")" && exit 1; }
fi
# every_test: the tests of the CUDA backend, of the engine and of the trainer on one GPU or more.
every_test() {
    local program
    for program in "$build"/tests/test_*_cuda \
        "$build"/tests/test_{ops_bf16,ops_fused,ops_recurrent,ops_entries,graph_steps,same_bits,mtp_drafts,hooks_layers,return_indexer,exchange_gpus}; do
        if [ -x "$program" ]; then
            step "$(basename "$program")" "$program"
        else
            skipped+=("$(basename "$program"): was not built")
        fi
    done
    step_of schedules schedules --device cuda --count 100
    if [ -n "$torch" ] && [ -d "$build/python/waybill" ]; then
        step test_torch env PYTHONPATH="$build/python" PYTHONDONTWRITEBYTECODE=1 python3 "$root/tests/python/test_torch.py"
    else
        skipped+=("test_torch: needs a Python package in the build and a torch that sees the GPU")
    fi
}
# sanitized: the tests of kernels under compute-sanitizer.
sanitized() {
    local tool test program tests quiet size
    command -v compute-sanitizer >/dev/null || { skipped+=("compute-sanitizer: not installed") && return; }
    for tool in memcheck racecheck; do
        tests=(test_products_cuda test_router_cuda test_plan_cuda test_sampling_cuda test_ops_cuda test_ops_bf16 test_ops_fused test_ops_recurrent test_ops_entries test_attention_cuda)
        for test in "${tests[@]}"; do
            program=$(built "$test")
            # A stream of another GPU is refused by what CUDA says of it: that is no error of this library.
            quiet=() size=()
            [ $tool = memcheck ] && quiet=(--report-api-errors no)
            [ $tool-$test = racecheck-test_attention_cuda ] && size=(few)
            if [ -z "$program" ]; then skipped+=("$tool-$test: was not built") && continue; fi
            step "$tool-$test" compute-sanitizer --tool $tool "${quiet[@]}" --error-exitcode 1 "$program" 1 "${size[@]}"
        done
    done
}
# oracles: every golden directory of transformers' results.
oracles() {
    local meta folder dtype
    for meta in "$root"/tests/golden/*/meta.json "$root"/tests/golden/oracles/*/meta.json; do
        folder=$(dirname "$meta")
        for dtype in f32 bf16; do
            step_of "hf_oracle-$dtype-$(basename "$folder")" hf_oracle --device cuda --dtype $dtype "$folder"
        done
    done
}
torch=$(python3 -c 'import torch; torch.zeros(1).cuda(); print(torch.__version__)' 2>/dev/null)
if wanted tests; then every_test; fi
if wanted sanitizers; then sanitized; fi
if wanted oracles; then oracles; fi

# survives PROGRAM: it kills one of two ranks, and the other ends in bounded time with a message that names it.
survives() {
    local log=$work/$1-killed
    timeout -k 10 60 "${mpi[@]}" --enable-recovery -n 2 "$(built "$1")" 5 killed >"$log" 2>&1 || true
    if grep -q "of 2 survived: .*rank [01]" "$log"; then echo "ok       $1-killed"; else failed+=("$1-killed") && tail -5 "$log"; fi
}
# mailboxes: they need no NCCL; ranks beyond the GPUs share them.
mailboxes() {
    local ranks program
    program=$(built mpi_mailbox_cuda)
    [ -n "$program" ] || { skipped+=("mpi_mailbox_cuda: was not built, it needs MPI") && return; }
    for ranks in 2 3; do
        step mpi_mailbox_cuda-$ranks "${mpi[@]}" -n $ranks "$program"
        step mpi_shared_memory_cuda-$ranks "${mpi[@]}" -n $ranks "$(built mpi_shared_memory_cuda)"
    done
    [ "$gpus" -lt 2 ] || survives mpi_mailbox_cuda
}

# ---- GRPO ----
grpo=$(built waybill-grpo) waybill=$(built waybill)
# train NAME RANKS OPTION...
train() {
    local name=$1 run=("${mpi[@]}" -n "$2" "$grpo" --device cuda --quiet) out=$work/out-$1
    step "grpo-base-$name" "${run[@]}" --make-base "$work/base-$name" --warmup-steps 40 || return
    step "grpo-$name" "${run[@]}" --model "$work/base-$name" --out "$out" --steps 12 --lr 6e-4 --seed 3 "${@:3}" || return
    grep -E '^reward|^data plane|^experts moved|^KL|^tokens routed' "$work/grpo-$name"
    [ -z "$waybill" ] || step "verify-$name" "$waybill" verify "$out/dump"
}
# rises NAME: the reward at the end of a run is above that at its beginning.
rises() {
    awk '/^reward/ { found = $NF > $(NF - 1) } END { exit !found }' "$work/grpo-$1" 2>/dev/null && return
    failed+=("grpo-$1: expected a reward that rises, found: $(grep '^reward' "$work/grpo-$1" 2>/dev/null || echo none)")
}
# exact NAME: in a run in bf16 each step's first forward had the log-probabilities and the experts of the rollout, bit for bit.
exact() {
    local metrics=$work/out-$1/metrics.jsonl name='kl_k1\|kl_k3\|ratio_outside\|routed_differently'
    grep -o "\"\($name\)\":[^,}]*" "$metrics" >"$work/exact" 2>/dev/null
    [ "$(wc -l <"$work/exact")" = 48 ] && ! grep -v ':-\?0\.0*$' "$work/exact" && echo "ok       KL of $1 is 0 at every first update" && return
    failed+=("exact-$1: expected 12 steps with KL 0 and no row routed differently, found otherwise in metrics.jsonl")
}
# moving: experts that are worth moving, as those of the base model are not, move while the rollout generates.
moving() {
    local run=("${mpi[@]}" -n 2 "$grpo" --device cuda --quiet --model "$work/wide" --out "$work/out-wide")
    step wide-model python3 "$root/tests/tools/make_random_model.py" "$work/wide" 2048 2 32 768 512 4 || return
    step grpo-wide "${run[@]}" --steps 12 --lr 1e-5 --seed 3 --dtype bf16 --eplb live --redundant-experts 4 --rebalance-every 6 || return
    grep '^experts moved' "$work/grpo-wide"
    grep -q '^experts moved [1-9]' "$work/grpo-wide" || failed+=("grpo-wide: expected experts that move, found none")
    exact wide
}
trainings() {
    [ -n "$grpo" ] || { skipped+=("GRPO: waybill-grpo was not built") && return; }
    train one-f32 1 && rises one-f32
    train one-bf16 1 --dtype bf16 && exact one-bf16
    [ "$gpus" -ge 2 ] || { skipped+=("GRPO on 2 GPUs: this machine has $gpus") && return; }
    train two-live 2 --eplb live --redundant-experts 8 --rebalance-every 5 --compare-every 4 && rises two-live
    train two-bf16 2 --dtype bf16 && exact two-bf16
    moving
}
if wanted grpo; then trainings; fi

# ---- between two GPUs ----
exchange() {
    mailboxes
    if [ "$gpus" -ge 2 ] && [ -n "$(built mpi_exchange_nccl)" ]; then
        step mpi_exchange_nccl "${mpi[@]}" -n 2 "$(built mpi_exchange_nccl)"
        survives mpi_exchange_nccl
        step bench_decode_2 "${mpi[@]}" -n 2 "$(built bench_decode_mpi)" 8
        step bench_rebalance "${mpi[@]}" -n 2 "$(built bench_rebalance_mpi)" 4 cuda
        step bench_exchange_nccl "${mpi[@]}" -n 2 "$(built bench_exchange_nccl_mpi)"
    else
        skipped+=("NCCL: needs two GPUs and a build with NCCL, found $gpus GPUs")
    fi
    if [ "$gpus" -ge 2 ] && [ -n "$(built bench_mailbox_mpi)" ]; then
        step bench_mailbox "${mpi[@]}" -n 2 "$(built bench_mailbox_mpi)"
    else
        skipped+=("bench_mailbox: needs two GPUs and a build with MPI, found $gpus GPUs")
    fi
}
if wanted exchange; then exchange; fi

# ---- benchmarks ----
# All layers, as many requests as fit.
batches=(64 128)
[ "$gib" -lt 120 ] || batches+=(256)
# Tokens, hidden width, experts' width, experts, choices: of Qwen3-30B-A3B twice, OLMoE, a small one, DeepSeek-V3.
layers=("16384 2048 768 128 8" "32768 2048 768 128 8" "16384 2048 1024 64 8" "4096 1024 512 32 4")
[ "$gib" -lt 120 ] || layers+=("16384 7168 2048 256 8")
benchmarks() {
    local sizes
    step_of bench_router bench_router_cuda
    step_of bench_sampling bench_sampling_cuda
    [ "$gib" -ge 120 ] || skipped+=("a layer of DeepSeek-V3's sizes: needs 100 GiB, this GPU has $gib")
    for sizes in "${layers[@]}"; do
        # shellcheck disable=SC2086 # five arguments
        step_of "bench_layer-${sizes// /-}" bench_layer_cuda $sizes
    done
    step_of bench_layer-zipf bench_layer_cuda 16384 2048 768 128 8 0.7
    step_of bench_attention bench_attention_cuda
    step_of bench_products bench_products_cuda
    step_of bench_recurrent bench_recurrent_cuda
    step_of bench_entries bench_entries_cuda
    step_of bench_train bench_train_cuda 8 16384 1
    if [ "$gpus" -ge 2 ]; then
        step_of bench_train-2 bench_train_cuda 8 16384 2
    else
        skipped+=("bench_train on 2 GPUs: this machine has $gpus")
    fi
    step_of bench_engine bench_engine_cuda 8
    [ "$gib" -ge 120 ] || skipped+=("decoding of 48 layers, batch 256: needs 120 GiB, this GPU has $gib")
    step_of bench_engine-48 bench_engine_cuda 48 "${batches[@]}"
}
peers() {
    [ -n "$torch" ] || { skipped+=("peers: python3 has no torch that sees the GPU") && return; }
    step peers python3 "$root/tests/bench/peers_cuda.py"
    python3 -c 'import transformers' 2>/dev/null ||
        { skipped+=("peers of layers and whole models: python3 has no transformers") && return; }
    step peers-train python3 "$root/tests/bench/peer_model_cuda.py" train 8
    step peers-delta python3 "$root/tests/bench/delta_peer_cuda.py"
    step peers-generate python3 "$root/tests/bench/peer_model_cuda.py" generate 48 "${batches[@]}"
}
if wanted benchmarks; then benchmarks; fi
if wanted peers; then peers; fi

# ---- the table ----
# figure LOG PATTERN FIELD: field FIELD, counted from the end, of the first line of a step that matches.
figure() {
    awk -v pattern="$2" -v field="$3" '$0 ~ pattern { print $(NF + 1 - field) + 0; exit }' "$work/$1" 2>/dev/null
}
# peer NAME [STEP]
peer() {
    awk -F '\t' -v name="$1" '$1 == name { print $2; exit }' "$work/${2:-peers}" 2>/dev/null
}
# part VALUE SHARE: SHARE of VALUE, which is empty where one of them is.
part() {
    [ -z "$1" ] || [ -z "$2" ] || awk -v a="$1" -v b="$2" 'BEGIN { printf "%.4g", a * b }'
}
# row NAME VALUE UNIT FLOOR OTHER-NAME OTHER-VALUE: FLOOR is the best that memory or multiplication of this GPU allow, by the
# rates of a copy and of a dense product that were measured in this run, in the unit of VALUE.
row() {
    [ -n "$2" ] || return 0
    local of_floor=- ratio=-
    case $3 in
    us | ms) [ -n "$4" ] && of_floor=$(awk -v a="$2" -v b="$4" 'BEGIN { printf "%.2f", b / a }') ;;
    *) [ -n "$4" ] && of_floor=$(awk -v a="$2" -v b="$4" 'BEGIN { printf "%.2f", a / b }') ;;
    esac
    [ -n "$6" ] && ratio=$(awk -v a="$2" -v b="$6" 'BEGIN { printf "%.2f", a / b }')
    printf '| %-56s | %9s %-9s | %9s | %5s | %-28s %9s | %5s |\n' "$1" "$2" "$3" "${4:--}" "$of_floor" "$5" "${6:--}" "$ratio"
}
# router OP NAME PEER-NAME PEER-VALUE: T 16384, E 128, K 8.
router() {
    local line="^$1 +softmax_norm +T +16384 E +128" us
    us=$(figure bench_router "$line" 10)
    row "$2, T 16384, E 128, K 8" "$us" us "$(part "$us" "$(part "$(figure bench_router "$line" 4)" 0.01)")" "$3" "$4"
}
# sampling OP: of 64 and 256 rows of the whole vocabulary.
sampling() {
    local rows line
    for rows in 64 256; do
        line="^$1 +rows +$rows V 151936"
        row "$1, $rows rows, V 151936" "$(figure bench_sampling "$line" 11)" us "$(figure bench_sampling "$line" 6)" "" ""
    done
}
# layer NAME SIZES: forward and both directions, gradients of the experts overwritten and added to, of a layer's benchmark.
layer() {
    local log=bench_layer-${2// /-} forward
    forward=$(figure "$log" '^layer, forward  ' 5)
    row "MoE layer forward, $1" "$forward" TFLOP/s "$dense" "grouped_mm" "$(peer "layer forward $2")"
    row "MoE layer forward, planned, $1" "$(figure "$log" '^layer, forward, replayed by plan' 5)" TFLOP/s "$dense" native "$forward"
    row "MoE layer both, $1" "$(figure "$log" '^layer, forward [+] backward  ' 5)" TFLOP/s "$dense" "grouped_mm" \
        "$(peer "layer both $2")"
    row "MoE layer both, steady, $1" "$(figure "$log" '^layer, both, dw overwritten, steady' 5)" TFLOP/s "$dense_steady" \
        "grouped_mm" "$(peer "layer both steady $2")"
    row "MoE layer both, added to, steady, $1" "$(figure "$log" '^layer, forward [+] backward, steady' 5)" TFLOP/s "$dense_steady" \
        "grouped_mm" "$(peer "layer both steady $2")"
}
# product ROWS OUT IN: us that its operands take to be read and written, or that it takes to be multiplied.
product_floor() {
    [ -z "$dense" ] || [ -z "$copy" ] || awk -v m="$1" -v n="$2" -v k="$3" -v dense="$dense" -v copy="$copy" 'BEGIN {
        bytes = 2e-3 * (m * k + n * k + m * n) / copy; flop = 2e-6 * m * n * k / dense
        printf "%.2f", (bytes > flop ? bytes : flop) }'
}
# training RUN GPUS
training() {
    local native memory
    native=$(figure "$1" '^step, native' 6)
    memory=$(sed -n 's/.*; \([0-9.]*\) GiB of each device.*/\1/p' "$work/$1" 2>/dev/null | head -1)
    row "training of 8 layers of Q30, $2 GPU" "$native" tok/s "" "transformers, 1 GPU" "$(peer train peers-train)"
    row "the same, planned replay" "$(figure "$1" '^step, replayed' 6)" tok/s "" native "$native"
    row "the same, planned replay, of a GPU" "$(figure "$1" '^step, replayed' 2)" TFLOP/s "$dense" "" ""
    row "the same, memory of a GPU" "$memory" GiB "" transformers "$(peer 'train peak GiB' peers-train)"
}
# over VALUE SHARE: of what VALUE is SHARE.
over() {
    [ -z "$1" ] || [ -z "$2" ] || awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.6g", a / b }'
}
# engine LOG BATCH: what its line has, and the peer's.
engine() {
    local line="^batch +$2," decode prefill floor way
    decode=$(figure "$1" "$line" 15) prefill=$(figure "$1" "$line" 22)
    for way in generate_batch static; do
        floor=$(over "$decode" "$(figure "$1" "$line" 6)")
        row "decode of Q30, batch $2, context 1024" "$decode" tok/s "$floor" "$way" "$(peer "$way decode $2" peers-generate)"
        floor=$(over "$prefill" "$(figure "$1" "$line" 17)")
        row "prefill of Q30, $2 prompts of 1024" "$prefill" tok/s "$floor" "$way" "$(peer "$way prefill $2" peers-generate)"
    done
    row "what recording costs, batch $2" "$(figure "$1" "$line" 4)" % "" "goal" 0.3
}
dense=$(peer dense) dense_steady=$(peer 'dense steady') copy=$(peer copy)
# Without PyTorch the library's own product and copy stand in.
[ -n "$dense" ] || dense=$(figure bench_layer-16384-2048-768-128-8 '^own matmul 8192.3  ' 5)
[ -n "$dense_steady" ] || dense_steady=$(figure bench_layer-16384-2048-768-128-8 '^own matmul 8192.3, steady' 5)
[ -n "$copy" ] || copy=$(figure bench_router '^device-to-device copy' 5)

printf '\n%s, %s of them, %s GiB each; dense %s TFLOP/s, %s under load; copy %s GB/s\n' "$card" "$gpus" "$gib" "${dense:--}" \
    "${dense_steady:--}" "${copy:--}"
printf '| figure | here | floor | of it | beside | ratio |\n|---|---|---|---|---|---|\n'
router topk "top-k" torch.topk "$(peer topk)"
router moe_plan "moe_plan" "" ""
line='^forward[+]back +softmax_norm +T +262144 E +128'
us=$(figure bench_router "$line" 10)
row "gate, forward and backward, T 262144, E 128, K 8" "$us" us "$(part "$us" "$(part "$(figure bench_router "$line" 4)" 0.01)")" \
    "torch, eager" "$(peer gate)"
line='^replay +softmax_norm +T +16384 E +128'
native=$(figure bench_router "$line" 14)
row "top-k, gate, plan of a replayed micro-batch" "$(figure bench_router "$line" 11)" us "" native "$native"
row "gate of a planned micro-batch" "$(figure bench_router "$line" 5)" us "" native "$native"
sampling logprob_forward
sampling "sample, temperature 1"
for sizes in "${layers[@]}"; do
    read -r tokens hidden _ experts _ <<<"$sizes"
    layer "T $tokens, H $hidden, E $experts" "$sizes"
done
row "MoE layer forward, T 16384, zipf .7" "$(figure bench_layer-zipf '^layer, forward  ' 5)" TFLOP/s "$dense" "uniform" \
    "$(figure bench_layer-16384-2048-768-128-8 '^layer, forward  ' 5)"
for what in forward backward; do
    rate=$(figure bench_attention "^$what" 2)
    row "attention $what, 4 x 4096" "$rate" TFLOP/s "$dense" "torch flash" "$(peer "flash $what")"
    row "attention $what, 4 x 4096" "$rate" TFLOP/s "$dense" "torch cuDNN" "$(peer "cudnn $what")"
done
for context in 1024 8192; do
    for batch in 64 256; do
        row "decode attention, batch $batch, context $context" \
            "$(figure bench_attention "^decode, batch +$batch, context +$context, window +0" 6)" GB/s "$copy" "" ""
    done
done
# The floor is that of bytes or of f32 arithmetic, whichever is larger, as the benchmarks print it.
for what in "delta prompts, 4 x 4096" "delta decode, 256 sequences" "delta training backward, 4 x 4096"; do
    row "$what" "$(figure bench_recurrent "^$what" 12)" ms "$(figure bench_recurrent "^$what" 9)" "torch, chunked or a step" "$(peer "$what" peers-delta)"
done
for what in prompt "decode of 64" backward; do
    for ratio in 4 128; do
        line="^entry attention $what, entries of $ratio "
        row "entry attention, $what, entries of $ratio" "$(figure bench_entries "$line" 12)" ms "$(figure bench_entries "$line" 9)" "" ""
    done
done
for window in 128 4096; do
    row "attention forward, 1 x 32768, window $window" "$(figure bench_attention "^forward, 1 x 32768, window $window," 2)" TFLOP/s \
        "$dense" "none" "$(figure bench_attention "^forward, 1 x 32768, window 0," 2)"
done
row "latent attention, 128 heads, batch 64, context 8192" "$(figure bench_attention "^latent, 128 heads, batch +64, context 8192" 4)" GB/s \
    "$copy" "" ""
row "latent attention, 128 heads, forward of 2048" "$(figure bench_attention "^latent, 128 heads, batch +1, context 2048" 6)" TFLOP/s \
    "$dense" "" ""
# What it costs that a row's bits do not depend on the number of rows: at 1 and below it costs nothing.
for rows in 64 256 2048 16384; do
    for shape in "5120 2048" "2048 4096" "151936 2048"; do
        # shellcheck disable=SC2086 # two arguments
        row "product of $rows rows, ${shape/ / x }, fixed order" "$(figure bench_products "M +$rows, N +${shape/ /, K +}:" 4)" us \
            "$(product_floor "$rows" $shape)" "cuBLAS, free order" "$(peer "product $rows $shape")"
    done
done
training bench_train 1
training bench_train-2 2
for batch in "${batches[@]}"; do engine bench_engine-48 "$batch"; done
row "what recording costs, 8 layers, batch 64" "$(figure bench_engine '^batch +64,' 4)" % "" "goal" 0.3
row "decode, 2 ranks, batch 64 each, mailboxes" "$(figure bench_decode_2 '^batch +64 a rank, mailboxes, graphs' 5)" tok/s "" "exchange" \
    "$(figure bench_decode_2 '^batch +64 a rank, exchange' 5)"
# after NAME PATTERN: the first line of puts behind one that matches.
after() {
    awk -v pattern="$2" '$0 ~ pattern { found = 1 } found && /by puts/ { print; exit }' "$work/$1" 2>/dev/null
}
for experts in 2 64; do
    row "$experts experts put beside a step, 2 ranks" "$(after bench_decode_2 ", +$experts experts a step" | awk '{ print $9 }')" GB/s "" \
        "raw send / receive alone" \
        "$(awk -v pattern=", +$experts experts a step" '$0 ~ pattern { print $13 }' "$work/bench_decode_2" 2>/dev/null)"
done
row "a step with 2 experts, of one that moves nothing" "$(after bench_decode_2 ", +2 experts a step" | awk '{ print $NF }')" "" "" "goal" 1.03
raw=$(awk -F '|' '/65536 KiB/ { print $5 + 0 }' "$work/bench_exchange_nccl" 2>/dev/null)
row "NCCL, 64 MiB to a rank" "$(awk -F '|' '/65536 KiB/ { print $6 + 0 }' "$work/bench_exchange_nccl" 2>/dev/null)" GB/s "" \
    "raw send / receive" "$raw"

for what in "${skipped[@]}"; do echo "skipped: $what"; done
for what in "${failed[@]}"; do echo "FAILED: $what"; done
[ ${#failed[@]} -eq 0 ]
