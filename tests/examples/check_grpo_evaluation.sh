#!/usr/bin/env bash
# check_grpo_evaluation.sh - an evaluation set, the best checkpoint by it, the last ones, a schedule of the learning rate: what they
# write, that training does not depend on them, and that a run in parts is the same as a whole one.
# usage: check_grpo_evaluation.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/grpo_checks.sh"

run 2 --make-base base --warmup-steps 40 --quiet || fail "make-base"
plain=(--prompts 8 --samples 4 --updates 2 --lr 1e-3 --seed 5 --quiet --no-dump)
evaluation=(--eval-task arithmetic --eval-every 2)
evaluated() { sed -n 's/.*"step":\([0-9]*\),.*"evaluation":{"reward":\([0-9.]*\),.*/\1 \2/p' "$1/metrics.jsonl"; }
state() { sed -n "s/.*\"$2\": \"\{0,1\}\([0-9.e-]*\).*/\1/p" "$1/trainer/state.json" | tail -n 1; }

echo "== training does not depend on evaluation, tensorboard or kept checkpoints"
run 2 --model base --out bare "${plain[@]}" --steps 5 >/dev/null || fail "a bare run"
run 2 --model base --out whole "${plain[@]}" "${evaluation[@]}" --steps 5 --checkpoint-every 1 --keep-best --keep-last 3 --tensorboard \
    >/dev/null || fail "a whole run"
for file in $(cd bare/checkpoint && find . -name '*.safetensors'); do
    cmp "bare/checkpoint/$file" "whole/checkpoint/$file" || fail "$file differs"
done
[ "$(field bare/metrics.jsonl reward)" = "$(sed 's/"evaluation":{[^}]*},//' whole/metrics.jsonl >no_evaluation && field no_evaluation reward)" ] ||
    fail "rewards of training differ"

echo "== evaluated every two steps and at the end, the best is kept, of the others the last"
[ "$(evaluated whole | cut -d' ' -f1 | tr '\n' ' ')" = "1 3 4 " ] || fail "steps that were evaluated: $(evaluated whole)"
best=$(evaluated whole | sort -k2,2gr -k1,1g -s | head -n 1)
[ "$(state whole/checkpoint.best step)" = $((${best% *} + 1)) ] || fail "the best: expected that of step $best, found $(state whole/checkpoint.best step)"
[ "$(ls whole | grep '^checkpoint' | tr '\n' ' ')" = "checkpoint checkpoint.best checkpoint.step000003 checkpoint.step000004 " ] ||
    fail "checkpoints: $(ls whole)"
for kept in 3 4; do
    run 2 --model base --out "part$kept" "${plain[@]}" --steps $kept >/dev/null || fail "$kept steps"
    for file in $(cd "part$kept/checkpoint" && find . -name '*.safetensors'); do
        cmp "part$kept/checkpoint/$file" "whole/checkpoint.step00000$kept/$file" || fail "step $kept: $file differs"
    done
done
run 1 --model whole/checkpoint.best --out again "${plain[@]}" --steps 1 >/dev/null || fail "a run from the best"

echo "== in parts it is the same"
run 2 --model base --out parts "${plain[@]}" "${evaluation[@]}" --steps 3 --checkpoint-every 1 --keep-best --keep-last 3 --tensorboard \
    >/dev/null || fail "the first part" # evaluated after its last step too, which here is no second one
run 2 --out parts --resume --steps 5 --quiet --checkpoint-every 1 >/dev/null || fail "the second part"
[ "$(evaluated parts | grep -v '^2 ')" = "$(evaluated whole)" ] || fail "evaluations of a run in parts: $(evaluated parts)"
diff <(ls parts) <(ls whole) || fail "what a run in parts leaves"
for kept in checkpoint checkpoint.step000003 checkpoint.step000004; do
    for file in $(cd "parts/$kept" && find . -name '*.safetensors'); do
        cmp "parts/$kept/$file" "whole/$kept/$file" || fail "in parts: $kept/$file differs"
    done
