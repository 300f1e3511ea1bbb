#!/usr/bin/env bash
# What the libraries export is what the public headers declare with WB_API: not a symbol more, not one less.
# usage: check_exports.sh BUILD_DIR SOURCE_DIR
set -uo pipefail
export LC_ALL=C
build=$1 source=$2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
faults=0
fault() {
    echo "FAULT: $1"
    sed 's/^/    /' "$2"
    faults=$((faults + 1))
}
command -v nm >/dev/null || { echo "skip: no nm here"; exit 77; }
[ -z "${WB_SANITIZE:-}" ] || { echo "skip: sanitizers add symbols of their own"; exit 77; }

# declared HEADER... : functions declared with WB_API
declared() {
    perl -0777 -ne 's{/\*.*?\*/|//[^\n]*|^[ \t]*\#(?:\\\n|[^\n])*}{}gmsx;
                    print "$1\n" while /\bWB_API\b[^;{}()]*?\b(wb_\w+)\s*\(/g' "$@" | sort
}
# without_api HEADER... : prototypes of functions without WB_API
without_api() {
    perl -0777 -ne 's{/\*.*?\*/|//[^\n]*|^[ \t]*\#(?:\\\n|[^\n])*}{}gmsx;
                    print "$1\n" while /^(?!.*\b(?:WB_API|static|typedef)\b)\w[\w \*]*\b(wb_\w+)\s*\(/gm' "$@" | sort
}
# .gomp_critical_...: clang's lock of an OpenMP reduction, which is one for the whole process
exported() { nm -D --defined-only "$1" | awk '$NF !~ /^\.gomp_critical_/ { print $NF }' | sort; }

# same LIBRARY HEADER...
same() {
    local library=$1
    shift
    [ -e "$build/$library" ] || { echo "$library: not built here"; return; }
    declared "$@" >"$scratch/declared"
    exported "$build/$library" >"$scratch/exported"
    [ -s "$scratch/declared" ] || fault "$library: its headers declare nothing:" <(printf '%s\n' "$@")
    comm -13 "$scratch/declared" "$scratch/exported" >"$scratch/list"
    [ -s "$scratch/list" ] && fault "$library: exported, but not declared in a public header:" "$scratch/list"
    comm -23 "$scratch/declared" "$scratch/exported" >"$scratch/list"
    [ -s "$scratch/list" ] && fault "$library: declared, but not exported:" "$scratch/list"
    uniq -d "$scratch/declared" >"$scratch/list"
    [ -s "$scratch/list" ] && fault "$library: declared twice:" "$scratch/list"
    without_api "$@" >"$scratch/list"
    [ -s "$scratch/list" ] && fault "$library: declared in a public header without WB_API:" "$scratch/list"
    [ $faults -eq 0 ] && echo "$library exports the $(wc -l <"$scratch/declared") functions that its headers declare"
}

mapfile -t headers < <(grep . "$build/public_headers.txt" | grep -vE '/wb_comm_(mpi|nccl)\.h$')
same libwaybill.so "${headers[@]}"
same libwaybill_mpi.so "$source/comm/mpi/wb_comm_mpi.h"
same libwaybill_nccl.so "$source/comm/nccl/wb_comm_nccl.h"
exit $((faults > 0))
