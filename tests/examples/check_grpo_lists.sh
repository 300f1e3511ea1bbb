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
# Experts that move while the rollout generates, and guesses at tokens; and a run that stopped on the way.
run 2 --out out_live "${common[@]}" --eplb live --redundant-experts 2 --rebalance-every 5 --max-drafts 4 --replay-indexer --quiet >log 2>&1 ||
    { cat log; fail "out_live"; }
"$waybill" verify --model base out_live/dump >/dev/null || fail "out_live: verify"
run 2 --out halves "${common[@]}" --steps 1 --eplb off --replay-indexer --quiet >log 2>&1 || { cat log; fail "first half"; }
run 2 --out halves "${common[@]}" --eplb off --replay-indexer --resume --quiet >log 2>&1 || { cat log; fail "second half"; }
diff -r out_2_off/checkpoint halves/checkpoint || fail "a resumed run's checkpoint differs"
for file in out_2_off/dump/*.wbr; do
    cmp <("$waybill" cat --json "$file") <("$waybill" cat --json "halves/dump/${file##*/}") || fail "a resumed run's dump differs: $file"
done
# What the first training forward chose is followed by the updates, and compared with the rollout.
run 2 --out record "${common[@]}" --replay record --missing native --replay-indexer --quiet >record.log 2>&1 ||
    { cat record.log; fail "record"; }
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
for line in steps("out_live"):
    assert line["fidelity"]["listed_differently"] == 0 == line["fidelity"]["listed_fallback_share"], line
    assert line["fidelity"]["native_listed_differ"] > 0.05, line
# Experts have moved by the end: in the first step it may be that no move pays yet.
assert line["experts"]["epoch"] > 0, line
assert sum(line["drafts"] for line in steps("out_live")) > 0
for line in steps("record"):
    on, off = line["fidelity"], line["fidelity_replay_off"]
    # Such a replay has no records that lack anything; its forward is that of free routing.
    assert on["listed_fallback_share"] == 0 == on["native_listed_differ"], on
    assert on["listed_differently"] == off["listed_differently"] > 0.05 and on["kl_k3"] == off["kl_k3"], (on, off)
without = steps("without")
for a in without:
    assert a["fidelity"]["listed_differently"] == 0 == a["fidelity"]["native_listed_differ"], a
# Where training looks is seen in its log-probabilities, beyond what rank counts may differ by. Not which way: most
# of the divergence is of the rounded weights themselves.
for a, b in zip(without, runs[0]):
    assert abs(a["fidelity"]["kl_k3"] - b["fidelity"]["kl_k3"]) > 1e-6, (a, b)
END

# What indexers chose is in the dump, and in a plan of memory.
bytes() { "$waybill" verify "$1/dump" | sed 's/.*, \([0-9]*\) bytes.*/\1/'; }
[ "$(bytes out_2_off)" -gt "$(bytes without)" ] || fail "a dump with what indexers chose is no larger"
plan() { run 1 --plan-memory 2 --model base "$@"; }
[ "$(plan --replay-indexer | grep -c 'indexer lists')" = 3 ] || fail "plan: expected three parts of indexer lists"
# What a plan of replay keeps of rows that choose comes to it.
of_replay() { plan "${common[@]:2}" --replay-indexer "$@" | sed -n 's/^  step  *replay .* GiB  *\([0-9]*\)$/\1/p'; }
[ "$(of_replay --replay record)" -gt "$(of_replay)" ] || fail "plan: a replay whose rows choose takes no more"
# What the plan says a rank's device takes is what a run took, within 1 %.
planned=$(run 1 --plan-memory 2 "${common[@]}" --replay record --missing native --replay-indexer | sed -n '/^device/,/^$/s/.*this rank  .* GiB  *\([0-9]*\)$/\1/p')
found=$(sed -n 's/^memory of a rank.*device.*(\([0-9]*\) bytes).*process.*/\1/p' record.log)
awk -v p="$planned" -v f="$found" 'BEGIN { exit !(f > 0 && p >= 0.99 * f && p <= 1.01 * f) }' || fail "plan: $planned bytes, a run took $found"
plan | grep -q 'indexer lists' && fail "plan: indexer lists without --replay-indexer"

run 1 --make-base plain --warmup-steps 1 --quiet || fail "make-base"
refused "--replay-indexer: expected a model whose layers have indexers, found one that has none" --model plain --out no --replay-indexer
refused "--replay-indexer: expected a model whose layers have indexers" --model plain --plan-memory 2 --replay-indexer
echo "seed ${3:-$$} passed"
