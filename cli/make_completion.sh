#!/bin/sh
# The completion of a shell for `waybill`, from its --help, so that the tables of options are the only place where options
# are described. usage: make_completion.sh PROGRAM bash|zsh FILE
#
# It relies on the form of --help that make_man.sh relies on: commands are "  name  what it does", options are
# "  --name ARGUMENT  what it is". An argument called FILE or DIR is a path.
set -eu
program=$1 shell=$2 file=$3
name=$(basename "$program")
help=$("$program" --help)
commands=$(printf '%s\n' "$help" | sed -n 's/^  \([a-z][a-z-]*\)  .*/\1/p')

# options_of COMMAND : a line for each option, "--name ARGUMENT|what it is", the text's first line alone
options_of() {
    # Taken whole before it is used: a --help that fails ends this script, as it would not at the head of a pipe.
    help_of_command=$("$program" "$1" --help)
    printf '%s\n' "$help_of_command" | sed -n 's/^  \(--[a-z-]*\( [^ ][^ ]*\)\{0,1\}\)  *\([^ ].*\)/\1|\3/p'
}

bash_completion() {
    printf '# Made by make_completion.sh from the --help of %s: change its tables of options instead.\n' "$name"
    printf '_%s() {\n    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} options= values=\n' "$name"
    printf '    local commands="%s"\n' "$(printf '%s' "$commands" | tr '\n' ' ')"
    printf '    COMPREPLY=()\n'
    printf '    if [ "$COMP_CWORD" -eq 1 ]; then\n'
    printf '        COMPREPLY=($(compgen -W "$commands help --help --version" -- "$current"))\n        return\n    fi\n'
    printf '    case ${COMP_WORDS[1]} in\n'
    printf '    help)\n        COMPREPLY=($(compgen -W "$commands" -- "$current"))\n        return\n        ;;\n'
    for command in $commands; do
        options=$(options_of "$command")
        printf '    %s)\n        options="%s--help"\n' "$command" "$(printf '%s\n' "$options" | sed 's/[ |].*//' | tr '\n' ' ')"
        printf '        values=" %s"\n        ;;\n' \
            "$(printf '%s\n' "$options" | sed -n '/^--[a-z-]* \(FILE\|DIR\)|/d; s/^\(--[a-z-]*\) .*/\1/p' | tr '\n' ' ')"
    done
    printf '    *) return ;;\n    esac\n'
    printf '    case $values in *" $previous "*) return ;; esac\n'
    printf '    if [[ $current == -* ]]; then\n        COMPREPLY=($(compgen -W "$options" -- "$current"))\n'
    printf '    else\n        compopt -o filenames\n        mapfile -t COMPREPLY < <(compgen -f -- "$current")\n    fi\n}\n'
    printf 'complete -F _%s %s\n' "$name" "$name"
}

# Text between the single quotes of a specification of _arguments, where brackets and colons have a meaning.
zsh_text() { sed "s/'/’/g; s/[]:[]/\\\\&/g"; }

zsh_completion() {
    printf '#compdef %s\n' "$name"
    printf '# Made by make_completion.sh from the --help of %s: change its tables of options instead.\n' "$name"
    printf '_%s() {\n    local -a commands\n    commands=(\n' "$name"
    printf '%s\n' "$help" | sed -n 's/^  \([a-z][a-z-]*\)  *\(.*\)/\1:\2/p' | sed "s/'/’/g; s/.*/        '&'/"
    printf '    )\n    if (( CURRENT == 2 )); then\n        _describe command commands\n        return\n    fi\n'
    printf '    local command=$words[2]\n    shift words\n    (( CURRENT-- ))\n    case $command in\n'
    printf '    help) _describe command commands ;;\n'
    for command in $commands; do
        printf "    %s)\n        _arguments '--help[says more]' \\\\\n" "$command"
        options_of "$command" | zsh_text |
            sed -n "s/^\\(--[a-z-]*\\) \\(FILE\\|DIR\\)|\\(.*\\)/            '*\\1=[\\3]:\\2:_files' \\\\\\\\/p
                    t
                    s/^\\(--[a-z-]*\\) \\([^|]*\\)|\\(.*\\)/            '*\\1=[\\3]:\\2: ' \\\\\\\\/p
                    t
                    s/^\\(--[a-z-]*\\)|\\(.*\\)/            '\\1[\\2]' \\\\\\\\/p" | sed 's/\\\\$/\\/'
        printf "            '*:file:_files'\n        ;;\n"
    done
    printf '    esac\n}\n_%s "$@"\n' "$name"
}

case $shell in
bash) bash_completion >"$file.tmp" ;;
zsh) zsh_completion >"$file.tmp" ;;
*)
    echo "usage: make_completion.sh PROGRAM bash|zsh FILE" >&2
    exit 2
    ;;
esac
mv "$file.tmp" "$file"
