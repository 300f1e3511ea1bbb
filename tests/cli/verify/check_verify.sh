#!/usr/bin/env bash
# `waybill verify`: the exit code is the verdict. usage: check_verify.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/../command_checks.sh"
check_dump_command verify

for file in "$golden"/good_*.wbr; do
    expect 0 "$waybill" verify "$file"
    out_has "OK: 3 records"
    err_is_empty
done
for file in "$golden"/bad_*.wbr; do
    expect 1 "$waybill" verify "$file"
    out_has "FAILED"
done

size=$(stat -c %s "$golden/good_no_index.wbr")
head -c $((size - 1)) "$golden/good_no_index.wbr" >"$scratch/cut.wbr"
expect 1 "$waybill" verify "$scratch/cut.wbr"
out_has "CUT"
out_has "the 2 records before the cuts are whole"
err_has "1 of 1 files cut: 312 bytes after the last whole record are lost, first in $scratch/cut.wbr: byte 844: "

# Dumps of before digests were written have none.
expect 0 "$waybill" verify --tokens "$golden/good_sampling.wbr"
out_has "; every record's tokens have their digest"
expect 1 "$waybill" verify --tokens "$golden/good_u8.wbr"
out_has "FAILED"
err_has "good_u8.wbr: byte 218: expected a digest of the tokens, found none: 3 of 3 records are without"
expect 1 "$waybill" verify --tokens "$golden/bad_digest.wbr"
err_has "the digest of the tokens: expected"

# Of another model; and of one without a checkpoint, whose tables cannot be read.
oracles=$golden/../oracles
expect 1 "$waybill" verify --model "$oracles/deepseek_v4_kinds" "$golden/good_u8.wbr"
err_has "good_u8.wbr: model name: expected deepseek_v4, found test_moe"
expect 1 "$waybill" verify --model "$scratch/nowhere" "$golden/good_u8.wbr"
err_has "nowhere/config.json"
out_has "FAILED: the model of --model: "

# A quantized model whose weights the engine does not read, without a checkpoint: its rows are not verified.
mkdir "$scratch/quantized"
sed 's/^{$/{"quantization_config": {"quant_method": "gptq", "bits": 4},/' \
    "$oracles/deepseek_v4_kinds/config.json" >"$scratch/quantized/config.json"
rows='{"id": "a", "prompt_token_ids": [1, 2], "choices": [{"index": 0, "token_ids": [3], "finish_reason": "stop",
    "routed_experts": "NPY"}]}'
npy=$({ printf '\x93NUMPY\x01\x00v\x00%-117s\n' "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3, 2), }" &&
    printf '\1\2\3\4\5\6\7\0\2\1\4\3'; } | base64 -w 0)
