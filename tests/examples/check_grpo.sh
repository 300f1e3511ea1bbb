#!/usr/bin/env bash
# check_grpo.sh - waybill-grpo as a user runs it: resume bit for bit, the three replay modes, a reward program, every bad input, and
# a rank killed in mid-run. usage: check_grpo.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/grpo_checks.sh"

small=(--steps 4 --prompts 8 --samples 4 --updates 4 --lr 3e-4 --compare-every 1 --quiet --seed 5 --rollout-dtype bf16)
run 2 --make-base base --warmup-steps 40 --quiet || fail "make-base"
run 1 --make-base base_olmoe --family olmoe --warmup-steps 10 --quiet || fail "make-base olmoe"

echo "== resume is bit for bit"
run 2 --model base --out whole "${small[@]}" >/dev/null || fail "whole run"
run 2 --model base --out halves "${small[@]}" --steps 2 >/dev/null || fail "first half"
run 2 --model base --out halves "${small[@]}" --resume >/dev/null || fail "second half"
diff -r whole/checkpoint halves/checkpoint || fail "a resumed run's checkpoint differs"
for file in whole/dump/*.wbr; do
    "$waybill" cat "$file" --tokens --routes >a && "$waybill" cat "halves/dump/$(basename "$file")" --tokens --routes >b &&
        cmp a b || fail "a resumed run's dump differs: $file"
done
[ "$(wc -l <halves/metrics.jsonl)" = 4 ] || fail "a resumed run's metrics"
run 1 --model base --out halves "${small[@]}" --steps 5 --resume >/dev/null || fail "resume on another number of ranks"

echo "== a checkpoint may lie elsewhere; what is no checkpoint is left alone"
mkdir -p linked disk && ln -s ../disk/there/ linked/checkpoint && ln -s kept disk/there # a link to a link to what is not there yet
run 2 --model base --out linked "${small[@]}" --steps 1 >/dev/null || fail "a linked checkpoint"
run 2 --model base --out linked "${small[@]}" --resume >/dev/null || fail "a linked checkpoint: second part"
[ -L linked/checkpoint ] && [ -L disk/there ] || fail "a link was replaced"
[ "$(ls linked disk | grep -c checkpoint)" = 1 ] && [ "$(ls disk)" = "kept
there" ] || fail "left beside a linked checkpoint: $(ls linked disk)"
diff -r whole/checkpoint disk/kept || fail "a linked checkpoint differs"
mv disk/kept disk/kept.old # as a killed run leaves it where names cannot be exchanged
run 1 --model base --out linked "${small[@]}" --steps 5 --resume >/dev/null || fail "resume beside a link"
mkdir -p foreign/elsewhere && echo mine >foreign/elsewhere/notes && ln -s elsewhere foreign/checkpoint
refused "found other files in it" --model base --out foreign "${small[@]}"
rm foreign/checkpoint && echo mine >foreign/checkpoint
refused "found no folder" --model base --out foreign "${small[@]}"
[ "$(cat foreign/checkpoint foreign/elsewhere/notes)" = "mine
mine" ] || fail "another's files are gone"

echo "== any number of ranks learns the same"
curve() { sed 's/"seconds_rollout.*"fidelity"/"fidelity"/' "$1/metrics.jsonl" | grep -o '"\(reward\|samples\|response_tokens\)":[0-9.]*'; }
curve whole >expected
for ranks in 1 3; do
    run $ranks --model base --out "ranks_$ranks" "${small[@]}" --no-dump >/dev/null || fail "$ranks ranks"
    curve "ranks_$ranks" | cmp - expected || fail "$ranks ranks do not learn what 2 do"
    field "ranks_$ranks/metrics.jsonl" grad_norm | paste - <(field whole/metrics.jsonl grad_norm) |
        awk '{ d = $1 - $2; if (!(d * d <= 1e-6 * $2 * $2)) bad = 1 } END { exit bad || NR != 4 }' || fail "$ranks ranks: gradient norm"
done
run 4 --model base --out few --steps 1 --prompts 2 --samples 2 --updates 2 --max-tokens 1 --quiet >/dev/null || fail "more ranks than prompts"

echo "== replay brings routing back, also through the updates, and at least halves the KL"
"$waybill" verify whole/dump >/dev/null || fail "verify"
field whole/metrics.jsonl routed_differently_updates | grep -qv '^0\.0*$' && fail "routed differently under replay"
[ "$(field whole/metrics.jsonl planned_updates | sort -u)" = 1.0 ] || fail "updates that were not planned"
awk -F'"fidelity' '{ split($2, on, "\"kl_k3\":"); split($3, off, "\"kl_k3\":"); a += on[2]; b += off[2] }
    END { printf "kl replay %g, off %g\n", a, b; exit !(a > 0 && a <= b / 2) }' whole/metrics.jsonl || fail "KL"
for mode in off record; do
    run 2 --model base --out "mode_$mode" "${small[@]}" --replay $mode --steps 2 >/dev/null || fail "--replay $mode"
done
[ "$(field mode_off/metrics.jsonl planned_updates | sort -u)" = 0.0 ] || fail "planned without replay"
[ "$(field mode_record/metrics.jsonl planned_updates | sort -u)" = 1.0 ] || fail "what the first pass chose is not planned"
run 2 --model base_olmoe --out olmoe "${small[@]}" --steps 2 --rollout-dtype f32 --ratio sequence --kl-coef 0.01 \
    --temperature 0.8 --top-k 12 --top-p 0.95 --dump-codec zstd >/dev/null || fail "olmoe, GSPO, KL"
"$waybill" verify olmoe/dump >/dev/null || fail "verify olmoe"
[ "$(field olmoe/metrics.jsonl routed_differently_updates | sort -u)" = 0.0 ] || fail "olmoe routed differently"

echo "== a task and a reward of the user's"
printf '%s\n' '{"prompt":[1,10,2,11],"answer":3}' '{"prompt":[4,10,4,11],"answer":8}' >task.jsonl
run 2 --model base --out user "${small[@]}" --steps 2 --task jsonl:task.jsonl \
    --reward-cmd 'while read -r line; do case "$line" in *"\"item\":"*) echo 0.5;; *) echo none;; esac; done' \
    >/dev/null || fail "jsonl task"
[ "$(field user/metrics.jsonl reward | sort -u)" = 0.5 ] || fail "rewards of the program"
run 2 --model base --out stops "${small[@]}" --steps 1 --task jsonl:task.jsonl --stop-token 3 --max-tokens 20 \
    --reward-cmd 'while read -r line; do case "$line" in *3]*\"finish\":\"stop\"*) echo 1;; *) echo 0;; esac; done' >/dev/null || fail "--stop-token"
field stops/metrics.jsonl reward | grep -q '^0\.0$' && fail "no sample ended at the stop token"

echo "== bad input"
refused "needs --reward-cmd" --model base --out bad --task jsonl:task.jsonl
refused "missing.jsonl: cannot be opened" --model base --out bad --task jsonl:missing.jsonl --reward-cmd true
echo '{"prompt":[1,99]}' >far.jsonl
refused "far.jsonl: line 1: prompt[1]" --model base --out bad --task jsonl:far.jsonl --reward-cmd true
refused "/dev/null/out" --model base --out /dev/null/out
refused "--resume goes on from it" --model base --out whole "${small[@]}"
refused "config.json" --model nowhere --out bad
refused "expected less than the model" --model base --out bad "${small[@]}" --kv-blocks 1 --max-tokens 40
cp -r base cut && truncate -s -1000 cut/model-00002-of-00002.safetensors
refused "model-00002-of-00002.safetensors" --model cut --out bad
mkdir -p sealed && touch sealed/dump
refused "sealed/dump" --model base --out sealed "${small[@]}"

echo "== a rank is killed"
run 2 --model base --out killed "${small[@]}" --steps 100000 --checkpoint-every 1 >log 2>&1 &
job=$!
until_so '[ -e killed/checkpoint/trainer/state.json ] && [ -e killed/dump/step000002-rank1.wbr ]'
kill -9 "$(ranks_below $job | tail -n 1)" || fail "no rank to kill"
start=$SECONDS
wait $job && fail "the job ended well"
[ $((SECONDS - start)) -le 30 ] || fail "the job outlived a rank by $((SECONDS - start)) s"
for file in killed/dump/*.wbr; do
    "$waybill" cat "$file" >/dev/null || [ ! -s "$file" ] || "$waybill" inspect killed/dump || fail "unreadable: $file"
done
steps=$(sed -n 's/.*"step": \([0-9]*\).*/\1/p' killed/checkpoint/trainer/state.json)
run 2 --model base --out killed "${small[@]}" --steps $((steps + 2)) --resume >/dev/null || fail "resume after the kill"
[ "$(wc -l <killed/metrics.jsonl)" = $((steps + 2)) ] || fail "metrics after the kill"
"$waybill" verify killed/dump >/dev/null || fail "dump after the kill and resume"
echo "all well"
