#!/usr/bin/env bash
# `waybill inspect` on golden dumps, good, bad and cut. usage: check_inspect.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/../command_checks.sh"
check_dump_command inspect

expect 0 "$waybill" inspect "$golden/good_u16.wbr"
out_has "2 chosen of 300, u16: 8 bytes a row"
out_has "test_moe"
out_has "every file has its index"
expect 0 "$waybill" inspect "$golden/good_no_index.wbr"
out_has "1 of 1 files have no whole index"
expect 0 "$waybill" inspect "$golden/good_zstd.wbr"
out_has "zstd in 3"
expect 0 "$waybill" inspect "$golden/good_indexer_rate.wbr"
out_has "indexers     up to 5 entries of 3 tokens each, of layers 0, 1, 2; layer 1 uses that of 0"
out_has "indexer rows "
expect 0 "$waybill" inspect --rid golden-1 "$golden/good_u8.wbr"
out_has "rows of record golden-0"
expect 0 "$waybill" inspect --rid golden-2 "$golden/good_u8_valid.wbr"
out_has "that a whole record has"
expect 0 "$waybill" inspect "$golden/good_indexer.wbr"
out_has "indexers     up to 5 positions of an unknown number of tokens, of layers 0, 1, 2; layer 1 uses that of 0"
out_lacks "hash"
# Where a position is a token's there are no entries.
mkdir "$scratch/one"
sed 's/"compressed_sparse_attention": *[0-9]\+/"compressed_sparse_attention": 1/' \
    "$golden/../oracles/deepseek_v4_kinds/config.json" >"$scratch/one/config.json"
npy=$({ printf '\x93NUMPY\x01\x00v\x00%-117s\n' "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3, 2), }" &&
    printf '\1\2\3\4\5\6\7\0\2\1\4\3'; } | base64 -w 0)
echo '{"id": "a", "prompt_token_ids": [1, 2], "choices": [{"index": 0, "token_ids": [3], "finish_reason": "stop",
    "routed_experts": "'"$npy"'"}]}' | tr -d '\n' >"$scratch/answers.jsonl"
expect 0 "$waybill" convert --from vllm --model "$scratch/one" "$scratch/answers.jsonl" -o "$scratch/one.wbr"
expect 0 "$waybill" inspect "$scratch/one.wbr"
out_has "indexers     up to 64 positions, of layers 1"
expect 0 "$waybill" inspect --rid golden-1 "$golden/good_indexer.wbr"
out_has "indexers     "
expect 0 "$waybill" inspect --rid golden-1 "$golden/good_u8.wbr"
out_lacks "indexers"
expect 1 "$waybill" inspect --rid golden-9 "$golden/good_u8.wbr"
err_has "golden-9"

# The same sums as of its records; raw is a list of 5 positions of 4 bytes for each of two indexers.
for file in good_indexer_rate good_indexer_zstd good_indexer; do
    [ -e "$golden/$file.wbr" ] || continue
    expect 0 "$waybill" inspect --json "$golden/$file.wbr"
    cp "$scratch/out" "$scratch/sums"
    stored=0 rows=0
    for rid in golden-0 golden-1 golden-2; do
        expect 0 "$waybill" inspect --rid $rid "$golden/$file.wbr"
        read -r more bytes < <(sed -n 's/^indexers     \([0-9]*\) rows .* stored in \([0-9]*\) bytes/\1 \2/p' "$scratch/out")
        rows=$((rows + ${more:-0})) stored=$((stored + ${bytes:-0}))
        more='' bytes=''
    done
    python "import json, sys
s = json.load(open(sys.argv[1]))
assert s['indexer'] == {'rows': $rows, 'bytes': $stored, 'raw_bytes': $rows * 2 * 5 * 4}, s
assert 0 < s['indexer']['bytes'] < s['indexer']['raw_bytes'], s
assert s['routes']['raw_bytes'] == 4 * s['routes']['rows'] and s['records'] == 3 and s['lost_bytes'] == 0, s" \
        "$scratch/sums" || fault "inspect --json $file"
done
expect 0 "$waybill" inspect --json "$golden/good_u8.wbr"
out_lacks indexer
expect 2 "$waybill" inspect --json --rid golden-1 "$golden/good_u8.wbr"
err_has "cat --rid RID --json"

size=$(stat -c %s "$golden/good_no_index.wbr")
head -c $((size - 1)) "$golden/good_no_index.wbr" >"$scratch/cut.wbr"
expect 0 "$waybill" inspect "$scratch/cut.wbr"
out_has "lost  "
finish "inspect says what a dump holds"
