#!/usr/bin/env bash
# `waybill cat`: records as JSON lines. usage: check_cat.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/../command_checks.sh"
check_dump_command cat
expect 2 "$waybill" cat --limit many "$golden/good_u8.wbr"
err_has "--limit: expected a number, found many"
expect 2 "$waybill" cat --limit
err_has "--limit needs an argument"
expect 2 "$waybill" cat --tokens=yes "$golden/good_u8.wbr"
err_has "--tokens takes no argument"

expect 0 "$waybill" cat "$golden/good_u8.wbr"
out_has_lines 3
out_has '{"rid":"golden-0","group":1,'
expect 0 "$waybill" cat --limit 1 "$golden/good_u8.wbr"
out_has_lines 1
expect 0 "$waybill" cat --limit=0 "$golden/good_u8.wbr"
out_is_empty
expect 0 "$waybill" cat --rid=golden-2 --tokens --routes "$golden/good_u8_valid.wbr"
out_has '"routes":[{"start":2,"rows":[['
out_has 'null'
expect 0 "$waybill" cat --rid golden-1 "$golden/good_sampling.wbr"
out_has '"sampling":{"temperature":0.699999988,"top_k":4,"top_p":0.5}'
expect 0 "$waybill" cat --rid golden-1 --tokens "$golden/good_sampling.wbr"
out_has '"sampling_logprobs":[-'
out_has '"sampling_mask":[['
for rid in golden-0 golden-1 golden-2; do
    expect 0 "$waybill" cat --json --rid $rid "$golden/good_u8_valid.wbr"
    cp "$scratch/out" "$scratch/whole"
    expect 0 "$waybill" cat --tokens --routes --rid $rid "$golden/good_u8_valid.wbr"
    cmp -s "$scratch/whole" "$scratch/out" || fault "--json is not --tokens --routes"
done
# What indexers chose is whole rows of the layers that have one of their own; --json has it too.
expect 0 "$waybill" cat --indexer --rid golden-1 "$golden/good_indexer.wbr"
out_has '"indexer":{"start":1,"rows":[['
expect 0 "$waybill" cat --json --rid golden-1 "$golden/good_indexer.wbr"
out_has '"indexer":{"start":1,"rows":[['
expect 0 "$waybill" cat --routes --rid golden-1 "$golden/good_indexer.wbr"
! grep -q indexer "$scratch/out" || fault "cat without --indexer prints it"
# Ids of every number of digits, and rows that are not valid.
expect 0 "$waybill" cat --json --limit 1 "$golden/good_u16.wbr"
out_has '"routes":[{"start":0,"rows":[[['
expect 1 "$waybill" cat --rid golden-9 "$golden/good_u8.wbr"
out_is_empty

size=$(stat -c %s "$golden/good_no_index.wbr")
head -c $((size - 1)) "$golden/good_no_index.wbr" >"$scratch/cut.wbr"
expect 0 "$waybill" cat "$scratch/cut.wbr"
out_has_lines 2
err_has "cut"

for file in "$golden"/good_*.wbr; do
    expect 0 "$waybill" cat --tokens --routes "$file"
    python 'import json, sys
for line in open(sys.argv[1]): json.loads(line)' "$scratch/out" || fault "cat $file: not JSON lines"
done

# A reader that has seen enough is no fault: the pipe is closed before the first write.
{ sleep 0.2; "$waybill" cat "$golden/good_u8.wbr" 2>"$scratch/err"; echo $? >"$scratch/code"; } | true
[ "$(cat "$scratch/code")" -eq 0 ] || fault "cat to a closed pipe: expected exit code 0, found $(cat "$scratch/code")"
err_is_empty
finish "cat prints records as JSON lines"
