#!/bin/sh
# A manual page (troff) from the --help of a program, so that the tables of options are the only place where options are
# described. usage: make_man.sh PROGRAM "one line of what it is" PAGE
#
# It relies on the form of --help: lines of usage, paragraphs, headings that end with a colon, options of two columns with
# two spaces between. A program whose --help lists commands ("  name  what it does") has a section for each.
set -eu
program=$1 summary=$2 page=$3
name=$(basename "$program")
help=$("$program" --help)
version=$(printf '%s\n' "$help" | sed -n "1s/^$name \([^ ]*\) - .*/\1/p")
commands=$(printf '%s\n' "$help" | sed -n 's/^  \([a-z][a-z-]*\)  .*/\1/p')

# troff TEXT_KIND : the help on stdin as troff, without its usage where TEXT_KIND is "body", that alone where "usage"
troff() {
    awk -v kind="$1" '
        function plain(text) {
            gsub(/\\/, "\\e", text)
            gsub(/-/, "\\-", text)
            gsub(/\|/, "|\\\\:", text) # a long list of choices may be broken behind any of them
            return (text ~ /^[.\047]/ ? "\\&" : "") text
        }
        function new_paragraph() { if (open_paragraph) { print ".PP"; open_paragraph = 0 } }
        /^usage: / { in_usage = 1; if (kind == "usage") print ".B " plain(substr($0, 8)); next }
        in_usage && /^ / { if (kind == "usage") { sub(/^ +/, ""); print ".br\n.B " plain($0) } next }
        { in_usage = 0 }
        kind == "usage" { next }
        /^Exit status: / { next }
        /^$/ { open_paragraph = 1; next }
        /^  -/ {
            sub(/^ +/, "")
            at = match($0, /  +/)
            option = at ? substr($0, 1, at - 1) : $0
            text = at ? substr($0, RSTART + RLENGTH) : ""
            argument = ""
            if (match(option, / /)) { argument = substr(option, RSTART + 1); option = substr(option, 1, RSTART - 1) }
            print ".TP\n\\fB" plain(option) "\\fR" (argument != "" ? " \\fI" plain(argument) "\\fR" : "")
            print plain(text)
            open_paragraph = 0
            next
        }
        /^   / { sub(/^ +/, ""); print plain($0); next }
        /:$/ { print ".PP\n.B " plain($0); open_paragraph = 0; next }
        { new_paragraph(); print plain($0) }
    '
}

{
    printf '.\\" Made by make_man.sh from the --help of %s: change its tables of options instead.\n' "$name"
    printf '.TH %s 1 "" "%s" ""\n' "$(printf '%s' "$name" | tr a-z A-Z | sed 's/-/\\-/g')" "$name${version:+ $version}"
    printf '.ad l\n' # a line that is one list of choices cannot be stretched to the margin
    printf '.SH NAME\n%s \\- %s\n.SH SYNOPSIS\n' "$(printf '%s' "$name" | sed 's/-/\\-/g')" "$summary"
    printf '%s\n' "$help" | troff usage
    if [ -n "$commands" ]; then
        printf '.SH DESCRIPTION\n%s is one program of several commands.\n.SH COMMANDS\n' "$name"
        for command in $commands; do
            printf '.SS %s\n' "$command"
            # Taken whole before it is used: a --help that fails ends this script, as it would not at the head of a pipe.
            help_of_command=$("$program" "$command" --help)
            printf '%s\n' "$help_of_command" | troff usage
            printf '%s\n' "$help_of_command" | troff body
        done
    else
        printf '.SH DESCRIPTION\n'
        printf '%s\n' "$help" | troff body
    fi
    printf '.SH EXIT STATUS\n'
    printf '%s\n' "$help" | sed -n 's/^Exit status: //p'
} >"$page.tmp"
mv "$page.tmp" "$page"
