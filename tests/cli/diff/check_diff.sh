#!/usr/bin/env bash
# `waybill diff`: known answers, and with `stats` the answers of numpy on dumps that are made up.
# usage: check_diff.sh BUILD_DIR SOURCE_DIR [SEED...]
seeds=("${@:3}")
. "$(dirname "$0")/../command_checks.sh"
check_help diff
expect 2 "$waybill" diff
err_has "A is needed"
expect 2 "$waybill" diff "$golden/good_u8.wbr"
err_has "B is needed"
expect 2 "$waybill" diff "$golden/good_u8.wbr" "$golden/good_u8.wbr" "$golden/good_u8.wbr"
err_has "one B at a time"
expect 1 "$waybill" diff "$golden/good_u8.wbr" "$scratch/nothing.wbr"
err_has "nothing.wbr"
expect 1 "$waybill" diff "$golden/good_u8.wbr" "$golden/good_u16.wbr"
err_has "A and B are of different models: model num_experts"
expect 1 "$waybill" diff "$golden/good_u8.wbr" "$golden/bad_trailer.wbr"
out_is_empty

# ---- the same dump
expect 0 "$waybill" diff "$golden/good_u8.wbr" "$golden/good_u8.wbr"
out_has "records  3 in both, 0 only in A, 0 only in B; 3 have the same tokens"
out_has "overlap  1.000000 of A's choices are B's; rows of the same experts 100.0000%, exact rows 100.0000%"
out_lacks "first"
err_is_empty
expect 0 "$waybill" diff --json "$golden/good_u8.wbr" "$golden/good_u8.wbr"
out_has '"first_token_difference":null,"first_difference":null'
"$waybill" diff --json "$golden/good_u8.wbr" "$golden/good_u8.wbr" >"$scratch/wanted"
"$waybill" diff --json <(cat "$golden/good_u8.wbr") - <"$golden/good_u8.wbr" >"$scratch/out" 2>"$scratch/err"
cmp -s "$scratch/wanted" "$scratch/out" || fault "a pipe and standard input: another answer"
# A file as standard input is read from its beginning each time, a pipe once.
"$waybill" diff --json - - <"$golden/good_u8.wbr" >"$scratch/out" 2>"$scratch/err"
cmp -s "$scratch/wanted" "$scratch/out" || fault "standard input twice: another answer"
cat "$golden/good_u8.wbr" | "$waybill" diff - - >"$scratch/out" 2>"$scratch/err"
[ "${PIPESTATUS[1]}" -eq 2 ] || fault "one pipe as A and B: expected exit code 2"
err_has "waybill diff: B: expected another input than A, found one pipe as both"

# ---- nothing in common: means of nothing are not zeros
expect 0 "$waybill" split "$golden/good_u8.wbr" "$scratch/apart" --records 1
apart=("$scratch"/apart/*.wbr)
expect 0 "$waybill" diff "${apart[0]}" "${apart[1]}"
out_has "overlap  - of A's choices are B's; rows of the same experts -, exact rows -"
expect 0 "$waybill" diff --json "${apart[0]}" "${apart[1]}"
out_has '"rows":0,"overlap":null,"same":null,"exact":null'

# ---- what indexers chose
expect 0 "$waybill" diff "$golden/good_indexer.wbr" "$golden/good_indexer.wbr"
out_has "indexers  "
out_lacks "first other choice"
expect 0 "$waybill" diff --json "$golden/good_indexer.wbr" "$golden/good_indexer.wbr"
out_has '"rows_only_a":0,"rows_only_b":0,"first_difference":null,"layers":[{"layer":'
expect 0 "$waybill" diff "$golden/good_u8.wbr" "$golden/good_u8.wbr"
out_lacks indexers

# ---- a dump of other tokens: nothing to compare, and no mean of nothing
expect 0 "$waybill" diff --json "$golden/good_u8.wbr" "$golden/good_sampling.wbr"
out_has '"records":{"both":3,"only_a":0,"only_b":0,"same_tokens":0}'
out_has '"rows":0,"overlap":null,"same":null,"exact":null'
out_has '"first_token_difference":{"rid":"golden-0","position":0,"a":'
out_has '"positions":[],"versions":[]'

# ---- a cut dump is read up to the cut
size=$(stat -c %s "$golden/good_no_index.wbr")
head -c $((size - 1)) "$golden/good_no_index.wbr" >"$scratch/cut.wbr"
expect 0 "$waybill" diff "$golden/good_no_index.wbr" "$scratch/cut.wbr"
out_has "records  2 in both, 1 only in A"
err_has "1 of 1 files cut"

# ---- numpy
for python in python3 /usr/bin/python3 ''; do
    [ -n "$python" ] || break
    "$python" -c 'import msgpack, numpy, zstandard' 2>/dev/null && break
done
[ -n "$python" ] || { echo "skip: no python3 with msgpack, numpy and zstandard"; exit $((faults > 0 ? 1 : 77)); }
# Few choices: experts whose load is a quarter, half, all or twice the mean.
expect 0 "$python" "$source/tests/tools/check_numbers.py" "$waybill" "$golden"/good_{u8,sampling}.wbr
[ ${#seeds[@]} -gt 0 ] || seeds=(1 2 3)
for seed in "${seeds[@]}"; do
    mkdir "$scratch/$seed"
    expect 0 "$build/tests/made_up_dumps" "$scratch/$seed" "$seed"
    expect 0 "$python" "$source/tests/tools/check_numbers.py" "$waybill" "$scratch/$seed"/{a,b}.wbr
done
finish "diff and stats say what numpy says, seeds ${seeds[*]}"
