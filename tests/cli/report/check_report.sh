#!/usr/bin/env bash
# `waybill report`: the page of a small dump to the byte, pages of others against what the other commands say, what is refused.
# usage: check_report.sh BUILD_DIR SOURCE_DIR [SEED...]
seeds=("${@:3}")
. "$(dirname "$0")/../command_checks.sh"
check_help report
page=$scratch/page.html
good=$golden/good_u8.wbr
expect 2 "$waybill" report -o "$page"
err_has "DUMP is needed"
expect 2 "$waybill" report "$good"
err_has "--output is needed"
expect 2 "$waybill" report "$good" "$good" -o "$page"
err_has "one DUMP at a time"
for max in 1 1025; do
    expect 2 "$waybill" report --max-ranks $max "$good" -o "$page"
    err_has "--max-ranks: expected 2..1024, found $max"
done
cp "$good" "$scratch/run.wbr"
expect 2 "$waybill" report "$scratch/run.wbr" --force -o "$scratch/run.wbr"
err_has "--output: expected a file that is not read"
expect 2 "$waybill" report "$good" --against "$scratch/run.wbr" --force -o "$scratch/run.wbr"
err_has "--output: expected a file that is not read"
cmp -s "$good" "$scratch/run.wbr" || fault "the dump was written over"
expect 1 "$waybill" report "$scratch/nothing.wbr" -o "$page"
err_has "nothing.wbr"
expect 1 "$waybill" report "$golden/bad_id_out_of_range.wbr" -o "$page"
err_has "expert 8"
expect 1 "$waybill" report "$good" --against "$golden/good_u16.wbr" -o "$page"
err_has "A and B are of different models"
expect 1 "$waybill" report "$good" --metrics "$scratch/no.jsonl" -o "$page"
err_has "no.jsonl"
[ ! -e "$page" ] || fault "a page of what was refused"
[ -z "$(find "$scratch" -name '*.tmp')" ] || fault "a temporary file is left"

# ---- metrics that are none, and a last line that is still being written
for line in '{"step":1' '[1]' '{"reward":1}' '{"step":1,"reward":"much"}' '{"step":1,"fidelity":3}'; do
    printf '{"step":0,"reward":1}\n%s\n' "$line" >"$scratch/metrics.jsonl"
    expect 1 "$waybill" report "$scratch/run.wbr" -o "$page"
    err_has "$scratch/metrics.jsonl: line 2"
done
printf '{"step":0,"reward":1}\n{"step":1,"rew' >"$scratch/metrics.jsonl"
expect 0 "$waybill" report "$scratch/run.wbr" -o "$page"
out_is_empty
err_is_empty
grep -q '>Reward<' "$page" || fault "the metrics.jsonl beside a file was not read"
! grep -q '>Drift' "$page" || fault "drift of one version"
! grep -q '>Mismatch' "$page" || fault "a mismatch of no second dump"

# ---- what is there stays without --force; standard output and a pipe
cp "$page" "$scratch/wanted"
expect 1 "$waybill" report "$scratch/run.wbr" -o "$page"
err_has "expected a path where nothing is, found a file (--force replaces it)"
expect 0 "$waybill" report "$scratch/run.wbr" --force -o "$page"
cmp -s "$scratch/wanted" "$page" || fault "the same dump gives another page"
expect 0 "$waybill" report "$scratch/run.wbr" --output /dev/stdout
cmp -s "$scratch/wanted" "$scratch/out" || fault "standard output: another page"
cat "$scratch/run.wbr" | "$waybill" report - --metrics "$scratch/metrics.jsonl" -o /dev/stdout >"$scratch/out" 2>"$scratch/err" ||
    fault "report of a pipe"
cmp -s <(sed "s|$scratch/run.wbr|/dev/stdin|" "$scratch/wanted") "$scratch/out" || fault "a pipe: another page"
if [ -w /dev/full ]; then
    expect 1 "$waybill" report "$scratch/run.wbr" -o /dev/full
    err_has "/dev/full"
