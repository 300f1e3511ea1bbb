#!/usr/bin/env bash
# check_grpo_eplb.sh - waybill-grpo with experts in several slots learns what it learns without: rewards and weights after 20 steps,
# a run that goes on elsewhere or with other replicas, and what is refused. usage: check_grpo_eplb.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/grpo_checks.sh"
for python in python3 /usr/bin/python3 ''; do
    [ -n "$python" ] || { echo "skipped: no python3"; exit 77; }
    "$python" -c 'import json' 2>/dev/null && break
done

# How far two runs went apart, for each tensor of f32, as a share of the way that the first one went from its base: the largest.
cat >apart.py <<'END'
import array, glob, json, math, os, struct, sys

def tensors(folder):
    found = {}
    for path in glob.glob(os.path.join(folder, "*.safetensors")):
        with open(path, "rb") as file:
            data = file.read()
        n = struct.unpack("<Q", data[:8])[0]
        for name, t in json.loads(data[8:8 + n]).items():
            if name != "__metadata__":
                assert t["dtype"] == "F32" and name not in found, name
                a, b = t["data_offsets"]
                found[name] = array.array("f", data[8 + n + a:8 + n + b])
    return found

base, a, b = (tensors(folder) for folder in sys.argv[1:4])
assert base.keys() == a.keys() == b.keys(), "other tensors"
worst = 0.0
for name, x in a.items():
    y, z = b[name], base[name]
    assert len(x) == len(y) == len(z), name
    apart = math.sqrt(sum((p - q) ** 2 for p, q in zip(x, y)))
    way = math.sqrt(sum((p - q) ** 2 for p, q in zip(x, z)))
    assert math.isfinite(apart) and math.isfinite(way), name
    if apart > 0:
        worst = max(worst, apart / way if way > 0 else math.inf)
print("%.3g" % worst)
END
apart() { "$python" apart.py base "$1/checkpoint" "$2/checkpoint" || fail "the weights of $1 and $2"; }
same_bits() { [ "$(apart "$1" "$2")" = 0 ] || fail "$1 and $2 have other weights"; }
rewards() { field "$1/metrics.jsonl" reward; }

run 2 --make-base base --warmup-steps 40 --quiet || fail "make-base"
common=(--steps 20 --prompts 8 --samples 4 --updates 2 --lr 3e-4 --max-tokens 4 --seed 5 --no-dump --checkpoint-every 0 --quiet)

echo "== with replicas: rewards and weights after 20 steps, equal to the order of summation"
for ranks in 1 2 4; do
    run $ranks --model base --out "off$ranks" "${common[@]}" >/dev/null || fail "off on $ranks ranks"
done
replicas=(--eplb static --redundant-experts)
run 2 --model base --out two "${common[@]}" "${replicas[@]}" 5 >two.report || fail "5 replicas on 2 ranks"
run 4 --model base --out four "${common[@]}" "${replicas[@]}" 24 >/dev/null || fail "24 replicas on 4 ranks"
run 2 --model base --out planned2 "${common[@]}" --eplb planned >planned2.report || fail "planned on 2 ranks"
run 4 --model base --out planned4 "${common[@]}" --eplb planned --redundant-experts 8 >/dev/null || fail "planned on 4 ranks"
live=(--eplb live --rebalance-every 10)
run 2 --model base --out live2 "${common[@]}" "${live[@]}" >live2.report || fail "live on 2 ranks"
run 4 --model base --out live4 "${common[@]}" "${live[@]}" --redundant-experts 8 --layers-per-chunk 3 >/dev/null || fail "live on 4 ranks"
for pair in "off2 two" "off4 four" "off2 planned2" "off4 planned4" "off2 live2" "off4 live4"; do
    read -r off on <<<"$pair"
    diff <(rewards "$off") <(rewards "$on") || fail "$on: other rewards than without replicas"
    [ "$(rewards "$on" | wc -l)" = 20 ] && [ "$(rewards "$on" | sort -u | wc -l)" -gt 3 ] || fail "$on: the rewards say nothing"
    found=$(apart "$off" "$on")
    echo "$on: apart by $found of the way"
    awk -v f="$found" 'BEGIN { exit !(f < 1e-3) }' || fail "$on: weights are apart by $found"
