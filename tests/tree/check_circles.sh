#!/usr/bin/env bash
# No circle of files inside a room: where a.c uses a function of b.c, b.c uses none of a.c, directly or on the way, so that a
# room can be read, and tested, from the bottom up. usage: check_circles.sh BUILD_DIR SOURCE_DIR
set -uo pipefail
export LC_ALL=C
build=$1 source=$2
[ -z "${WB_SANITIZE:-}" ] || { echo "skip: the ordinary build checks this"; exit 77; }
command -v nm >/dev/null && command -v tsort >/dev/null || { echo "skip: no nm or tsort here"; exit 77; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
faults=0 rooms=0
for archive in "$build"/libwb_*.a; do
    # user -> file that defines the symbol, from the objects of one room (the CPU ops once, not for each instruction set)
    nm -A "$archive" 2>/dev/null | sed -E 's/^[^:]*:([^:]*):/\1 /' | awk '
        { file = $1; symbol = $NF; type = $(NF - 1) }
        type ~ /^[TDBRV]$/ && !(symbol in owner) { owner[symbol] = file }
        type == "U" { users[symbol] = users[symbol] " " file }
        END {
            for (symbol in users) {
                if (!(symbol in owner)) continue
                n = split(users[symbol], list, " ")
                for (i = 1; i <= n; i++) if (list[i] != owner[symbol]) print list[i], owner[symbol]
            }
        }' | sort -u >"$scratch/uses"
    rooms=$((rooms + 1)) room=$(basename "$archive" .a)
    # Online code, which runs inside an engine or a trainer, uses no offline code: folders offline/, and simulate/.
    find "$source/${room#libwb_}" \( -path '*/offline/*.c' -o -path '*/simulate/*.c' \) -printf '%f.o\n' \
        >"$scratch/offline" 2>/dev/null
    upward=$(awk 'NR == FNR { offline[$1]; next } !($1 in offline) && $2 in offline' "$scratch/offline" "$scratch/uses")
    if [ -n "$upward" ]; then
        echo "FAULT: ${room#libwb_}: online files use offline ones:"
        sed 's/^/    /' <<<"$upward"
        faults=$((faults + 1))
    fi
    if [ ! -s "$scratch/uses" ] && ! nm "$archive" 2>/dev/null | grep -q ' [TDBRV] '; then
        echo "FAULT: ${room#libwb_}: nm finds no symbol in $archive"
        faults=$((faults + 1))
    fi
    tsort "$scratch/uses" >/dev/null 2>"$scratch/loops" && continue
    echo "FAULT: ${room#libwb_}: files that use each other in a circle:"
    sed 's/^tsort: [^:]*: /    /; s/^tsort: /    /' "$scratch/loops"
    faults=$((faults + 1))
done
[ $rooms -ge 8 ] || { echo "FAULT: expected 8 rooms and more, found $rooms archives"; faults=$((faults + 1)); }
[ $faults -eq 0 ] && echo "no circle of files in $rooms rooms"
exit $((faults > 0))
