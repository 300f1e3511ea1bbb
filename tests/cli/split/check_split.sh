#!/usr/bin/env bash
# `waybill split`: files that together are the dump. usage: check_split.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/../command_checks.sh"
check_help split
expect 2 "$waybill" split "$golden/good_u8.wbr" "$scratch/s"
err_has "expected one of --records, --bytes, --by-group, --by-version"
expect 2 "$waybill" split --by-group --records 3 "$golden/good_u8.wbr" "$scratch/s"
err_has "expected one of"
expect 2 "$waybill" split --records 0 "$golden/good_u8.wbr" "$scratch/s"
err_has "--records: expected 1.."
expect 2 "$waybill" split --by-group "$golden/good_u8.wbr"
err_has "DIRECTORY is needed"
expect 1 "$waybill" split --by-group "$golden/bad_trailer.wbr" "$scratch/s"
[ ! -e "$scratch/s" ] || fault "a directory was made of a dump that cannot be read"

expect 0 "$build/tests/made_up_dumps" "$scratch" 4
dump=$scratch/a.wbr
records_of "$dump" | sort >"$scratch/wanted"

# split_into NAME FILES OPTION... : the files together have each record once, none is left half done
split_into() {
    local name=$1 files=$2
    shift 2
    expect 0 "$waybill" split "$@" "$dump" "$scratch/$name"
    err_is_empty
    out_has "35 records in $files files"
    records_of "$scratch/$name" | sort | cmp -s "$scratch/wanted" - || fault "split $*: other records"
    expect 0 "$waybill" verify "$scratch/$name"
    [ "$(find "$scratch/$name" -name '*.wbr' | wc -l)" -eq "$files" ] || fault "split $*: expected $files files"
    [ -z "$(find "$scratch" -name '*.tmp*')" ] || fault "split $*: something temporary is left"
}
split_into records 4 --records 10
[ -f "$scratch/records/part-3.wbr" ] || fault "expected part-3.wbr"
split_into one 1 --records 18446744073709551615
split_into each 35 --bytes 1
[ -f "$scratch/each/part-00.wbr" ] && [ -f "$scratch/each/part-34.wbr" ] || fault "names are not of one length"
split_into groups 10 --by-group
expect 0 "$waybill" cat "$scratch/groups/group-7.wbr"
out_lacks '"group":3'
out_has '"group":7'
split_into versions 1 --by-version
[ -f "$scratch/versions/version-1099511627776.wbr" ] || fault "expected a file named by its version"
"$waybill" cat "$dump" >"$scratch/in_order"
"$waybill" cat "$scratch/records" | cmp -s "$scratch/in_order" - || fault "split --records: another order"

# No file but one of a single record is larger than asked for: what is not records, header and index, is below 2 kB.
split_into bytes "$("$waybill" split --bytes 20000 "$dump" "$scratch/count" | sed -E 's/.* in ([0-9]+) files/\1/')" --bytes 20000
for file in "$scratch"/bytes/*.wbr; do
    [ "$(stat -c %s "$file")" -lt 22000 ] || fault "$file: larger than 22000 bytes"
done

# Records without a version have a file of their own.
expect 0 "$waybill" split --by-version "$scratch/b.wbr" "$scratch/none"
out_has "35 records in 2 files"
[ -f "$scratch/none/version-none.wbr" ] && [ -f "$scratch/none/version-1099511627776.wbr" ] || fault "expected version-none.wbr"
expect 0 "$waybill" cat "$scratch/none/version-none.wbr"
out_lacks 1099511627776

# Groups whose records do not follow each other have one file each too.
expect 0 "$waybill" merge "$scratch/mixed.wbr" "$scratch"/each/part-?[05].wbr "$scratch"/each/part-?[2479].wbr "$scratch"/each/part-?[1368].wbr
expect 0 "$waybill" split --by-group "$scratch/mixed.wbr" "$scratch/unmixed"
out_has "35 records in 10 files"
records_of "$scratch/unmixed" | sort | cmp -s "$scratch/wanted" - || fault "split of mixed groups: other records"

# ---- what indexers chose stays, also in records that are encoded anew
mkdir "$scratch/indexed"
expect 0 "$build/tests/made_up_dumps" "$scratch/indexed" 6
records_of "$scratch/indexed/a.wbr" | sort >"$scratch/wanted_indexed"
[ "$(grep -c '"indexer"' "$scratch/wanted_indexed")" -gt 20 ] || fault "a dump without indexer rows"
for way in --bytes=1 --records=10 --by-version; do
    expect 0 "$waybill" split $way "$scratch/indexed/a.wbr" "$scratch/indexed/$way"
    records_of "$scratch/indexed/$way" | sort | cmp -s "$scratch/wanted_indexed" - || fault "split $way: other records"
    expect 0 "$waybill" verify "$scratch/indexed/$way"
done

# ---- what is there stays
mkdir "$scratch/empty" "$scratch/full"
: >"$scratch/full/note"
expect 0 "$waybill" split --by-group "$dump" "$scratch/empty"
expect 1 "$waybill" split --by-group "$dump" "$scratch/empty"
err_has "expected a new or an empty directory"
expect 1 "$waybill" split --by-group "$dump" "$scratch/full/"
expect 1 "$waybill" split --by-group "$dump" "$scratch/full/note"
[ "$(ls "$scratch/full")" = note ] || fault "a directory that was not empty was touched"
expect 1 "$waybill" split --by-group "$golden/bad_id_out_of_range.wbr" "$scratch/bad"
err_has "expert 8"
[ ! -e "$scratch/bad" ] && [ -z "$(find "$scratch" -name '*.tmp*')" ] || fault "a failure leaves something behind"
cat "$dump" | "$waybill" split --records 10 - "$scratch/piped/" >"$scratch/out" 2>"$scratch/err" || fault "split of a pipe"
records_of "$scratch/piped" | sort | cmp -s "$scratch/wanted" - || fault "split of a pipe: other records"
finish "the files of split are the dump"