done
rm -r parts/checkpoint && mv parts/checkpoint.step000003 parts/checkpoint # going back: what was of later steps is made again
run 1 --out parts --resume --steps 4 --quiet >/dev/null || fail "going back"
[ "$(ls parts | grep '^checkpoint.step' | tr '\n' ' ')" = "checkpoint.step000003 " ] || fail "checkpoints of a future that is no more: $(ls parts)"

echo "== a set of one's own, by the reward program, on any number of ranks"
for i in 1 2 3 4 5; do echo "{\"prompt\":[$i,10,2,11],\"answer\":$i}"; done >set.jsonl
cat >reward.sh <<'RUN'
while read -r line; do
    case "$line" in *'"rid":"e'*) echo "$line" >>asked; echo "${line##*'"answer":'}" | tr -d '}' ;; *) echo 0 ;; esac
done
RUN
for ranks in 1 3; do
    rm -f asked
    run $ranks --model base --out "own$ranks" "${plain[@]}" --steps 2 --eval-task jsonl:set.jsonl --eval-every 1 --reward-cmd "sh $work/reward.sh" \
        >/dev/null || fail "a set of one's own on $ranks ranks"
    [ "$(evaluated "own$ranks" | tr '\n' ' ')" = "0 3.0 1 3.0 " ] || fail "its reward on $ranks ranks: $(evaluated "own$ranks")"
    [ "$(grep -o '"rid":"[^"]*"' asked | sort | tr -d '\n')" = "$(for s in 0 1; do for g in 0 1 2 3 4; do printf '"rid":"e%s-g%s-0"' $s $g; done; done)" ] ||
        fail "each prompt once: $(grep -o '"rid":"[^"]*"' asked)"
done
echo "== the best is of one evaluation, and of a step that a run which was killed does again"
echo '{"prompt":[1,10,2,11],"answer":1}' >easy.jsonl
own=(--eval-every 1 --checkpoint-every 1 --keep-best --quiet)
run 1 --model base --out other "${plain[@]}" "${own[@]}" --steps 1 --eval-task jsonl:set.jsonl --reward-cmd "sh $work/reward.sh" >/dev/null ||
    fail "a best"
cp -r other killed
run 1 --out other --resume "${own[@]}" --steps 2 --eval-task jsonl:easy.jsonl >log 2>&1 || { cat log; fail "another set"; }
grep -q "is of another --eval-task or --reward-cmd, and is forgotten" log || { cat log; fail "the best of another set"; }
[ "$(state other/checkpoint.best step)" = 2 ] || fail "the best of another set stays"
sed 's/echo "${line.*/echo 9 ;; *) echo 0 ;; esac/' reward.sh >nine.sh # not the same program: the best of step 1 is forgotten
run 1 --out killed --resume "${own[@]}" --steps 2 --reward-cmd "sh $work/nine.sh" >/dev/null 2>&1 || fail "another program"
[ "$(state killed/checkpoint.best step)" = 2 ] || fail "the best of another program stays"
cp -r killed/checkpoint first
run 1 --out killed --resume "${own[@]}" --steps 3 >/dev/null || fail "a third step"
sed 's/"step": 2$/"step": 3/; s/^  "reward": 9.0/  "reward": 11.0/' killed/checkpoint.best/trainer/state.json >later # as if step 3 were better
cp later killed/checkpoint.best/trainer/state.json && rm -r killed/checkpoint && mv first killed/checkpoint
run 1 --out killed --resume "${own[@]}" --steps 3 >log 2>&1 || { cat log; fail "killed behind its best"; }
grep -q "checkpoint.best: of step 3, which is done again: its reward 11 is the best so far" log || { cat log; fail "a later best"; }
cmp -s later killed/checkpoint.best/trainer/state.json || fail "a better checkpoint was replaced"
grep -q '"reward": 11.0' killed/checkpoint/trainer/state.json || fail "the state names another best"

run 1 --model base --out hot "${plain[@]}" "${evaluation[@]}" --steps 2 --eval-temperature 1 >/dev/null || fail "a sampled evaluation"
grep -o '"evaluation":{[^}]*}' hot/metrics.jsonl | grep -q '"entropy":0\.0[,}]' && fail "a sampled evaluation has no entropy"
grep -o '"evaluation":{[^}]*}' whole/metrics.jsonl | grep -qv '"entropy":-\?0\.0[,}]' && fail "a greedy evaluation has entropy"

echo "== the learning rate: the same in parts, whatever --steps of the second"
run 1 --model base --out cosine "${plain[@]}" --steps 4 --lr-schedule cosine --lr-warmup 1 >/dev/null || fail "a schedule"
run 1 --model base --out cosine2 "${plain[@]}" --steps 4 --lr-schedule cosine --lr-warmup 1 --checkpoint-every 2 >/dev/null || fail "a schedule, again"
run 1 --model base --out cosine3 "${plain[@]}" --steps 2 --lr-schedule cosine --lr-warmup 1 --lr-steps 4 >/dev/null || fail "its first part"
run 1 --out cosine3 --resume --steps 4 --quiet >/dev/null || fail "its second part"
[ "$(field cosine/metrics.jsonl lr | tr '\n' ' ')" = "0.001 0.001 0.00075 0.00025 " ] || fail "rates: $(field cosine/metrics.jsonl lr)"
[ "$(field cosine/metrics.jsonl lr)" = "$(field cosine3/metrics.jsonl lr)" ] || fail "rates in parts: $(field cosine3/metrics.jsonl lr)"
for parts in cosine2 cosine3; do
    cmp cosine/checkpoint/model.safetensors $parts/checkpoint/model.safetensors || fail "$parts differs"
done

run 1 --out cosine2 --resume --steps 5 >log 2>&1 || { cat log; fail "past its end"; }
grep -q -- "--steps 5 is past --lr-steps 4: rate 0 from there on" log || { cat log; fail "a rate of 0 is not said"; }
refused "--lr-end 0.1: expected --lr-schedule linear or cosine" --model base --out bad "${plain[@]}" --steps 1 --lr-end 0.1

echo "== a rollout of few bits, and importance that is truncated"
run 2 --model base --out bits "${plain[@]}" --steps 1 --rollout-bits 4 >/dev/null || fail "--rollout-bits"
run 2 --model base --out tis "${plain[@]}" --steps 1 --rollout-bits 4 --tis-cap 2 >/dev/null || fail "--tis-cap"
[ "$(field bits/metrics.jsonl kl_k3)" = "$(field tis/metrics.jsonl kl_k3)" ] || fail "the first forward knows of --tis-cap"
awk -v a="$(field bits/metrics.jsonl kl_k3)" -v b="$(field bare/metrics.jsonl kl_k3 | head -n 1)" 'BEGIN { exit !(a > 1e-3 && b < 1e-9) }' ||
    fail "KL of 4 bits: $(field bits/metrics.jsonl kl_k3)"
! cmp -s bits/checkpoint/model-00001-of-00002.safetensors tis/checkpoint/model-00001-of-00002.safetensors || fail "--tis-cap changes nothing"
run 2 --model base --out bits_eplb "${plain[@]}" --steps 2 --rollout-bits 4 --eplb planned --redundant-experts 4 --rollout-dtype bf16 >/dev/null ||
    fail "--rollout-bits under --eplb planned"
[ "$(field bits_eplb/metrics.jsonl routed_differently_updates | sort -u)" = 0.0 ] || fail "routed differently under replay"

echo "== bad input"
refused "missing.jsonl: cannot be opened" --model base --out bad "${plain[@]}" --eval-task jsonl:missing.jsonl --reward-cmd cat
mkdir -p foreign/checkpoint.best && echo mine >foreign/checkpoint.best/notes
refused "checkpoint.best: expected a checkpoint of waybill-grpo" --model base --out foreign "${plain[@]}" "${evaluation[@]}" --steps 1
echo "all well"
