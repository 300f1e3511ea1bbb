#!/usr/bin/env bash
# check_resume.sh - a run of waybill-grpo that is killed at any moment and resumed on other numbers of ranks: every sample of every
# step is in the dump once and was trained on once, nothing is left over, and the run stays the run that it was.
# usage: check_resume.sh BUILD_DIR SOURCE_DIR [SEED]
. "$(dirname "$0")/grpo_checks.sh"
seeded "${3:-}"

# sampled OUT STEPS PROMPTS SAMPLES: each (step, group, sample) is in the dump once, and each step in the metrics
sampled() {
    "$waybill" verify "$1/dump" >log 2>&1 || { cat log; fail "$1/dump"; }
    "$waybill" stats "$1/dump" >log 2>&1 || { cat log; fail "stats $1/dump"; }
    "$waybill" cat "$1/dump" | sed 's/.*"rid":"\([^"]*\)".*/\1/' | sort >found
    for step in $(seq 0 $(($2 - 1))); do for group in $(seq 0 $(($3 - 1))); do for sample in $(seq 0 $(($4 - 1))); do
        echo "s$step-g$group-$sample"
    done; done; done | sort >expected
    diff expected found >log || { head log; fail "$1/dump: samples are missing or there twice"; }
    sed 's/.*"step":\([0-9]*\).*/\1/' "$1/metrics.jsonl" | cmp -s - <(seq 0 $(($2 - 1))) || fail "$1/metrics.jsonl: $(cat "$1/metrics.jsonl")"
    [ -z "$(find "$1" -name '*.interrupted' -o -name '*.tmp')" ] || fail "left over: $(find "$1" -name '*.interrupted' -o -name '*.tmp')"
}

run 2 --make-base base --warmup-steps 5 --quiet || fail "make-base"
common=(--prompts 6 --samples 2 --updates 3 --lr 3e-4 --max-tokens 6 --checkpoint-every 2 --quiet)

echo "== killed at any moment, also while experts move, resumed on 1 to 4 ranks"
moving=(--eplb live --rebalance-every 1)
for kill in 1 2 3 4 5 6; do
    run $((1 + RANDOM % 4)) --model base --out killed "${common[@]}" "${moving[@]}" --steps 1000000 --resume >log 2>&1 &
    job=$!
    sleep "$((RANDOM % 3)).$((RANDOM % 10))"
    victims=$(ranks_below $job | shuf -n 1 --random-source=<(yes "$RANDOM"))
    # shellcheck disable=SC2086
    [ -z "$victims" ] || kill -9 $victims 2>/dev/null
    [ -n "$victims" ] || kill -9 "$(pgrep -P $job | head -n 1)" 2>/dev/null
    wait $job && fail "kill $kill: the job ended well"
    [ ! -d killed/dump ] || [ -z "$(ls killed/dump)" ] || "$waybill" inspect killed/dump >log 2>&1 || { cat log; fail "kill $kill: the dump cannot be read"; }
done
steps=0
[ ! -e killed/checkpoint ] || steps=$(sed -n 's/.*"step": \([0-9]*\).*/\1/p' killed/checkpoint/trainer/state.json)
for ranks in 3 1 2; do
    steps=$((steps + 1))
    run $ranks --model base --out killed "${common[@]}" "${moving[@]}" --steps $steps --resume >log 2>&1 || { cat log; fail "resume on $ranks ranks"; }
    sampled killed $steps 6 2
done
echo "$steps steps"

echo "== a file of a rank that is gone is of no step that is done again"
run 3 --model base --out gone "${common[@]}" --steps 2 >/dev/null || fail "3 ranks"
cp gone/dump/step000001-rank2.wbr kept
run 3 --model base --out gone "${common[@]}" --steps 3 --checkpoint-every 0 --resume >/dev/null || fail "3 ranks, one step more"
cp gone/dump/step000002-rank2.wbr gone/dump/step000005-rank2.wbr && echo mine >gone/dump/step000005-rank2.wbr.note
run 1 --model base --out gone --steps 4 --quiet --resume >/dev/null || fail "resume on fewer ranks, without options"
cmp -s kept gone/dump/step000001-rank2.wbr || fail "a file of a step that is done was touched"
[ "$(cat gone/dump/step000005-rank2.wbr.note)" = mine ] || fail "another's file is gone"
sampled gone 4 6 2

