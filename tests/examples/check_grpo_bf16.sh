#!/usr/bin/env bash
# check_grpo_bf16.sh - waybill-grpo --dtype bf16: rollout and training have the same bits, so that KL(rollout || trainer) is exactly 0
# on any number of ranks and under placements with replicas; a resumed run is the same run; it learns. And of a checkpoint that came in
# bf16 and is trained in f32, that it stays in bf16.
# usage: check_grpo_bf16.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/grpo_checks.sh"

run 1 --make-base base --warmup-steps 40 --quiet || fail "make-base"
bf16=(--model base --dtype bf16 --prompts 8 --samples 4 --updates 2 --lr 6e-4 --seed 5 --quiet)
replicas=(--eplb static --redundant-experts 4)
# kl_is_0 OUT LINES: every step's first forward has the log-probabilities of the rollout, bit for bit
kl_is_0() {
    grep -o '"\(kl_k1\|kl_k3\|ratio_outside\|routed_differently\)":[^,}]*' "$1/metrics.jsonl" >found
    [ "$(wc -l <found)" = $((4 * $2)) ] && ! grep -qv ':-\?0\.0*$' found || { cat "$1/metrics.jsonl"; fail "$1: KL of the first forward"; }
}

echo "== rollout and training have the same bits, at the first update and after it"
run 1 "${bf16[@]}" --out ranks_1 --steps 2 >/dev/null 2>&1 || fail "1 rank"
run 2 "${bf16[@]}" --out ranks_2 --steps 3 "${replicas[@]}" >/dev/null 2>&1 || fail "2 ranks"
run 4 "${bf16[@]}" --out ranks_4 --steps 2 --eplb planned --redundant-experts 3 --kl-coef 0.1 >/dev/null 2>&1 || fail "4 ranks"
kl_is_0 ranks_1 2 && kl_is_0 ranks_2 3 && kl_is_0 ranks_4 2
for out in ranks_1 ranks_2 ranks_4; do "$waybill" cat $out/dump/step000000-rank0.wbr --limit 1 >/dev/null || fail "$out: no samples"; done
# What is compared is seen where it differs.
run 1 "${bf16[@]}" --out apart --steps 1 --rollout-dtype f32 >/dev/null 2>&1 || fail "a rollout in f32"
[ "$(field apart/metrics.jsonl kl_k3)" != 0.0 ] || fail "a rollout in f32 has the bits of bf16"

echo "== a resumed run is the same run, on other numbers of ranks too"
run 2 "${bf16[@]}" --out halves --steps 2 "${replicas[@]}" >/dev/null 2>&1 || fail "first half"
run 2 --out halves --steps 3 --quiet --resume >/dev/null 2>&1 || fail "second half, with the options of the checkpoint"
diff -r ranks_2/checkpoint halves/checkpoint || fail "a resumed run's checkpoint differs"
run 1 --out halves --steps 4 --quiet --resume >/dev/null 2>&1 || fail "resume on another number of ranks"
kl_is_0 halves 4
refused "--dtype f32: the run in halves/checkpoint has bf16, which a resumed run cannot change" --out halves --steps 5 --dtype f32 --resume

echo "== a checkpoint has bf16 weights and f32 masters, and a run begins from it in either dtype"
grep -aq '"lm_head.weight":{"dtype":"BF16"' halves/checkpoint/model.safetensors || fail "the checkpoint is not bf16"
grep -aq '"lm_head.weight.master":{"dtype":"F32"' halves/checkpoint/trainer/optimizer-0.safetensors || fail "no master is saved"
for dtype in f32 bf16; do
    run 1 --model halves/checkpoint --dtype $dtype --out "from_$dtype" --steps 1 --prompts 2 --samples 2 --updates 1 --quiet >/dev/null 2>&1 || fail "from bf16 in $dtype"
done
# Of a run of before, which was f32 and did not say so.
sed -i '/"--dtype"/d' from_f32/checkpoint/trainer/state.json
refused "has f32, which a resumed run cannot change" --out from_f32 --steps 2 --dtype bf16 --resume
run 1 --out from_f32 --steps 2 --dtype f32 --quiet --resume >/dev/null 2>&1 || fail "a run without --dtype in its checkpoint goes on"

echo "== a checkpoint that came in bf16 stays in it, and its run in f32 is the same in parts, wherever experts are"
cp -r halves/checkpoint low && rm -r low/trainer
for mode in off planned; do
    f32=(--model low --dtype f32 --prompts 8 --samples 4 --updates 2 --lr 6e-4 --seed 5 --quiet --no-dump --eplb $mode)
    [ $mode = off ] || f32+=(--redundant-experts 4)
    run 3 "${f32[@]}" --out whole_$mode --steps 4 >/dev/null 2>&1 || fail "$mode: a run in f32"
    run 3 "${f32[@]}" --out parts_$mode --steps 2 >/dev/null 2>&1 || fail "$mode: its first part"
    run 3 --out parts_$mode --steps 4 --quiet --resume >/dev/null 2>&1 || fail "$mode: its second part"
    diff -r whole_$mode/checkpoint parts_$mode/checkpoint || fail "$mode: a run in parts differs"
    cat whole_$mode/checkpoint/model-*.safetensors | grep -aoE '"[a-z0-9_.]*":\{"dtype":"[A-Z0-9]*"' | sort >found
    grep -aoE '"[a-z0-9_.]*":\{"dtype":"[A-Z0-9]*"' low/model.safetensors | sort >wanted
    cmp wanted found || fail "$mode: dtypes of the model's file"
    grep -q '"torch_dtype": "bfloat16"' whole_$mode/checkpoint/config.json || fail "$mode: config.json"
    for ranks in 1 2 3; do # all go on from the same weights, which the next samples tell
        cp -r parts_$mode "again_${mode}_$ranks"
        run $ranks --out "again_${mode}_$ranks" --steps 5 --quiet --resume >/dev/null 2>&1 || fail "$mode: on $ranks ranks"
    done
    for ranks in 1 2 3; do field "again_${mode}_$ranks/metrics.jsonl" entropy | tail -n 1; done |
        awk 'NR == 1 { a = $1 } !(($1 - a) ^ 2 <= 1e-14 * a * a && a > 0) { bad = 1 } END { exit bad || NR != 3 }' ||
        fail "$mode: other ranks go on from other weights: $(tail -qn 1 again_${mode}_*/metrics.jsonl)"
done
cp -r parts_off lost && sed -i 's/lm_head.weight.master/lm_head.weight.mister/' lost/checkpoint/trainer/optimizer-1.safetensors
refused "lm_head.weight.master: expected 1024 elements in the files of 3 ranks, found" --out lost --steps 5 --resume

echo "== it learns"
run 1 --model base --dtype bf16 --out learns --steps 20 --lr 6e-4 --seed 3 --quiet --no-dump --checkpoint-every 0 >table 2>&1 || { cat table; fail "learning"; }
grep '^reward' table
awk '/^reward/ { rose = $NF >= $(NF - 1) + 0.1 } END { exit !rose }' table || fail "the reward does not rise"
echo "all well"