done
diff <(rewards off1) <(rewards off4) || fail "1 and 4 ranks"
same_bits off2 live2 # no replicas: sums have one order wherever experts are
mean() { field "$1/metrics.jsonl" "$2" | awk '{ s += $1 } END { print s / NR }'; }
echo "balancedness in training: off $(mean off4 balancedness_training), static $(mean four balancedness_training), planned $(mean planned4 balancedness_training)"
echo "of the rollout: off $(mean off4 balancedness), static $(mean four balancedness), live $(mean live4 balancedness)"
awk -v p="$(mean live4 balancedness)" -v o="$(mean off4 balancedness)" 'BEGIN { exit !(p > o) }' || fail "live is not more even"
for out in live2 live4; do
    [ "$(field $out/metrics.jsonl epoch | tail -n 1)" -gt 0 ] || fail "$out: no expert has moved"
    field $out/metrics.jsonl epoch | sort -nc || fail "$out: epochs do not rise"
    awk -v b="$(mean $out moved_bytes)" -v s="$(mean $out seconds_rebalance)" 'BEGIN { exit !(b > 0 && s > 0) }' || fail "$out: what a rebalance cost"
    # At the start all layers have the same map.
    "$python" -c 'import json, sys; m = json.load(open(sys.argv[1]))["physical_to_logical_map"]; sys.exit(all(x == m[0] for x in m))' \
        $out/checkpoint/trainer/placement.json || fail "$out: training has not followed"
done
awk -v p="$(mean planned4 balancedness_training)" -v o="$(mean off4 balancedness_training)" 'BEGIN { exit !(p > o + (1 - o) / 2) }' || fail "planned is not more even"
[ "$(field planned4/metrics.jsonl epoch | tr '\n' ' ')" = "$(seq -s ' ' 20) " ] && [ "$(field four/metrics.jsonl epoch | sort -u)" = 0 ] || fail "epochs"
[ "$(field planned4/metrics.jsonl moved_bytes | sort -u | wc -l)" -gt 3 ] && [ "$(field four/metrics.jsonl moved_bytes | sort -u)" = 0.0 ] || fail "moved bytes"
[ "$(field planned4/metrics.jsonl planned_updates | sort -u)" = 1.0 ] || fail "planned: updates without a plan"

# The report at the end has the sums over the steps, and the last epoch.
for out in live2 planned2; do
    sums=$(paste <(field $out/metrics.jsonl moved_bytes) <(field $out/metrics.jsonl seconds_rebalance) <(field $out/metrics.jsonl epoch) |
        awk '{ b += $1; s += $2; e = $3 } END { printf "experts moved %.3f MB, %.3f s waited, epoch %d", b / 1e6, s, e }')
    grep -qxF -- "$sums" $out.report || { cat $out.report; fail "$out: no '$sums' in the report"; }
done
if grep -q "experts moved" two.report; then fail "static: the report speaks of moves"; fi

echo "== without replicas nothing depends on the placement"
"$python" -c 'import json, random
random.seed(3)
maps = [random.sample(range(16), 16) for _ in range(4)]
json.dump({"physical_to_logical_map": maps}, open("shuffled.json", "w"))'
run 4 --model base --out shuffled "${common[@]}" --eplb static --init-placement shuffled.json >/dev/null || fail "--init-placement"
same_bits off4 shuffled
run 1 --model base --out alone "${common[@]}" --eplb static >/dev/null || fail "static on one rank"
same_bits off1 alone

