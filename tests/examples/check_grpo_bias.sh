#!/usr/bin/env bash
# check_grpo_bias.sh - selection biases under --bias-rate: each moves against the load of the forced map, that of the records, on one
# rank and on two; without it they stay; a model that has none is refused.
# usage: check_grpo_bias.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/grpo_checks.sh"
# The first python3 of PATH may be one without the system's packages.
for python in python3 /usr/bin/python3 ''; do
    [ -z "$python" ] || { "$python" -c 'import msgpack, numpy, zstandard' 2>/dev/null && break; }
done
[ -n "$python" ] || { echo "skipped: no python3 with msgpack, numpy and zstandard"; exit 77; }

run 1 --make-base base --family glm4_moe --warmup-steps 3 --quiet || fail "make-base"
run 1 --make-base plain --family qwen3_moe --warmup-steps 1 --quiet || fail "make-base plain"
refused "--bias-rate: selection bias: expected a family that has one, found qwen3_moe" --model plain --out none --bias-rate 0.01 --steps 1
# With 2 bits the rollout routes as training would not, so that the two maps are two.
for case in "1 0.0625" "2 0.0625" "1 0"; do
    read -r ranks rate <<<"$case"
    out=out_${ranks}_$rate
    run "$ranks" --model base --out "$out" --steps 1 --prompts 4 --samples 4 --updates 1 --max-tokens 8 --lr 1e-3 --rollout-bits 2 \
        --bias-rate "$rate" --dump-codec raw --seed 7 --quiet >log 2>&1 || { cat log; fail "$case"; }
    "$python" "$source/tests/tools/check_bias.py" "$rate" base "$out/checkpoint" "$out/dump" ||
        fail "$case: other biases than the records' load makes"
done
# What the next rollout chooses by: a step more, of a run that resumes, as one that does not stop.
for steps in 1 2; do
    run 1 --model base --out resumed --resume --steps $steps --prompts 4 --samples 4 --updates 2 --max-tokens 8 --lr 1e-3 --bias-rate 0.0625 \
        --seed 7 --quiet >log 2>&1 || { cat log; fail "resume"; }
done
run 1 --model base --out whole --steps 2 --prompts 4 --samples 4 --updates 2 --max-tokens 8 --lr 1e-3 --bias-rate 0.0625 --seed 7 --quiet \
    >log 2>&1 || { cat log; fail "whole"; }
cmp resumed/checkpoint/model.safetensors whole/checkpoint/model.safetensors || fail "a run that resumes has other weights"
echo "all well"
