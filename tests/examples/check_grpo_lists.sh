#!/usr/bin/env bash
# check_grpo_lists.sh - --replay-indexer: the rollout's weights are rounded, so that its indexers choose other entries than training's
# would; training looks where the rollout looked, for every token, with and without a plan, on one rank and on two, to the same numbers.
# usage: check_grpo_lists.sh BUILD_DIR SOURCE_DIR [SEED]
. "$(dirname "$0")/grpo_checks.sh"
seeded "${3:-}"
python=$(command -v python3) || { echo "skipped: no python3"; exit 77; }

run 1 --make-base base --family deepseek_v4 --warmup-steps 3 --quiet || fail "make-base"
# One entry of two or three, where a sum has so few tokens.
sed -i 's/"index_topk": *2/"index_topk": 1/' base/config.json && grep -q '"index_topk": 1' base/config.json || fail "index_topk"

common=(--model base --steps 2 --prompts 8 --samples 4 --updates 2 --max-tokens 8 --seed "$RANDOM" --rollout-bits 2 --temperature 2
        --stop-token none --compare-every 1)
for ranks in 1 2; do
    for eplb in off planned; do
        out=out_${ranks}_$eplb
        run $ranks --out "$out" "${common[@]}" --eplb $eplb --replay-indexer >log 2>&1 || { cat log; fail "$out"; }
        grep -q 'looked differently 0.0 %' log || { cat log; fail "$out: no 'looked differently 0.0 %'"; }
        "$waybill" verify --model base "$out/dump" >/dev/null || fail "$out: verify"
    done
done
run 2 --out without "${common[@]}" --quiet >log 2>&1 || { cat log; fail "without"; }

"$python" - <<'END' || fail "the numbers of the runs"
import json
def steps(run):
    return [json.loads(line) for line in open(run + "/metrics.jsonl")]
runs = [steps(f"out_{r}_{e}") for r in (1, 2) for e in ("off", "planned")]
for lines in runs:
    for line in lines:
        on, off = line["fidelity"], line["fidelity_replay_off"]
        assert on["listed_differently"] == 0 and on["listed_fallback_share"] == 0, on
        assert on["routed_differently"] == 0 and line["routed_differently_updates"] == 0, line
        assert on["native_listed_differ"] > 0.05 and off["listed_differently"] > 0.05, (on, off)
    for a, b in zip(lines, runs[0]):
        for key in ("native_listed_differ", "kl_k3"):
            assert abs(a["fidelity"][key] - b["fidelity"][key]) <= 1e-9, (key, a, b)
for a, b in zip(steps("without"), runs[0]):
    assert a["fidelity"]["listed_differently"] == 0 == a["fidelity"]["native_listed_differ"], a
    # Where training looks is seen in its log-probabilities.
    assert a["fidelity"]["kl_k3"] != b["fidelity"]["kl_k3"], a
END

# What indexers chose is in the dump, and in a plan of memory.
bytes() { "$waybill" verify "$1/dump" | sed 's/.*, \([0-9]*\) bytes.*/\1/'; }
[ "$(bytes out_2_off)" -gt "$(bytes without)" ] || fail "a dump with what indexers chose is no larger"
plan() { run 1 --plan-memory 2 --model base "$@"; }
[ "$(plan --replay-indexer | grep -c 'indexer lists')" = 3 ] || fail "plan: expected three parts of indexer lists"
plan | grep -q 'indexer lists' && fail "plan: indexer lists without --replay-indexer"

run 1 --make-base plain --warmup-steps 1 --quiet || fail "make-base"
refused "--replay-indexer: expected a model whose layers have indexers, found qwen3_moe" --model plain --out no --replay-indexer
echo "seed ${3:-$$} passed"