echo "== a run goes on where it was, bit for bit, and with other replicas"
[ -e two/checkpoint/trainer/placement.json ] && [ ! -e off2/checkpoint/trainer/placement.json ] || fail "placements of checkpoints"
run 2 --model base --out halves "${common[@]}" "${replicas[@]}" 5 --steps 9 >/dev/null || fail "the first half"
cp -r halves others && cp -r halves fewer && cp -r halves lost
run 2 --model base --out planned_halves "${common[@]}" --eplb planned --steps 9 >/dev/null || fail "planned: the first half"
run 2 --out planned_halves --resume --steps 20 --quiet >/dev/null || fail "planned: the second half"
same_bits planned2 planned_halves
[ "$(field planned_halves/metrics.jsonl epoch | tr '\n' ' ')" = "$(seq -s ' ' 20) " ] || fail "planned: a resumed run counts epochs anew"
run 4 --model base --out live_halves "${common[@]}" "${live[@]}" --redundant-experts 8 --steps 9 >/dev/null || fail "live: the first half"
cp live_halves/checkpoint/trainer/placement.json before.json
run 4 --out live_halves --resume --steps 10 --rebalance-every 100000 --quiet >/dev/null || fail "live: one step more"
cmp before.json live_halves/checkpoint/trainer/placement.json || fail "live: a resumed run begins elsewhere"
run 3 --out live_halves --resume --steps 20 --rebalance-every 10 --quiet >/dev/null 2>&1 || fail "live: the rest on 3 ranks"
field live_halves/metrics.jsonl epoch | sort -nc || fail "live: epochs of a resumed run do not rise"
diff <(rewards off4) <(rewards live_halves) || fail "live: other rewards in two parts"
run 2 --model base --out halves --resume --steps 20 --quiet >/dev/null || fail "the second half"
same_bits two halves
cmp two/checkpoint/trainer/placement.json halves/checkpoint/trainer/placement.json || fail "a resumed run has other places"
[ "$(wc -l <halves/metrics.jsonl)" = 20 ] || fail "steps of the two halves"
run 4 --out others --resume --steps 20 --redundant-experts 13 >/dev/null 2>log || fail "on 4 ranks, with 13 replicas"
grep -q -- "--redundant-experts: 5 in the checkpoint, now 13" log && grep -q "experts are placed anew" log || { cat log; fail "other replicas are not said"; }
rm lost/checkpoint/trainer/placement.json
run 2 --out lost --resume --steps 10 --quiet >/dev/null 2>log || fail "a placement that was lost"
grep -q "lost/checkpoint/trainer/placement.json: expected the run's placement, found none: experts are placed anew" log || { cat log; fail "a lost placement is not said"; }
run 2 --out off_first --model base "${common[@]}" --steps 1 >/dev/null || fail "off at first"
run 2 --out off_first --resume --steps 2 --eplb static --quiet >/dev/null 2>log || fail "static afterwards"
if grep -q "placed anew" log; then cat log; fail "a placement that never was is missed"; fi
run 1 --out fewer --resume --steps 20 >/dev/null 2>log || fail "on 1 rank"
grep -q -- "--redundant-experts: 5 in the checkpoint, 0 on 1 ranks" log || { cat log; fail "no replicas on one rank is not said"; }
cp -r two again
run 2 --out again --resume --steps 21 --eplb off >/dev/null 2>log || { cat log; fail "on with --eplb off alone"; }
grep -q -- "--redundant-experts: 5 in .*, 0 under --eplb off" log || { cat log; fail "no replicas under --eplb off is not said"; }
for out in others fewer; do
    diff <(rewards two) <(rewards $out) || fail "$out: other rewards"
    found=$(apart two $out)
    awk -v f="$found" 'BEGIN { exit !(f < 1e-3) }' || fail "$out: weights are apart by $found"
done

echo "== what is refused"
refused "--eplb always: expected one of off|static|live|planned" --model base --out bad --eplb always
refused "--redundant-experts -1: expected an integer from 0" --model base --out bad --eplb static --redundant-experts -1
refused "--redundant-experts 3: expected 0 under --eplb off" --model base --out bad --redundant-experts 3
refused "--init-placement shuffled.json: expected none under --eplb off" --model base --out bad --init-placement shuffled.json
refused "--rebalance-every: expected --eplb live beside it" --model base --out bad --eplb static --rebalance-every 5
refused "--layers-per-chunk: expected --eplb live beside it" --model base --out bad --layers-per-chunk 1
refused "--layers-per-chunk 0: expected an integer from 1" --model base --out bad "${live[@]}" --layers-per-chunk 0
refused "--rebalance-every 0: expected an integer from 1" --model base --out bad --eplb live --rebalance-every 0
refused "--redundant-experts 17: expected at most 16 for 16 experts on 2 ranks" --model base --out bad "${replicas[@]}" 17
refused "--init-placement: shuffled.json" --model base --out bad "${replicas[@]}" 2 --init-placement shuffled.json
refused "--init-placement: nowhere.json" --model base --out bad --eplb static --init-placement nowhere.json
echo "all well"
