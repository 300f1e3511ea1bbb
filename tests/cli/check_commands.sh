#!/usr/bin/env bash
# `waybill` itself: which commands there are, their help, what is no command. usage: check_commands.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/command_checks.sh"

expect 2 "$waybill"
out_is_empty
err_has "usage:"
expect 2 "$waybill" frobnicate
err_has "no command frobnicate"
out_is_empty
expect 0 "$waybill" --version
out_has "waybill "
out_has_lines 1
for arguments in --help -h help "help --help" "help help"; do
    expect 0 "$waybill" $arguments
    err_is_empty
    for command in inspect verify cat stats diff merge split salvage convert tokenize eplb report; do out_has "  $command "; done
done
for arguments in "--version extra" "--help extra" "help eplb extra"; do
    expect 2 "$waybill" $arguments
    err_has extra
done
expect 2 "$waybill" help frobnicate
err_has "no command frobnicate"

# ---- every option that a help lists is one of the command's, and --help is laid out: two columns, within the width
options=0
for command in inspect verify cat stats diff merge split salvage convert tokenize eplb report; do
    expect 0 "$waybill" help $command
    cp "$scratch/out" "$scratch/help"
    wide=$(awk 'length($0) > 96' "$scratch/help")
    [ -z "$wide" ] || fault "$command --help is too wide: $wide"
    columns=$(sed -nE 's/^(  --[^ ]+( [^ ]+)?  +).*/\1/p' "$scratch/help" | awk '{ print length($0) }' | sort -u | wc -l)
    [ "$columns" -le 1 ] || fault "$command --help: its texts begin in $columns columns"
    while read -r option argument _; do
        options=$((options + 1))
        expect 2 "$waybill" $command "$option"
        ! grep -qF "no option" "$scratch/err" || fault "$command does not take $option, which its help lists"
        [[ $argument =~ ^[A-Z] ]] || continue # a flag: its text is of small letters
        err_has "$option needs an argument"
    done < <(grep -E '^  --' "$scratch/help")
done
[ $options -ge 61 ] || fault "expected 61 options and more in the helps, found $options"
finish "waybill knows its commands and their $options options"
