#!/usr/bin/env bash
# The tree reads as if one hand had written it: the rules of form in CONTRIBUTING.md that a program can check.
# usage: check_one_hand.sh BUILD_DIR SOURCE_DIR
#
# not_yet lists, rule by rule, the folders that still break it. A folder that has become clean must leave its list, so that the
# lists only shrink and nothing that was clean falls back.
set -uo pipefail
export LC_ALL=C
source=$2
library='base|formats|comm|kernels|eplb|model|replay|train_hooks|rollout'

declare -A not_yet=(
    [null]=''
    [void_cast]=''
    [print_cast]=''
    [allocation]='comm/mpi comm/nccl' # libraries of their own, which do not link base
    [rename]=''
    [include]=''
)
declare -A meaning=(
    [null]='a pointer is tested as `if (p)` or `if (!p)`, never against NULL'
    [void_cast]='a cast to void ** is an aliasing violation: WB_NEW and WB_GROW take the pointer itself'
    [print_cast]='fixed-width integers are printed with the PRI macros of <inttypes.h>, without a cast to long long'
    [allocation]='the library allocates through base/wb_memory.h, which is where an allocation is made to fail'
    [rename]='the library replaces files through base/wb_file.h, the only atomic file'
    [include]='quoted includes stand before the system ones'
)

# ---- what breaks which rule: "rule folder file:line: text" a line ---------------------------------------------------
mapfile -t sources < <(cd "$source" && find . -type d \( -name 'build*' -o -name '.?*' \) -prune -o \
    -type f \( -name '*.c' -o -name '*.h' -o -name '*.cu' \) -printf '%P\n' | sort)
[ ${#sources[@]} -gt 50 ] || { echo "FAULT: expected more than 50 source files under $source, found ${#sources[@]}"; exit 1; }
found=$(cd "$source" && library=$library perl -0777 -ne '
    my ($file, $folder) = ($ARGV, $ARGV =~ m{^(.*)/});
    $folder //= ".";
    # Comments and the insides of strings do not count; lines keep their numbers.
    s{/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\x27(?:\\.|[^\x27\\\n])+\x27}
     { my $t = $&; my $lines = $t =~ tr/\n//; ($t =~ /^"/ ? $t : " ") . "\n" x $lines }gsex;
    my $in_library = $folder =~ m{^($ENV{library})(/|$)};
    my ($n, $system) = (0, 0);
    for my $line (split /\n/) {
        $n++;
        my $break = sub { print "$_[0] $folder $file:$n: $line\n" };
        $system = 1 if $line =~ /^\s*#\s*include\s*</;
        $break->("include") if $system && $line =~ /^\s*#\s*include\s*"/;
        $line =~ s/"(?:\\.|[^"\\])*"/""/g;
        # A comparison may still make a value: `count += p != NULL`.
        $break->("null") if $line =~ /\b(if|while|for)\b.*[=!]=\s*NULL\b/ || $line =~ /NULL\s*[=!]=/;
        $break->("void_cast") if $line =~ /\(\s*void\s*\*\s*\*\s*\)\s*[&\w(]/;
        next unless $in_library;
        $break->("print_cast") if $line =~ /\(\s*(?:unsigned\s+)?long\s+long\s*\)/;
        $break->("allocation") if $folder ne "base" && $line =~ /(?<![\w.>])(?:malloc|calloc|realloc)\s*\(/;
        $break->("rename") if $file ne "base/file.c" && $line =~ /(?<![\w.>])rename(?:at2?)?\s*\(/;
    }' "${sources[@]}")

# ---- against the lists ---------------------------------------------------------------------------------------------
faults=0 waiting=0
for rule in "${!not_yet[@]}"; do
    broken_in=$(awk -v rule="$rule" '$1 == rule { print $2 }' <<<"$found" | sort -u)
    for folder in $broken_in; do
        if grep -qx -- "$folder" < <(printf "%s\n" ${not_yet[$rule]}); then
            waiting=$((waiting + 1))
            continue
        fi
        echo "FAULT: ${meaning[$rule]}:"
        awk -v rule="$rule" -v folder="$folder" '$1 == rule && $2 == folder' <<<"$found" | cut -d' ' -f3- | sed 's/^/    /'
        faults=$((faults + 1))
    done
    for folder in ${not_yet[$rule]}; do
        grep -qx -- "$folder" <<<"$broken_in" && continue
        echo "FAULT: $folder keeps the rule \"$rule\" now: take it out of this check's not_yet[$rule]"
        faults=$((faults + 1))
    done
done
[ $faults -eq 0 ] && echo "${#sources[@]} files, ${#not_yet[@]} rules of form; $waiting folders still break one"
exit $((faults > 0))
