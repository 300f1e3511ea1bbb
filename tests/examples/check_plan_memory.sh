#!/usr/bin/env bash
# check_plan_memory.sh - waybill-grpo --plan-memory: what it says a rank's device takes is what a run takes, on any number of ranks;
# a 30B model is planned for without weights, and more than the device has is refused. usage: check_plan_memory.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/grpo_checks.sh"
for python in python3 /usr/bin/python3 ''; do
    [ -n "$python" ] || { echo "skipped: no python3"; exit 77; }
    "$python" -c 'import json' 2>/dev/null && break
done
export OMPI_MCA_ess_singleton_isolated=1
plan() { "$grpo" --plan-memory "$@"; } # one process, no mpirun
bytes_of() { sed -n "/^$2/,/^\$/s/.*$3  .* GiB  *\([0-9]*\)\$/\1/p" "$1"; } # FILE device|host ROW

"$python" "$source/tests/tools/make_random_model.py" model 256 6 16 160 16384 4 || fail "the model" # 25 million parameters
"$python" "$source/tests/tools/make_random_model.py" few 256 1 3 1024 256 1 || fail "the model of few large experts"

# true_on RANKS options... : the plan's device bytes and what the run had, within 1 %; the process has both kinds at most.
true_on() {
    local ranks=$1 planned host found process
    shift
    local all=(--model model --prompts 6 --samples 2 --updates 2 --max-tokens 4 --steps 1 --no-dump --block-size 16 --kv-blocks 64 "$@")
    plan "$ranks" "${all[@]}" >plan.txt || fail "the plan on $ranks ranks"
    run "$ranks" "${all[@]}" --out "run$((++runs))" >/dev/null 2>log || { cat log; fail "the run on $ranks ranks"; }
    planned=$(bytes_of plan.txt device "this rank") host=$(bytes_of plan.txt host "this rank")
    read -r found process < <(sed -n 's/^memory of a rank.*device.*(\([0-9]*\) bytes).*process.*(\([0-9]*\) bytes)$/\1 \2/p' log)
    echo "$ranks ranks: planned $planned, found $found; process: planned $((planned + host)), found $process"
    awk -v p="$planned" -v f="$found" 'BEGIN { exit !(f > 0 && p >= 0.99 * f && p <= 1.01 * f) }' || fail "the device's bytes on $ranks ranks"
    # The program, its libraries and the pages of the checkpoint come to it.
    awk -v p="$((planned + host))" -v f="$process" 'BEGIN { exit !(f > 0.5 * p && f < 1.3 * p + 256e6) }' || fail "the process on $ranks ranks"
}
runs=0
echo "== the plan is what a run takes"
true_on 1 --micro-batch-tokens 256
grep -q '^memory of a rank, at most' log || fail "a run does not say its memory"
recomputed=$(bytes_of plan.txt device "activations kept")
true_on 1 --micro-batch-tokens 256 --keep-memory 0.02 --quiet
kept=$(($(bytes_of plan.txt device "activations kept") - recomputed))
[ $kept -gt 10000000 ] && [ $kept -le 21474836 ] || fail "--keep-memory of 20 MiB keeps $kept bytes more"
true_on 2 --micro-batch-tokens 512 --kl-coef 0.1 --top-k 20 --rollout-dtype f32
true_on 2 --micro-batch-tokens 256 --rollout-bits 4
true_on 3 --micro-batch-tokens 128 --max-running 8 --max-batch-tokens 64 --rollout-dtype bf16
true_on 2 --micro-batch-tokens 256 --dtype bf16 --kl-coef 0.1
[ "$(bytes_of plan.txt device "master weights")" -gt 0 ] || fail "no masters with --dtype bf16"
true_on 4 --micro-batch-tokens 128 --eplb live --redundant-experts 7
true_on 3 --model few --micro-batch-tokens 16 --max-batch-tokens 8 --max-running 2 --kv-blocks 4 --updates 1 --steps 4 --prompts 30 --eplb planned \
    --redundant-experts 1

