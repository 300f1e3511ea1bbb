#!/usr/bin/env bash
# check_grpo_distribution.sh - one distribution, as a user runs it: with an f32 rollout the first forward has the rollout's
# log-probabilities bit for bit, whatever temperature, top-k and top-p; the dump says how it was sampled.
# usage: check_grpo_distribution.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/grpo_checks.sh"

run 1 --make-base base --warmup-steps 20 --quiet || fail "make-base"
number=0
while read -r arguments; do
    out=run$((number += 1))
    # shellcheck disable=SC2086 # several arguments
    run 2 --model base --out "$out" --steps 2 --prompts 4 --samples 4 --updates 2 --lr 3e-4 --rollout-dtype f32 --kl-coef 0.01 \
        --compare-every 0 --seed 5 --quiet $arguments >/dev/null </dev/null || fail "$arguments"
    grep -o '"\(kl_k1\|kl_k3\|ratio_outside\)":[^,}]*' "$out/metrics.jsonl" >found
    [ "$(wc -l <found)" = 6 ] && ! grep -qv ':-\?0\.0*$' found || { cat "$out/metrics.jsonl"; fail "$arguments: KL of the first forward"; }
    "$waybill" verify "$out/dump" >/dev/null || fail "$arguments: verify"
done <<'END'
--temperature 1
--temperature 0.7 --top-k 4
--temperature 1.3 --top-k 6 --top-p 0.9
--top-p 0.8
END
"$waybill" cat run2/dump --tokens >cat || fail "cat"
[ "$(grep -c '"sampling":{"temperature":0.699999988,"top_k":4,"top_p":1},.*"sampling_logprobs":\[.*"sampling_mask":\[\[' cat)" = 32 ] ||
    fail "the dump does not say how it was sampled"
"$waybill" cat run1/dump --tokens | grep -q sampling_mask && fail "a mask of what has no limit"
echo "all well"
