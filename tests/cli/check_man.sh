#!/usr/bin/env bash
# The manual pages hold what --help says: every option of every command, in its section, and no other; troff finds no fault
# in them. usage: check_man.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/command_checks.sh"
[ -z "${WB_SANITIZE:-}" ] || { echo "skip: the ordinary build makes the pages"; exit 77; }

# page_options PAGE [COMMAND] : the options of the page, or of the section of a command
page_options() {
    awk -v wanted="${2:-}" '
        /^\.SS / { section = $2 }
        /^\\fB\\-\\-/ && section == wanted { sub(/^\\fB/, ""); sub(/\\fR.*/, ""); gsub(/\\-/, "-"); print }' "$1" | sort
}
help_options() { sed -nE 's/^  (--[a-z-]+).*/\1/p' | sort; }

# compare WHAT PAGE COMMAND HELP_COMMAND... : the same options in both
compare() {
    local what=$1 page=$2 command=$3
    shift 3
    expect 0 "$@"
    help_options <"$scratch/out" >"$scratch/wanted"
    page_options "$page" "$command" >"$scratch/found"
    # A command without options is one whose usage names none.
    [ -s "$scratch/wanted" ] || ! grep -qE '^usage: .*(--|OPTIONS)' "$scratch/out" || fault "$what: its help has no options"
    diff "$scratch/wanted" "$scratch/found" >"$scratch/out" || fault "$what: < of its help, > of its page"
}

# parse PAGE : troff warns of nothing
parse() {
    [ -s "$1" ] || fault "$1: expected a manual page"
    command -v groff >/dev/null || { echo "no groff here: pages are not parsed"; return; }
    expect 0 groff -man -Tascii -ww -z "$1"
    err_is_empty
}

page=$build/man/waybill.1
parse "$page"
commands=$("$waybill" --help | sed -nE 's/^  ([a-z][a-z-]*).*/\1/p')
for command in inspect eplb; do grep -qx $command <<<"$commands" || fault "waybill --help: no command $command"; done
for command in $commands; do compare "waybill $command" "$page" "$command" "$waybill" help "$command"; done
sections=$(grep -c '^\.SS ' "$page")
[ "$sections" -eq "$(wc -l <<<"$commands")" ] || fault "$page has $sections sections, waybill the commands $commands"

if [ -x "$build/bin/waybill-grpo" ]; then
    parse "$build/man/waybill-grpo.1"
    export OMPI_MCA_ess_singleton_isolated=1 OMPI_MCA_orte_tmpdir_base=$scratch # one process, no shared folder
    compare waybill-grpo "$build/man/waybill-grpo.1" "" "$build/bin/waybill-grpo" --help
fi

# ---- what troff would take for its own comes through as text
cat >"$scratch/odd" <<'END'
#!/bin/sh
printf 'usage: odd\n\n.hidden line\n'"'"'another\nback\\slash-dash\n\n  --a-b X  .text\n'
END
chmod +x "$scratch/odd"
expect 0 sh "$source/cli/make_man.sh" "$scratch/odd" "an odd program" "$scratch/odd.1"
for line in '\&.hidden line' "\\&'another" 'back\eslash\-dash' '\fB\-\-a\-b\fR \fIX\fR' '\&.text'; do
    grep -qxF -- "$line" "$scratch/odd.1" || fault "make_man.sh: expected the line $line"
done
parse "$scratch/odd.1"

# ---- a program of commands, whose names may be long; one whose help fails gives no page
cat >"$scratch/many" <<'END'
#!/bin/sh
case $1 in
--help) printf 'many 1.0 - of commands\n\nusage: many COMMAND\n\n  a-command-of-a-long-name  what it does\n  bad  fails\n' ;;
bad) printf 'usage: many bad\n'; exit ${BAD_EXIT:-0} ;;
*) printf 'usage: many %s --x N\n\nOptions:\n  --x N  a number\n' "$1" ;;
esac
END
chmod +x "$scratch/many"
expect 0 sh "$source/cli/make_man.sh" "$scratch/many" "a program" "$scratch/many.1"
[ "$(page_options "$scratch/many.1" a-command-of-a-long-name)" = --x ] || fault "a long name: no section with its option"
rm -f "$scratch/many.1"
BAD_EXIT=3 expect 3 sh "$source/cli/make_man.sh" "$scratch/many" "a program" "$scratch/many.1"
[ ! -e "$scratch/many.1" ] || fault "make_man.sh: a page was made of a help that failed"
finish "the manual pages hold what --help says"
