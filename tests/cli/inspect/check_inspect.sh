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
expect 0 "$waybill" inspect --rid golden-1 "$golden/good_u8.wbr"
out_has "rows of record golden-0"
expect 0 "$waybill" inspect --rid golden-2 "$golden/good_u8_valid.wbr"
out_has "that a whole record has"
expect 0 "$waybill" inspect "$golden/good_indexer.wbr"
out_has "indexers     up to 5 entries of an unknown number of tokens, of layers 0, 1, 2; layer 1 uses that of 0"
out_lacks "hash"
expect 0 "$waybill" inspect --rid golden-1 "$golden/good_indexer.wbr"
out_has "indexers     "
expect 0 "$waybill" inspect --rid golden-1 "$golden/good_u8.wbr"
out_lacks "indexers"
expect 1 "$waybill" inspect --rid golden-9 "$golden/good_u8.wbr"
err_has "golden-9"

size=$(stat -c %s "$golden/good_no_index.wbr")
head -c $((size - 1)) "$golden/good_no_index.wbr" >"$scratch/cut.wbr"
expect 0 "$waybill" inspect "$scratch/cut.wbr"
out_has "lost  "
finish "inspect says what a dump holds"
