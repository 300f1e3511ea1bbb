#!/usr/bin/env bash
# What a command writes is none of what it reads, whatever the names, and nothing is touched when it would be.
# usage: check_outputs.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/command_checks.sh"
waybill=$(realpath "$waybill")
cp "$golden/good_u8.wbr" "$scratch/run.wbr"
mkdir "$scratch/parts" "$scratch/elsewhere"
cp "$golden/good_u8.wbr" "$scratch/parts/part-0.wbr"
ln "$scratch/run.wbr" "$scratch/hard"
ln -s run.wbr "$scratch/soft"
ln -s ../soft "$scratch/elsewhere/softer"
eplb=(eplb --ranks 4 --slots 12 --algorithm balanced)

# untouched : the dumps are what they were
untouched() {
    cmp -s "$golden/good_u8.wbr" "$scratch/run.wbr" || fault "$1: the dump was written over"
    cmp -s "$golden/good_u8.wbr" "$scratch/parts/part-0.wbr" || fault "$1: the part was written over"
    [ -L "$scratch/soft" ] || fault "$1: the link was replaced"
    [ -z "$(find "$scratch" -name '*.tmp')" ] || fault "$1: a temporary file is left"
}

for option in --save --chart; do
    for output in run.wbr hard soft elsewhere/softer; do
        expect 2 "$waybill" "${eplb[@]}" "$scratch/run.wbr" $option "$scratch/$output"
        err_has "$option: expected a file that is not read"
        out_is_empty
        untouched "$option $output"
    done
    expect 2 "$waybill" "${eplb[@]}" "$scratch/soft" $option "$scratch/run.wbr"
    err_has "$option: expected a file that is not read"
    expect 2 "$waybill" "${eplb[@]}" "$scratch/parts" $option "$scratch/parts/part-0.wbr"
    err_has "$scratch/parts/part-0.wbr, which is or is part of $scratch/parts"
    untouched "$option of a part"
    expect 2 "$waybill" "${eplb[@]}" "$golden/good_u8.wbr" --init "$scratch/parts" $option "$scratch/parts/part-0.wbr"
    err_has "$option: expected a file that is not read"
    untouched "$option of what --init reads"
done

# ---- two outputs are two files, there or not, and neither is standard output's
for pair in "new new" "new ./new" "new elsewhere/../new" "elsewhere/new elsewhere/./new"; do
    read -r a b <<<"$pair"
    expect 2 "$waybill" "${eplb[@]}" "$scratch/run.wbr" --save "$scratch/$a" --chart "$scratch/$b"
    err_has "expected a file of its own"
    [ ! -e "$scratch/$a" ] || fault "$pair: a file was written"
done
(cd "$scratch" && "$waybill" "${eplb[@]}" run.wbr --save x.json --chart ./x.json) >"$scratch/out" 2>"$scratch/err"
[ $? -eq 2 ] || fault "x.json and ./x.json: expected exit code 2"
"$waybill" "${eplb[@]}" "$scratch/run.wbr" --save "$scratch/log" >"$scratch/log" 2>"$scratch/err"
[ $? -eq 2 ] || fault "--save is standard output's file: expected exit code 2"
expect 0 "$waybill" "${eplb[@]}" "$scratch/run.wbr" --save "$scratch/new" --chart "$scratch/elsewhere/new"
expect 0 "$waybill" "${eplb[@]}" "$scratch/run.wbr" --save /dev/null --chart /dev/null
[ -c /dev/null ] || fault "/dev/null was replaced"
"$waybill" "${eplb[@]}" "$scratch/run.wbr" --save /dev/stdout --chart /dev/stdout >"$scratch/log" 2>"$scratch/err" ||
    fault "two outputs to /dev/stdout: exit code $?"
untouched "outputs of their own"

# ---- standard output too
for command in inspect verify cat stats "eplb --ranks 4 --slots 12"; do
    for dump in run.wbr soft; do
        "$waybill" $command "$scratch/$dump" >>"$scratch/run.wbr" 2>"$scratch/err"
        [ $? -eq 2 ] || fault "$command $dump appended to the dump: expected exit code 2"
        err_has "as standard output"
    done
    "$waybill" $command "$scratch/parts" >>"$scratch/parts/part-0.wbr" 2>"$scratch/err"
    [ $? -eq 2 ] || fault "$command appended to a part: expected exit code 2"
    untouched "$command"
done

# ---- no path and no text is empty, numbers are in their range
for command in inspect verify cat stats "eplb --ranks 4 --slots 12"; do
    expect 2 "$waybill" $command ""
    err_has "DUMP: expected a path, found none"
