#!/usr/bin/env bash
# check_grpo_drafts.sh - waybill-grpo with drafts, of an MTP layer and of a request's own text: the samples are those without, training
# follows each of their rows and has the rollout's log-probabilities, and some drafts are right, also while experts move. Tokens of
# prompts are fed or taken over.
# usage: check_grpo_drafts.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/grpo_checks.sh"

run 1 --make-base text --warmup-steps 20 --quiet || fail "make-base"
ln -s "$source/tests/golden/oracles/deepseek_v3_mtp" mtp
for family in qwen3_next qwen3_5_moe; do ln -s "$source/tests/golden/oracles/${family}_mtp" $family; done
# samples OUT: what was generated, whichever rank did
samples() { "$waybill" cat "$1/dump" --tokens --json | sort; }
# numbers OUT: of metrics.jsonl what does not depend on time and drafts
numbers() { sed -E 's/"(seconds_[a-z]*|prefill_tokens|preemptions|drafts|accepted_drafts)":[^,}]*//g' "$1/metrics.jsonl"; }
total() { awk '{ n += $1 } END { print n + 0 }'; }
# counted OUT: the rollout's tokens of prompts are those of the samples
counted() {
    local prompts fed taken
    prompts=$(samples "$1" | sed 's/.*"prompt_len":\([0-9]*\).*/\1/' | total)
    fed=$(field "$1/metrics.jsonl" prefill_tokens | total) taken=$(field "$1/metrics.jsonl" taken_over_tokens | total)
    [ "$(field "$1/metrics.jsonl" preemptions | total)" = 0 ] && [ "$taken" -gt 0 ] && [ $((fed + taken)) = "$prompts" ] ||
        fail "$1: $prompts tokens of prompts, of which $fed were fed and $taken taken over"
}

# sampled MODEL RANKS DRAFTS STEPS OPTION...: runs with and without
sampled() {
    local out=$1_$2_$3
    for drafts in 0 "$3"; do
        run "$2" --model "$1" --out "${out}_of_$drafts" --steps "$4" --prompts 6 --samples 4 --updates 2 --max-tokens 24 --lr 3e-4 \
            --block-size 2 --stop-token none --seed 5 --max-drafts "$drafts" "${@:5}" >log 2>&1 || { cat log; fail "$1 on $2 ranks, $drafts drafts"; }
    done
    grep -q 'drafts accepted [0-9]* %' log || { cat log; fail "$out: no acceptance is printed"; }
    cmp <(samples "${out}_of_0") <(samples "${out}_of_$3") || fail "$out: other samples than without drafts"
    counted "${out}_of_0"
    for name in routed_differently routed_differently_updates kl_k1 kl_k3; do
        found=$(field "${out}_of_$3/metrics.jsonl" $name | sort -u)
        [ -n "$found" ] && ! echo "$found" | grep -qv '^-\?0\.0*$' || fail "$out: $name: expected 0, found $found"
    done
    for name in drafts accepted_drafts; do
        field "${out}_of_$3/metrics.jsonl" $name | grep -q '^0\.0*$' && fail "$out: $name: expected some in each step"
        field "${out}_of_0/metrics.jsonl" $name | grep -qv '^0\.0*$' && fail "$out: $name: expected none without"
    done
    echo "$out: $(field "${out}_of_$3/metrics.jsonl" accepted_drafts | tr '\n' ' ')of $(field "${out}_of_$3/metrics.jsonl" drafts | tr '\n' ' ')drafts"
}
sampled text 1 4 2
cmp <(numbers text_1_4_of_0) <(numbers text_1_4_of_4) || fail "other numbers than without drafts"
# A run that resumes goes on with the drafts that it had, though no result depends on them.
run 1 --model text --out text_1_4_of_4 --steps 3 --resume >log 2>&1 || { cat log; fail "resume"; }
field text_1_4_of_4/metrics.jsonl drafts | tail -n 1 | grep -q '^0\.0*$' && fail "a resumed run has lost --max-drafts"
sampled mtp 1 3 2
cmp <(numbers mtp_1_3_of_0) <(numbers mtp_1_3_of_3) || fail "other numbers than without drafts"
# On more ranks another one may take a group, and sums go in another order from the first update on.
sampled mtp 2 3 1
for family in qwen3_next qwen3_5_moe; do
    sampled $family 2 3 1 --samples 8 --max-tokens 40 --eplb live --redundant-experts 2 --rebalance-every 1 --layers-per-chunk 1
done
# When a solution is there hangs on the machine's load: that there is one in none of four runs is not likely.
cat qwen3_*_2_3_of_*/metrics.jsonl >four.jsonl
field four.jsonl moved_bytes | grep -qv '^0\.0*$' || fail "no expert moved in any of four runs"
echo "all well"