echo "${rows//$'\n'/}" | sed "s|NPY|$npy|" >"$scratch/answers.jsonl"
expect 0 "$waybill" convert --from vllm --model "$scratch/quantized" "$scratch/answers.jsonl" -o "$scratch/hash.wbr"
expect 0 "$waybill" inspect "$scratch/hash.wbr"
out_has "hash         routed by a table of token ids: layers 0"
expect 1 "$waybill" verify --model "$scratch/quantized" "$scratch/hash.wbr"
err_has "$scratch/quantized"
# Its tables are not quantized: they are compared where there is a checkpoint.
cp "$oracles"/deepseek_v4_kinds/*.safetensors "$scratch/quantized/"
expect 1 "$waybill" verify --model "$scratch/quantized" "$scratch/hash.wbr"
err_has "MoE layer 0 (model layer 0)"
# A file that lacks what the engine needs says no names of tables: then it is said that nothing was compared.
mkdir "$scratch/lacking"
grep -v moe_intermediate_size "$oracles/deepseek_v4_kinds/config.json" >"$scratch/lacking/config.json"
cp "$oracles"/deepseek_v4_kinds/*.safetensors "$scratch/lacking/"
expect 0 "$waybill" convert --from vllm --model "$scratch/lacking" "$scratch/answers.jsonl" -o "$scratch/lacking.wbr"
expect 0 "$waybill" verify --model "$scratch/lacking" "$scratch/lacking.wbr"
out_has "NOT COMPARED: rows of 1 hash-routed layers"
out_has "the engine does not run the model: $scratch/lacking/config.json: moe_intermediate_size"
out_has "OK: 1 records"
# And one whose tables say otherwise: record, layer, position and token are named.
expect 0 "$waybill" convert --from vllm --model "$oracles/deepseek_v4_kinds" "$scratch/answers.jsonl" -o "$scratch/other.wbr"
expect 1 "$waybill" verify --model "$oracles/deepseek_v4_kinds" "$scratch/other.wbr"
err_has "record a: position 0, MoE layer 0 (model layer 0), which is routed by a table: expected experts 2 6 for token 1, found 1 2"

# A dump from before headers said how many tokens make an entry: what its indexers chose is held against the model, and
# against a file beside it that says so.
indexed=$2/tests/golden/import/indexed
beyond="record a: position 0: expected a token of the model's, 0..127, found 453083606"
for dump in without_rate without_rate_fewer; do
    expect 0 "$waybill" verify "$golden/$dump.wbr"
done
# The tokens of these dumps are any number, which is seen where there is nothing else.
expect 1 "$waybill" verify --model "$indexed" "$golden/without_rate.wbr"
err_has "$beyond"
expect 1 "$waybill" verify --model "$indexed" "$golden/without_rate_fewer.wbr"
fewer="record a: indexer: position 22, model layer 3: expected a count of 3, found 2"
err_has "$fewer"
expect 0 "$waybill" convert --from sglang --model "$indexed" "$indexed/../good_sglang_indexer.jsonl" -o "$scratch/rate.wbr"
expect 0 "$waybill" merge "$scratch/both.wbr" "$scratch/rate.wbr" "$golden/without_rate.wbr"
expect 1 "$waybill" verify --model "$indexed" "$scratch/both.wbr"
err_has "$beyond"
expect 1 "$waybill" merge "$scratch/turned.wbr" "$golden/without_rate_fewer.wbr" "$scratch/rate.wbr"
err_has "name this one first"
expect 1 "$waybill" merge "$scratch/turned.wbr" "$golden/good_u8.wbr" "$golden/good_indexer_rate.wbr"
err_has "n_indexer_layers"
expect 1 "$waybill" merge "$scratch/both_fewer.wbr" "$scratch/rate.wbr" "$golden/without_rate_fewer.wbr"
err_has "$fewer"
mkdir "$scratch/directory"
cp "$golden/without_rate_fewer.wbr" "$scratch/directory/part-0.wbr"
cp "$scratch/rate.wbr" "$scratch/directory/part-1.wbr"
expect 1 "$waybill" verify "$scratch/directory"
err_has "part-0.wbr"
err_has "$fewer"
expect 0 "$waybill" salvage "$scratch/directory" "$scratch/whole.wbr"
err_has "$fewer"

# One reading does all: another model is seen before any record, a token of the first record before what is damaged behind it.
expect 1 "$waybill" verify --model "$indexed" "$golden/bad_digest.wbr"
err_has "bad_digest.wbr: model name: expected deepseek_v4, found test_moe"
cp "$golden/without_rate.wbr" "$scratch/directory/part-0.wbr"
printf '\377' | dd of="$scratch/directory/part-1.wbr" bs=1 seek=700 conv=notrunc status=none
expect 1 "$waybill" verify "$scratch/directory"
err_has "part-1.wbr: byte 282: record sg-4: the checksum of its rows does not match"
expect 1 "$waybill" verify --model "$indexed" "$scratch/directory"
err_has "$beyond"

rm "$scratch/directory"/*
cp "$golden/good_u8.wbr" "$scratch/directory/part-0.wbr"
expect 0 "$waybill" verify "$scratch/directory"
cp "$golden/good_u8.wbr" "$scratch/directory/part-1.wbr"
expect 1 "$waybill" verify "$scratch/directory"
err_has "part-0.wbr"
err_has "part-1.wbr"
cp "$golden/good_u16.wbr" "$scratch/directory/part-1.wbr"
expect 1 "$waybill" verify "$scratch/directory"
err_has "num_experts: expected 8, found 300"
finish "verify tells good dumps from bad ones"