done
for option in init save chart; do
    expect 2 "$waybill" "${eplb[@]}" "$scratch/run.wbr" --$option ""
    err_has "--$option: expected a path, found none"
done
for option in dead algorithm dispatch synthetic; do
    expect 2 "$waybill" "${eplb[@]}" "$scratch/run.wbr" --$option=
    err_has "--$option: expected text, found none"
done
for command in cat inspect; do
    expect 2 "$waybill" $command --rid "" "$scratch/run.wbr"
    err_has "--rid: expected text, found none"
done
expect 2 "$waybill" cat --limit 99999999999999999999999 "$scratch/run.wbr"
err_has "--limit: expected 0..18446744073709551615, found 99999999999999999999999"
expect 2 "$waybill" "${eplb[@]}" "$scratch/run.wbr" --trials=4294967296
err_has "--trials: expected 0..4294967295, found 4294967296"

# ---- a reader that has seen enough is no fault of any command
for command in inspect "inspect --json" verify "cat --routes" "cat --json" stats "stats --json" "diff $golden/good_u8.wbr" "eplb --ranks 4 --slots 12" "eplb --json --ranks 4 --slots 12"; do
    { sleep 0.2; "$waybill" $command "$scratch/run.wbr" 2>"$scratch/err"; echo $? >"$scratch/code"; } | true
    [ "$(cat "$scratch/code")" -eq 0 ] || fault "$command to a closed pipe: exit code $(cat "$scratch/code")"
    err_is_empty
done
for command in --help --version help "help eplb" "stats --help"; do
    { sleep 0.2; "$waybill" $command 2>"$scratch/err"; echo $? >"$scratch/code"; } | true
    [ "$(cat "$scratch/code")" -eq 0 ] || fault "$command to a closed pipe: exit code $(cat "$scratch/code")"
    err_is_empty
done

# ---- a dump through a pipe: the same words, but for its name
for command in "stats --json" "inspect --json" "cat --json"; do
    "$waybill" $command "$scratch/run.wbr" >"$scratch/wanted" 2>"$scratch/err" || fault "$command"
    cat "$scratch/run.wbr" | "$waybill" $command - >"$scratch/out" 2>"$scratch/err" || fault "$command of a pipe"
    cmp -s <(sed "s|$scratch/run.wbr|/dev/stdin|" "$scratch/wanted") "$scratch/out" || fault "$command of a pipe says something else"
done
printf x | "$waybill" verify - >"$scratch/out" 2>"$scratch/err"
err_has "waybill: /dev/stdin: not a waybill.routes file"
cat "$scratch/run.wbr" | "$waybill" eplb --json --ranks 4 --slots 12 - >"$scratch/out" 2>"$scratch/err" || fault "eplb of a pipe"
out_has '"records":3'

# ---- what a cut dump has lost is said by every command, in the same words, also when the cut leaves no byte
mkdir "$scratch/cut"
size=$(stat -c %s "$golden/good_no_index.wbr")
head -c $((size - 1)) "$golden/good_no_index.wbr" >"$scratch/cut/part-0.wbr"
: >"$scratch/cut/part-1.wbr"
words="waybill: 2 of 2 files cut: 312 bytes after the last whole record are lost, first in $scratch/cut/part-0.wbr: byte 844: "
for command in inspect verify cat stats "cat --rid golden-0" "inspect --rid golden-0" "eplb --ranks 4 --slots 12" \
    "eplb --synthetic zipf --experts 8 --layers 2 --ranks 4 --slots 12 --tokens 64 --init"; do
    code=0
    [ "$command" != verify ] || code=1
    expect $code "$waybill" $command "$scratch/cut"
    err_has "$words"
    [ "$(wc -l <"$scratch/err")" -eq 1 ] || fault "$command of a cut dump: more than the one line"
done
cp "$golden/good_u8.wbr" "$scratch/cut/part-0.wbr"
expect 1 "$waybill" verify "$scratch/cut"
err_has "1 of 2 files cut: 0 bytes after the last whole record are lost, first in $scratch/cut/part-1.wbr: byte 0: "
expect 0 "$waybill" stats "$scratch/cut"
err_has "1 of 2 files cut: 0 bytes"
for dump in cut/part-1.wbr; do
    expect 1 "$waybill" verify "$scratch/$dump"
    err_has "$scratch/$dump: no file with a whole header"
done
finish "outputs are no inputs, and losses are said"