fi
# Beside OUT/dump as waybill-grpo writes it, with names that are markup.
odd="$scratch/a<b>&\"c'"$'\xff\x01'
mkdir -p "$odd/dump"
cp "$golden"/versions/*.wbr "$odd/dump"
cp "$source/tests/golden/report/metrics.jsonl" "$odd"
expect 0 "$waybill" report "$odd/dump" --against "$odd/dump/part-0.wbr" -o "$scratch/odd.html"
grep -q '>Reward<' "$scratch/odd.html" || fault "the metrics.jsonl above a directory was not read"
grep -qF "a&lt;b&gt;&amp;&quot;c'" "$scratch/odd.html" || fault "a path is not escaped"
# A run of many steps, of which few are compared with free routing: dots where no line reaches, and nowhere else.
for step in $(seq 0 400); do
    off=
    [ $((step % 100)) -ne 0 ] || off=',"fidelity_replay_off":{"kl_k3":0.5}'
    echo "{\"step\":$step,\"reward\":$((step % 7)),\"fidelity\":{\"kl_k3\":0.25}$off}"
done >"$scratch/many.jsonl"
expect 0 "$waybill" report "$good" --metrics "$scratch/many.jsonl" -o "$scratch/many.html"
[ "$(grep -c '<title>step [0-9]*, k3, replay off: 0.5<' "$scratch/many.html")" -eq 5 ] || fault "expected a dot for each step compared"
[ "$(grep -c '<title>step [0-9]*, k3: ' "$scratch/many.html")" -eq 0 ] || fault "a dot on a line of many steps"
# Without a valid row there is nothing to solve and no drift.
expect 0 "$waybill" report "$golden/unfed" -o "$scratch/unfed.html"

# ---- the page itself
(cd "$golden" && "$waybill" report versions --against versions/part-1.wbr --metrics ../report/metrics.jsonl -o /dev/stdout) |
    sed 's/content="waybill [^"]*"/content="waybill"/' >"$scratch/out" 2>"$scratch/err"
diff "$source/tests/golden/report/versions.html" "$scratch/out" >"$scratch/err" || fault "another page than tests/golden/report/versions.html"

command -v python3 >/dev/null || { echo "skip: no python3 to look at pages"; exit $((faults > 0 ? 1 : 77)); }
# look PAGE DUMP ARGUMENT... : the page is well-formed and its numbers are right
look() { expect 0 python3 "$source/tests/tools/check_report.py" "$waybill" "$@"; }
look "$scratch/many.html" "$good" --metrics "$scratch/many.jsonl"
look "$scratch/unfed.html" "$golden/unfed"
look "$scratch/odd.html" "$odd/dump" --against "$odd/dump/part-0.wbr" --metrics "$odd/metrics.jsonl"
expect 0 "$waybill" report "$golden/good_indexer.wbr" --against "$golden/good_indexer.wbr" --max-ranks 4 -o "$scratch/indexer.html"
look "$scratch/indexer.html" "$golden/good_indexer.wbr" --against "$golden/good_indexer.wbr" --max-ranks 4
for dump in good_u16.wbr good_sampling.wbr good_indexer_zstd.wbr files; do
    expect 0 "$waybill" report "$golden/$dump" --max-ranks 4 -o "$scratch/$dump.html"
    look "$scratch/$dump.html" "$golden/$dump" --max-ranks 4
done
# More experts than the heat map has cells, and a load that wanders over four weight versions.
mkdir "$scratch/wide"
sed 's/"num_experts": 8/"num_experts": 1030/' "$source/tests/golden/import/narrow/config.json" >"$scratch/wide/config.json"
python3 -c 'import json, random
random.seed(7)
for i in range(40):
    version = i % 4
    draw = lambda: (int(random.expovariate(0.02)) + 90 * version) % 1030
    rows = [[[draw() * 2 % 1030, draw() * 2 % 1030 + 1] for _ in range(3)] for _ in range(19)]
    print(json.dumps({"rid": f"r{i}", "prompt_token_ids": list(range(8)), "token_ids": list(range(i, i + 12)),
                      "weight_version": 10 + version * version, "moe_topk_indices": rows}))' >"$scratch/wide/answers.jsonl"
expect 0 "$waybill" convert --from megatron --model "$scratch/wide" "$scratch/wide/answers.jsonl" -o "$scratch/wide/run.wbr"
expect 0 "$waybill" report "$scratch/wide/run.wbr" --max-ranks 2 -o "$scratch/wide/page.html"
look "$scratch/wide/page.html" "$scratch/wide/run.wbr" --max-ranks 2
grep -q 'A cell shows the most chosen of 3 experts' "$scratch/wide/page.html" || fault "1030 experts: expected 3 in a cell"
grep -q '<th scope="row">19</th>' "$scratch/wide/page.html" || fault "expected a row of weight version 19"
[ ${#seeds[@]} -gt 0 ] || seeds=(1 2)
for seed in "${seeds[@]}"; do
    mkdir "$scratch/$seed"
    expect 0 "$build/tests/made_up_dumps" "$scratch/$seed" "$seed"
    a=$scratch/$seed/a.wbr b=$scratch/$seed/b.wbr
    expect 0 "$waybill" report "$a" --against "$b" --max-ranks 8 -o "$scratch/$seed/page.html"
    look "$scratch/$seed/page.html" "$a" --against "$b" --max-ranks 8
done
finish "a report says what stats, diff, cat and eplb say, seeds ${seeds[*]}"
