#!/usr/bin/env bash
# `waybill stats` as tables and as JSON. usage: check_stats.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/../command_checks.sh"
check_dump_command stats
expect 1 "$waybill" stats "$golden/bad_id_out_of_range.wbr"
err_has "expert 8"
out_is_empty

# good_u8 has 32 rows of 2 choices a layer
expect 0 "$waybill" stats "$golden/good_u8.wbr"
out_has "records 3, tokens 39, valid rows 32"
expect 0 "$waybill" stats --json "$golden/good_u8.wbr"
out_has '"choices":64'
expect 0 "$waybill" stats "$golden/good_sampling.wbr"
out_has "sampling of 3 records, kept tokens of 2 (mean 2."
expect 0 "$waybill" stats --json "$golden/good_sampling.wbr"
out_has '"sampling":{"records":3,"masks":2,"mean_kept":2.'
# Its first record alone, which has sampling without a mask: there is no mean of nothing.
head -c "$(grep -abo golden-1 "$golden/good_sampling.wbr" | head -n 1 | cut -d : -f 1)" "$golden/good_sampling.wbr" >"$scratch/no_mask.wbr"
expect 0 "$waybill" stats "$scratch/no_mask.wbr"
grep -qx "sampling of 1 records, kept tokens of 0" "$scratch/out" || fault "expected no mean without masked tokens"
expect 0 "$waybill" stats --json "$scratch/no_mask.wbr"
out_has '"sampling":{"records":1,"masks":0},'
# Options of a layer: 8 experts, the most chosen first; no balancedness without ranks.
expect 2 "$waybill" stats --ranks 9 "$golden/good_u8.wbr"
err_has "--ranks: expected at most the 8 experts, found 9"
out_is_empty
expect 2 "$waybill" stats --ranks 0 "$golden/good_u8.wbr"
err_has "--ranks: expected 1..65536, found 0"
expect 0 "$waybill" stats --json --top 64 "$golden/good_u8.wbr"
out_lacks balancedness
grep -qE '"top":\[[0-7](,[0-7]){7}\]' "$scratch/out" || fault "expected all 8 experts in the order of their counts"
# Without records no expert is chosen most.
head -c "$(($(grep -abo golden-0 "$golden/good_u8.wbr" | head -n 1 | cut -d : -f 1) - 6))" "$golden/good_u8.wbr" >"$scratch/none.wbr"
expect 0 "$waybill" stats --json --top 3 "$scratch/none.wbr"
out_has '"records":0,'
[ "$(grep -o '"top_expert":null,"top_share":0,' "$scratch/out" | wc -l)" = 2 ] || fault "expected no most chosen expert"
[ "$(grep -o '"top":\[\]' "$scratch/out" | wc -l)" = 2 ] || fault "expected no experts in a list of the most chosen ones"
expect 0 "$waybill" stats --top 3 "$scratch/none.wbr"
[ "$(grep -cE '^ +[12] +0 +0\.000 +0\.0000 +- +0\.00% +8$| 0  -$' "$scratch/out")" = 4 ] || fault "expected - for no expert"
expect 0 "$waybill" stats --ranks 8 --top 1 "$golden/good_u8.wbr"
out_has "balanced"
expect 0 "$waybill" stats "$golden/good_indexer.wbr"
out_has "what indexers chose, of"
expect 0 "$waybill" stats "$golden/good_u8.wbr"
out_lacks indexers
for file in "$golden"/good_*.wbr; do
    expect 0 "$waybill" stats --json "$file"
    python 'import json, sys
s = json.load(open(sys.argv[1]))
for layer in s["layers"]: assert sum(layer["counts"]) == layer["choices"], layer
assert s["valid_rows"] > 0' "$scratch/out" || fault "stats --json $file"
done
finish "stats counts valid rows"
