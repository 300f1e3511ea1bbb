#!/usr/bin/env bash
# The completions of bash and zsh offer what --help says: every command, and every option of each.
# usage: check_completion.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/command_checks.sh"
[ -z "${WB_SANITIZE:-}" ] || { echo "skip: the ordinary build makes the completions"; exit 77; }
cd "$build/completions" || fault "no completions"
. ./waybill
commands=$("$waybill" --help | sed -nE 's/^  ([a-z][a-z-]*)  .*/\1/p')

# complete_words WORD... : what bash offers in place of the last one, a line each
complete_words() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
    compopt() { :; } # of a completion that the shell has not asked for
    _waybill
    printf '%s\n' "${COMPREPLY[@]}"
}
# same WHAT : the lines of $scratch/wanted and $scratch/found, in any order
same() { diff <(sort "$scratch/wanted") <(sort "$scratch/found") >"$scratch/out" || fault "$1: < of the help, > offered"; }

{ echo "$commands" && printf '%s\n' help --help --version; } >"$scratch/wanted"
complete_words waybill '' >"$scratch/found"
same "the commands"
[ "$(complete_words waybill sal)" = salvage ] || fault "sal is not completed to salvage"
[ "$(complete_words waybill help ins)" = inspect ] || fault "help ins is not completed to inspect"
n=0
for command in $commands; do
    { "$waybill" help "$command" | sed -nE 's/^  (--[a-z-]+).*/\1/p' && echo --help; } >"$scratch/wanted"
    complete_words waybill "$command" -- >"$scratch/found"
    same "$command"
    n=$((n + $(wc -l <"$scratch/found")))
done
[ $n -gt 60 ] || fault "expected more than 60 options, found $n"

# A path where one is read, nothing where a number is.
: >"$scratch/dump one.wbr"
[ "$(complete_words waybill stats "$scratch/du")" = "$scratch/dump one.wbr" ] || fault "a path with a space is not completed"
[ "$(complete_words waybill eplb --init "$scratch/du")" = "$scratch/dump one.wbr" ] || fault "--init FILE is not completed"
[ -z "$(complete_words waybill stats --top "$scratch/du")" ] || fault "--top N is completed to a path"
[ -z "$(complete_words waybill frobnicate '')" ] || fault "what is no command is completed"

if command -v zsh >/dev/null; then
    expect 0 zsh -n ./_waybill
    for command in $commands; do
        # The words that zsh's own functions are given.
        expect 0 zsh -fc '_arguments() { print -rl -- "$@" }; _describe() { :; }; words=(waybill '"$command"' ""); CURRENT=3; . ./_waybill'
        sed -nE 's/^\*?(--[a-z-]+)=?\[.*/\1/p' "$scratch/out" >"$scratch/found"
        { "$waybill" help "$command" | sed -nE 's/^  (--[a-z-]+).*/\1/p' && echo --help; } >"$scratch/wanted"
        same "zsh: $command"
    done
else
    echo "no zsh here: its completion is not run"
fi
expect 2 sh "$source/cli/make_completion.sh" "$waybill" fish "$scratch/fish"
finish "completions offer $n options"