echo "== what is lost of steps that are done is said, and nothing is touched"
for lost in dump dump/step000002-rank0.wbr dump/step000001-rank2.wbr cut; do
    rm -rf lost && cp -r gone lost
    if [ $lost = cut ]; then truncate -s -300 lost/dump/step000000-rank1.wbr; else rm -r "lost/$lost"; fi
    cp -r lost kept_lost
    refused "samples, found" --out lost --steps 5 --resume
    grep -qE "lost/dump: step [0-2], of 4 that are done: expected its 12 samples, found [0-9]+:" log || { cat log; fail "$lost: the step is not named"; }
    diff -r lost kept_lost || fail "$lost: a run that was refused was touched"
    rm -r kept_lost
done
run 2 --out lost --steps 5 --resume --quiet --no-dump >log 2>&1 || { cat log; fail "--no-dump goes on"; }
run 2 --out lost --steps 6 --resume --quiet >log 2>&1 || { cat log; fail "a run with --no-dump goes on without"; }
[ ! -e lost/dump/step000005-rank0.wbr ] || fail "--no-dump is not kept"
for lines in 0 2; do
    head -n $lines gone/metrics.jsonl >lost/metrics.jsonl
    run 1 --out lost --steps $((7 + lines)) --resume --quiet >log 2>&1 || { cat log; fail "lost metrics"; }
    grep -q "lost/metrics.jsonl: expected a line of each of the [67] steps that are done, found none of step $lines\$" log || { cat log; fail "lost metrics are not said"; }
done

echo "== a step that does not train on every sample once fails"
if "${mpi[@]}" -n 2 "$build/tests/waybill-grpo-skips" --model base --out skips "${common[@]}" --steps 1 >log 2>&1; then fail "a sample was skipped, and nobody saw it"; fi
grep -q "sample 0: expected to be trained on once, found 0 times" log || { cat log; fail "the skipped sample is not named"; }

echo "== a resumed run is the same run"
run 2 --model base --out twice "${common[@]}" --steps 4 --temperature 0.9 --seed 7 >/dev/null || fail "4 steps"
run 2 --model base --out halves "${common[@]}" --steps 2 --temperature 0.9 --seed 7 >/dev/null || fail "2 steps"
run 2 --out halves --quiet --steps 4 --checkpoint-every 2 --resume >/dev/null || fail "2 more, with the options of the checkpoint"
diff -r twice/checkpoint halves/checkpoint || fail "options of the checkpoint were not taken"
for option in "--seed 8" "--prompts 12" "--samples 4" "--task jsonl:other.jsonl --reward-cmd true"; do
    # shellcheck disable=SC2086
    refused "which a resumed run cannot change" --out halves --steps 6 --resume $option
    grep -qF -- "${option%% *} " log || fail "the message does not name $option"
done
run 2 --out halves --steps 5 --lr 1e-4 --resume >log 2>&1 || fail "another learning rate"
grep -qF -- "--lr: 0.0003 in the checkpoint, now 0.0001" log || { cat log; fail "another learning rate is not said"; }

echo "== nothing that is there is written over"
cp -r base kept_base
refused "--make-base: base: expected a new or an empty folder, found files in it" --make-base base
diff -r base kept_base || fail "--make-base changed what was there"
refused "is --model: expected a folder of its own" --model base --out base "${common[@]}" --steps 1
ln -s base linked
refused "is --model: expected a folder of its own" --model base --out linked "${common[@]}" --steps 1
refused "which the run replaces" --model halves/checkpoint --out halves --steps 9 --resume
rm -rf halves/checkpoint
refused "is there already, but no checkpoint" --model base --out halves "${common[@]}" --steps 1
refused "no checkpoint to resume from" --out nowhere --steps 1 --resume
echo "all well"
