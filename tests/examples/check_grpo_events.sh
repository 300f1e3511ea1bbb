#!/usr/bin/env bash
# check_grpo_events.sh - --tensorboard: what a reader that knows nothing of our code finds in the files of events is what metrics.jsonl
# has, step by step, also where a run went back and did steps again. TensorBoard's own reader is asked where a python3 has it.
# usage: check_grpo_events.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/grpo_checks.sh"
for python in "${WB_PYTHON:-}" python3 /usr/bin/python3 ''; do
    [ -n "$python" ] || continue
    "$python" -c 'import json, struct' 2>/dev/null && break
done
"$python" -c 1 2>/dev/null || { echo "skipped: no python3"; exit 77; }
read_events() { "$python" "$source/tests/tools/read_events.py" "$1"; }

run 1 --make-base base --warmup-steps 5 --quiet || fail "make-base"
common=(--prompts 4 --samples 2 --updates 2 --quiet --no-dump --checkpoint-every 2 --compare-every 2 --kl-coef 0.1 --tensorboard
    --eval-task arithmetic --eval-every 2)
run 2 --model base --out whole "${common[@]}" --steps 3 >/dev/null || fail "a run"
read_events whole || fail "the events of a run"

run 2 --model base --out back "${common[@]}" --steps 2 >/dev/null || fail "the first part"
cp -r back/checkpoint kept
run 2 --model base --out back "${common[@]}" --steps 4 --resume >/dev/null || fail "the second part"
read_events back || fail "the events of two parts"
rm -r back/checkpoint && mv kept back/checkpoint # as if the machine had gone down before the second part had saved anything
sleep 1.1 # readers take files in the order of their seconds
run 1 --model base --out back "${common[@]}" --steps 5 --resume >/dev/null || fail "the second part again"
read_events back || fail "the events of steps that were done again"
[ "$(ls back/tensorboard | wc -l)" = 3 ] || fail "expected a file of each start, found: $(ls back/tensorboard)"

cp -r whole cut && truncate -s -3 cut/tensorboard/*
! read_events cut >/dev/null 2>&1 || fail "a reader that takes a file that was cut"
cp -r whole other && sed -i 's/"reward":0/"reward":1/' other/metrics.jsonl
! read_events other >/dev/null 2>&1 || fail "a reader that finds other numbers the same"
run 1 --model base --out none "${common[@]/--tensorboard/--quiet}" --steps 1 >/dev/null || fail "without --tensorboard"
[ ! -e none/tensorboard ] || fail "events that nobody asked for"
mkdir -p file && touch file/tensorboard
refused "file/tensorboard" --model base --out file "${common[@]}" --steps 1
echo "all well"
