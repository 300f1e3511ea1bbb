#!/usr/bin/env bash
# `waybill salvage`: what is whole, and what is lost by name. usage: check_salvage.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/../command_checks.sh"
check_help salvage
expect 2 "$waybill" salvage "$golden/good_u8.wbr"
err_has "OUT is needed"
expect 1 "$waybill" salvage "$scratch/nothing.wbr" "$scratch/out.wbr"
err_has "nothing.wbr"
expect 1 "$waybill" salvage "$golden/bad_header_checksum.wbr" "$scratch/out.wbr"
err_has "no file with a whole header"
[ ! -e "$scratch/out.wbr" ] || fault "a dump was written without a model"

for file in "$golden"/good_*.wbr; do
    expect 0 "$waybill" salvage --force "$file" "$scratch/out.wbr"
    [ "$(cat "$scratch/err")" = "saved 3 records" ] || fault "$file: something is lost"
    out_is_empty
    diff <("$waybill" cat --json "$file") <("$waybill" cat --json "$scratch/out.wbr") >/dev/null || fault "$file: other records"
    expect 0 "$waybill" verify "$scratch/out.wbr"
done
expect 1 "$waybill" salvage "$golden/good_u8.wbr" "$scratch/out.wbr"
err_has "--force replaces it"

# ---- damage, by name
expect 0 "$waybill" salvage --force "$golden/bad_rows_checksum.wbr" "$scratch/out.wbr"
err_has "lost  $golden/bad_rows_checksum.wbr: bytes 442..648: record b: byte 442: record b: the checksum of its rows does not match"
err_has "saved 1 records, lost 207 bytes in 1 places"
expect 0 "$waybill" verify "$scratch/out.wbr"
expect 0 "$waybill" salvage --force "$golden/bad_prefix_unknown.wbr" "$scratch/out.wbr"
err_has "shortened  $golden/bad_prefix_unknown.wbr: byte 442: record b is saved without its first rows"
err_has "saved 2 records; 1 records are without their first rows"
expect 0 "$waybill" salvage --force "$golden/bad_trailer.wbr" "$scratch/out.wbr"
err_has "saved 2 records"
expect 0 "$waybill" verify "$scratch/out.wbr"

# ---- every damaged dump but those without a model gives a dump that verify passes
for file in "$golden"/bad_*.wbr; do
    "$waybill" salvage --force "$file" "$scratch/each.wbr" 2>"$scratch/err" >"$scratch/out" || continue
    grep -q '^saved [0-9]* records' "$scratch/err" || fault "$file: nothing is said"
    expect 0 "$waybill" verify "$scratch/each.wbr"
done

# ---- cut, and a hole in the middle
size=$(stat -c %s "$golden/good_no_index.wbr")
head -c $((size - 1)) "$golden/good_no_index.wbr" >"$scratch/cut.wbr"
expect 0 "$waybill" salvage --force "$scratch/cut.wbr" "$scratch/out.wbr"
err_has "lost  $scratch/cut.wbr: bytes 844..1155: record golden-2: the file ends inside the object that begins here"
err_has "saved 2 records, lost 312 bytes in 1 places"
at=$(grep -abo golden-1 "$golden/good_sampling.wbr" | head -n 1 | cut -d : -f 1)
{ head -c $((at + 20)) "$golden/good_sampling.wbr" && head -c 40 /dev/zero && tail -c +$((at + 61)) "$golden/good_sampling.wbr"; } >"$scratch/hole.wbr"
expect 1 "$waybill" cat "$scratch/hole.wbr"
cat "$scratch/hole.wbr" | "$waybill" salvage - - 2>"$scratch/err" | cat >"$scratch/piped.wbr"
err_has "record golden-1"
err_has "saved 2 records"
expect 0 "$waybill" cat --json "$scratch/piped.wbr"
out_has '"rid":"golden-0"'
out_has '"rid":"golden-2"'
out_lacks '"rid":"golden-1"'
expect 2 "$waybill" salvage --force "$scratch/cut.wbr" "$scratch/cut.wbr"
err_has "OUT: expected a file that is not read"
finish "salvage saves what is whole"