echo "== a model of 30 billion parameters, of which there is a config.json"
q30=(--model "$source/tests/golden/qwen3_30b_a3b/config.json" --rollout-dtype bf16 --task jsonl:none --reward-cmd true --max-tokens 128)
small=(--micro-batch-tokens 256 --kv-blocks 512 --max-batch-tokens 64 --max-running 32)
plan 8 "${q30[@]}" "${small[@]}" --device-memory 79 >fits || fail "the small sizes"
grep -q "79.00 GiB: it fits" fits || fail "it is not said that it fits"
if plan 8 "${q30[@]}" --device-memory 79 >large 2>log; then fail "accepted: 80 GB with the default sizes"; fi
grep -qE "expected at most 79.00 GiB \(--device-memory\), found [0-9.]+" log || { cat log; fail "no numbers in the refusal"; }
[ "$(bytes_of large device "this rank")" -gt "$(bytes_of fits device "this rank")" ] || fail "the default sizes take more"
plan 16 "${q30[@]}" --device-memory 79 >wide || fail "16 ranks with the default sizes"
parts=$(sed -n '/^device/,/^$/p' large | grep -cE 'policy +(weights|gradients|optimizer moments|activations kept|exchange|logits) ')
[ "$parts" = 6 ] || { cat large; fail "expected the policy by part"; }
for list in device host; do
    sum=$(sed -n "/^$list/,/^\$/p" large | grep -v 'this rank\|all ranks' | awk '/GiB/ { s += $NF } END { printf "%.0f", s }')
    [ "$sum" = "$(bytes_of large $list "this rank")" ] || fail "$list: the parts are not the whole"
done
plan 8 "${q30[@]}" --rollout-dtype f32 >f32 && [ "$(bytes_of f32 device "rollout     weights")" -gt "$(bytes_of large device "rollout     weights")" ] || fail "an f32 rollout copy takes more"
plan 8 "${q30[@]}" --dtype bf16 >bf16 || fail "bf16"
[ $((2 * $(bytes_of bf16 device "policy      weights"))) -le $(($(bytes_of large device "policy      weights") + 1000000)) ] || fail "weights of bf16 take half"
! grep -q "master weights" large || fail "masters of f32 weights"
! grep -q '^  reference ' large || fail "a reference without --kl-coef"
plan 8 "${q30[@]}" --kl-coef 0.1 | grep -q '^  reference   weights' || fail "no reference with --kl-coef"

echo "== mailboxes, which CUDA has"
mailboxes() { plan "$@" --device cuda >boxes || fail "a plan for GPUs: $*"; grep -c '^  [a-z]* *mailbox ' boxes; }
[ "$(mailboxes 2 "${q30[@]}" --dtype bf16)" = 2 ] || fail "expected a mailbox of the policy and of the rollout"
# 3 x 512 x 8 rows of 2048 bf16, and what lies in front of them, in blocks of 2 MiB.
[ "$(bytes_of boxes device 'policy *mailbox')" = 52428800 ] || { cat boxes; fail "the bytes of a mailbox"; }
[ "$(mailboxes 2 "${q30[@]}" --kl-coef 0.1)" = 3 ] || fail "a reference has a mailbox too"
[ "$(mailboxes 1 "${q30[@]}")" = 0 ] && [ "$(mailboxes 17 "${q30[@]}")" = 0 ] || fail "a mailbox on 1 rank, or on 17"
! grep -q mailbox bf16 || fail "a mailbox on the CPU"
# A build without CUDA does not know it; on the CPU there is none.
[ "$(grep -c 'scratch of ops' boxes)" -le 1 ] || fail "the scratch of a device's ops more than once"
! grep -q "scratch of ops" bf16 || fail "scratch of CUDA's ops on the CPU"

echo "== what is refused"
refused "--resume: expected none beside --plan-memory" --model model --plan-memory 2 --resume
refused "--device-memory: expected --plan-memory beside it" --model model --out bad --device-memory 2
refused "--init-placement: nowhere.json" --model model --plan-memory 2 --eplb static --init-placement nowhere.json
"$python" -c 'import json; json.dump([list(range(16))[::-1]] * 6, open("reversed.json", "w")); json.dump([[0]] * 6, open("short.json", "w"))'
refused "short.json: array[0] has 1 slots, expected 16" --model model --plan-memory 2 --eplb static --init-placement short.json
plan 2 --model model --eplb static --init-placement reversed.json >/dev/null || fail "a map that fits"
refused "none/config.json" --model none --plan-memory 2
refused "expected less than the" --model model --plan-memory 2 --micro-batch-tokens 4 --max-tokens 40
# The same as a run refuses, by the same words: 512 positions, and prompts of up to 6 tokens.
for way in "--plan-memory 2" "--out none"; do
    refused "at most 1 fit" --model model $way --max-tokens 511
    refused "--max-tokens 512: expected less than the model's 512 positions" --model model $way --max-tokens 512
done
plan 2 --model model --max-tokens 506 >/dev/null || fail "refused: prompts of 6 tokens that fit"

echo "== many ranks, of which few are unlike"
if [ -w /dev/full ]; then
    plan 8 "${q30[@]}" >/dev/full 2>log && fail "a plan on a full disk"
    grep -q "the output cannot be written: No space left on device" log || fail "a full disk is not named"
fi
timeout 20 "$grpo" "${q30[@]}" --plan-memory 16384 --redundant-experts 100 --eplb planned >many || fail "16384 ranks"
grep -q "^memory on 16384 ranks" many || fail "no plan of 16384 ranks"
echo "all well"
