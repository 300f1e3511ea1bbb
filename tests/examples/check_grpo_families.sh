#!/usr/bin/env bash
# check_grpo_families.sh - a few steps of waybill-grpo in each family, on two ranks under a random placement of experts, some of them in
# several slots: what the engine chose is what training followed, for every token, and verify finds the dump good, layers that a table
# routes by that table. Then in one that is made up, of experts without weights and a K of its own in each layer, which move meanwhile.
# usage: check_grpo_families.sh BUILD_DIR SOURCE_DIR [SEED]
. "$(dirname "$0")/grpo_checks.sh"
seeded "${3:-}"
python=$(command -v python3) || { echo "skipped: no python3"; exit 77; }

# Of L layers: 16 experts, 4 of them once more, in 20 slots, none twice on a rank of 10.
placement() {
    "$python" -c 'import json, random, sys
random.seed(int(sys.argv[1]))
def layer():
    experts = random.sample(range(16), 16)
    first, second = experts[:8], experts[8:]
    a, b = first + random.sample(second, 2), second + random.sample(first, 2)
    return random.sample(a, 10) + random.sample(b, 10)
json.dump({"physical_to_logical_map": [layer() for _ in range(int(sys.argv[2]))]}, open("placement.json", "w"))' "$RANDOM" "$1"
}

# train FAMILY arguments...: a base named after it, and what two steps from there say of routes.
train() {
    local family=$1 name found
    shift
    run 2 --model "$family" --out "${family}_out" --steps 2 --prompts 4 --samples 4 --updates 2 --max-tokens 8 --quiet --seed "$RANDOM" \
        "$@" >log 2>&1 || { cat log; fail "$family"; }
    for name in routed_differently routed_differently_updates; do
        found=$(field "${family}_out/metrics.jsonl" $name | sort -u)
        [ -n "$found" ] && ! echo "$found" | grep -qv '^0\.0*$' || fail "$family: $name: expected 0, found $found"
    done
}

for family in qwen3_moe olmoe qwen2_moe glm4_moe mixtral gpt_oss deepseek_v2 deepseek_v3 qwen3_next qwen3_5_moe deepseek_v4; do
    echo "== $family"
    run 2 --make-base "$family" --family "$family" --warmup-steps 3 --quiet || fail "$family: make-base"
    layers=4
    case $family in glm4_moe | deepseek_v3) layers=3 ;; esac # their first layer is dense
    placement $layers
    train "$family" --eplb static --redundant-experts 4 --init-placement placement.json
    "$waybill" verify --model "$family" "${family}_out/dump" >/dev/null || fail "$family: verify"
done

echo "== made_up"
grpo=$build/tests/waybill-grpo-made-up
run 2 --make-base made_up --family qwen3_moe --warmup-steps 3 --quiet || fail "made_up: make-base"
train made_up --eplb live --redundant-experts 4
"$waybill" verify made_up_out/dump >/dev/null || fail "made_up: verify"
"$waybill" stats made_up_out/dump | grep -q "^experts without weights: 16..17, [1-9]" || fail "made_up: no expert without weights was chosen"
echo "seed ${3:-$$} passed"
