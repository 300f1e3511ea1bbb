#!/usr/bin/env bash
# `waybill merge`: one file of several dumps, whole or not there. usage: check_merge.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/../command_checks.sh"
check_help merge
expect 2 "$waybill" merge
err_has "OUT is needed"
expect 2 "$waybill" merge "$scratch/out.wbr"
err_has "DUMP is needed"
expect 2 "$waybill" merge "" "$golden/good_u8.wbr"
err_has "OUT: expected a path, found none"

# Three dumps of other rids: a record each, by their rids.
expect 0 "$waybill" split --records 1 "$golden/good_zstd.wbr" "$scratch/parts"
out_has "3 records in 3 files"
parts=("$scratch"/parts/part-{0,1,2}.wbr)
expect 0 "$waybill" merge "$scratch/all.wbr" "${parts[@]}"
out_is_empty
err_is_empty
records_of "$golden/good_zstd.wbr" >"$scratch/wanted"
same_records() {
    records_of "$1" >"$scratch/found" 2>"$scratch/err"
    cmp -s "$scratch/wanted" "$scratch/found" || fault "$1: other records"
    expect 0 "$waybill" verify "$1"
}
same_records "$scratch/all.wbr"
expect 0 "$waybill" inspect "$scratch/all.wbr"
out_has "raw in 2 records, zstd in 1"
expect 0 "$waybill" merge "$scratch/folder.wbr" "$scratch/parts"
same_records "$scratch/folder.wbr"

# ---- what indexers chose, and which layers have one, stay
for file in good_indexer good_indexer_zstd; do
    expect 0 "$waybill" split --records 1 "$golden/$file.wbr" "$scratch/$file"
    expect 0 "$waybill" merge "$scratch/$file.wbr" "$scratch/$file"
    records_of "$golden/$file.wbr" >"$scratch/wanted"
    grep -q '"indexer"' "$scratch/wanted" || fault "$file says nothing of indexers"
    same_records "$scratch/$file.wbr"
done
records_of "$golden/good_zstd.wbr" >"$scratch/wanted"

# ---- another codec, and back
from="$golden/good_packed.wbr"
records_of "$from" >"$scratch/wanted"
for codec in raw zstd packed; do
    expect 0 "$waybill" merge --codec $codec "$scratch/$codec.wbr" "$from"
    same_records "$scratch/$codec.wbr"
    expect 0 "$waybill" inspect "$scratch/$codec.wbr"
    out_has "$codec in 3"
    from=$scratch/$codec.wbr
done
expect 2 "$waybill" merge --codec lz4 "$scratch/new.wbr" "$from"
err_has "--codec: expected raw, zstd or packed, found lz4"
records_of "$golden/good_indexer.wbr" >"$scratch/wanted"
expect 0 "$waybill" merge --codec zstd "$scratch/indexer.wbr" "$golden/good_indexer.wbr"
same_records "$scratch/indexer.wbr"
records_of "$golden/good_zstd.wbr" >"$scratch/wanted"

# ---- what is there is not replaced, unless it is to be
cp "$scratch/all.wbr" "$scratch/before.wbr"
expect 1 "$waybill" merge "$scratch/all.wbr" "${parts[0]}"
err_has "all.wbr: expected a path where nothing is, found a file (--force replaces it)"
cmp -s "$scratch/all.wbr" "$scratch/before.wbr" || fault "OUT was touched"
expect 0 "$waybill" merge --force "$scratch/all.wbr" "${parts[0]}" "${parts[1]}"
expect 0 "$waybill" inspect "$scratch/all.wbr"
out_has "records      2 with"
expect 2 "$waybill" merge --force "$scratch/all.wbr" "$scratch/all.wbr" "${parts[2]}"
err_has "OUT: expected a file that is not read"
expect 2 "$waybill" merge --force "${parts[0]}" "$scratch/parts"
err_has "is part of $scratch/parts"
expect 1 "$waybill" merge "$scratch/nowhere/all.wbr" "${parts[0]}"
err_has "OUT: $scratch/nowhere/all.wbr"

# ---- a failure leaves nothing behind
for inputs in "${parts[0]} ${parts[0]}" "--codec raw ${parts[0]} ${parts[0]}" "--codec raw $golden/bad_rows_checksum.wbr" "$golden/good_u8.wbr $golden/good_u16.wbr" "${parts[0]} $golden/bad_rows_checksum.wbr" \
    "$golden/bad_id_out_of_range.wbr" "${parts[0]} $scratch/nothing.wbr"; do
    expect 1 "$waybill" merge "$scratch/new.wbr" $inputs
    [ ! -e "$scratch/new.wbr" ] || fault "$inputs: a file was written"
    [ -z "$(find "$scratch" -name '*.tmp')" ] || fault "$inputs: a temporary file is left"
done
expect 1 "$waybill" merge "$scratch/new.wbr" "${parts[0]}" "${parts[0]}"
err_has "${parts[0]}: rid golden-0 is in the file already, as record 0"
expect 1 "$waybill" merge "$scratch/new.wbr" "$golden/bad_rows_checksum.wbr"
err_has "waybill: $golden/bad_rows_checksum.wbr: byte"
expect 1 "$waybill" merge "$scratch/new.wbr" "$golden/good_u8.wbr" "$golden/good_u16.wbr"
err_has "good_u16.wbr: model num_experts: expected 8, found 300"

# ---- pipes, on both sides
"$waybill" merge - "${parts[0]}" <(cat "${parts[1]}") - <"${parts[2]}" 2>"$scratch/err" | cat >"$scratch/piped.wbr"
[ "${PIPESTATUS[0]}" -eq 0 ] || fault "merge into a pipe"
same_records "$scratch/piped.wbr"
if [ -w /dev/full ]; then
    expect 1 "$waybill" merge /dev/full "${parts[0]}"
    err_has "/dev/full"
fi

# ---- a dump that was cut is merged up to the cut
size=$(stat -c %s "$golden/good_no_index.wbr")
head -c $((size - 1)) "$golden/good_no_index.wbr" >"$scratch/cut.wbr"
expect 0 "$waybill" merge "$scratch/of_cut.wbr" "$scratch/cut.wbr"
err_has "1 of 1 files cut"
expect 0 "$waybill" verify "$scratch/of_cut.wbr"
out_has "OK: 2 records"
finish "merge writes one whole dump"
