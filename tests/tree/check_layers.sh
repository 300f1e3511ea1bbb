#!/usr/bin/env bash
# The house's rules, of which the build enforces what it can: a room finds the headers that the rooms below it show and no
# others; MPI, NCCL and CUDA stay in their adapters; the library does not print, exit or read the environment.
# usage: check_layers.sh BUILD_DIR SOURCE_DIR
set -uo pipefail
export LC_ALL=C
build=$1 source=$2
faults=0
fault() {
    echo "FAULT: $*"
    faults=$((faults + 1))
}

# ---- what each room finds --------------------------------------------------------------------------------
# A room, and the rooms whose wb_*.h it finds; a line belongs to the deepest folder that it names.
rooms='
base         base
formats      base formats
comm         base comm
comm/mpi     base comm comm/mpi
comm/nccl    base comm comm/nccl
kernels      base kernels
kernels/cpu  base kernels
kernels/cuda base kernels
eplb         base formats comm kernels eplb
model        base formats comm kernels eplb model/checkpoint model
model/checkpoint base model/checkpoint
replay       base formats comm kernels eplb replay
train_hooks  base formats comm kernels eplb replay train_hooks
rollout      base formats comm kernels eplb model/checkpoint model rollout
cli          base formats comm kernels eplb model/checkpoint model
'
folders=$(awk 'NF { print $1 }' <<<"$rooms")
library_rooms=$(grep -vx cli <<<"$folders")

mapfile -t sources < <(cd "$source" && find . -type d \( -name 'build*' -o -name '.?*' \) -prune -o \
    -type f \( -name '*.c' -o -name '*.h' -o -name '*.cu' \) -printf '%P\n' | sort)
[ ${#sources[@]} -gt 50 ] || fault "expected more than 50 source files under $source, found ${#sources[@]}"

# room_of FILE : sets $owner to the deepest room that it lies in, "" when none
declare -A is_room=()
for folder in $folders; do is_room[$folder]=1; done
room_of() {
    owner=$1
    while [[ $owner == */* ]]; do
        owner=${owner%/*}
        [ -z "${is_room[$owner]:-}" ] || return 0
    done
    owner=
}

# The folders in which the build looks for headers that a file of ROOM names.
commands=$(grep '"command":' "$build/compile_commands.json")
include_path() {
    local room=$1 command file owner
    grep -F -- " -c $source/$room/" <<<"$commands" | while read -r command; do
        file=${command##* -c "$source"/}
        room_of "${file%%[ \"]*}"
        [ "$owner" = "$room" ] || continue
        grep -oE -- '-(I|isystem|iquote) ?[^ ]+' <<<"$command" | sed -E 's/^-(I|isystem|iquote) ?//'
        grep -oE -- '--options-file [^ ]+' <<<"$command" | while read -r _ options; do # nvcc's
            tr ' ' '\n' <"$build/$options" | tr -d '"' | grep -E '^-I' | cut -c3-
        done
    done | sort -u
}

checked=0
while read -r room allowed; do
    [ -n "$room" ] || continue
    mapfile -t path < <(include_path "$room")
    if [ ${#path[@]} -eq 0 ]; then
        echo "$room: not built here" # without CUDA, NCCL or MPI
        case "$room" in kernels/cuda | comm/mpi | comm/nccl) ;; *) fault "$room: no compile command" ;; esac
        continue
    fi
    for header in "${sources[@]}"; do
        [[ $header == *.h ]] || continue
        room_of "$header"
        [ -n "$owner" ] || continue
        name=${header##*/} found=no
        # A neighbour names a header by its file name, and of its own room from the room's folder on.
        for folder in "${path[@]}"; do
            [ -e "$folder/$name" ] || [ -e "$folder/${header#"$owner"/}" ] && found=yes
        done
        checked=$((checked + 1))
        case "$name" in wb_*) shown=yes ;; *) shown=no ;; esac
        [ "$owner" = "$room" ] && continue
        [[ $room == "$owner"/* ]] && [ $shown = no ] && continue # kernels/cpu sees what kernels keeps to itself
        case " $allowed " in
        *" $owner "*) [ $shown = no ] || [ $found = yes ] || fault "$room may include $name, but does not find it" ;;
        *) [ $found = no ] || fault "$room must not find $name, but does" ;;
        esac
        [ $shown = yes ] || [ $found = no ] || fault "$room must not find $name, which $owner keeps to itself, but does"
    done
done <<<"$rooms"

# Two headers of one name would hide each other; a header shown to neighbours belongs to a room.
for header in "${sources[@]}"; do
    [[ $header == tests/* || ${header##*/} != wb_*.h ]] && continue
    room_of "$header"
    [ -n "$owner" ] || fault "$header: its folder is missing in this check's table of rooms"
done

# ---- the rest by reading ---------------------------------------------------------------------------------
# refuse WHAT PATTERN FILE... : no code line matches the Perl pattern. Comments and the insides of strings are not code.
refuse() {
    local what=$1 pattern=$2 found
    shift 2
    while read -r found; do
        fault "${found%%:*}: $what: ${found#*:}"
    done < <(cd "$source" && pattern=$pattern perl -0777 -ne '
        s{/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\x27(?:\\.|[^\x27\\\n])+\x27}
         { my $t = $&; my $lines = $t =~ tr/\n//; ($t =~ /^"/ ? "\"\"" : " ") . "\n" x $lines }gsex;
        my $n = 0;
        for (split /\n/) { $n++; print "$ARGV:$n:$_\n" if /$ENV{pattern}/ }' "$@")
}

# refuse_include WHAT PATTERN FILE...
refuse_include() {
    local what=$1 pattern=$2 found
    shift 2
    while read -r found; do
        fault "${found%%:*}: $what: ${found#*:}"
    done < <(cd "$source" && grep -HnE "^[ \t]*#[ \t]*include[ \t]*[<\"]($pattern)[>\"]" "$@")
}

outside() { printf '%s\n' "${sources[@]}" | grep -vE "^($1)/"; }
mapfile -t library < <(printf '%s\n' "${sources[@]}" | grep -E "^($(echo $library_rooms | tr ' ' '|'))/")

duplicates=$(printf '%s\n' "${sources[@]##*/}" | sort | uniq -d)
[ -z "$duplicates" ] || fault "file names used twice:" $duplicates

for file in "${sources[@]}"; do
    head -n 1 "$source/$file" | grep -qF "/* ${file##*/} - " || fault "$file: expected to open with /* ${file##*/} - what it owns"
done

mapfile -t files < <(outside 'comm/mpi|tests|examples')
refuse_include 'MPI outside of its adapter' 'mpi\.h' "${files[@]}"
mapfile -t files < <(outside 'comm/nccl|tests|examples')
refuse_include 'NCCL outside of its adapter' 'nccl\.h' "${files[@]}"
mapfile -t files < <(outside 'kernels/cuda|comm/nccl|tests')
refuse_include 'CUDA outside of its backend' 'cuda(_runtime|_runtime_api|_bf16|_fp16|_fp8)?\.h' "${files[@]}"
refuse_include 'another room by its path' '([^>"]*/)?\.\./[^>"]*' "${library[@]}"
# The numbered examples are what a user would write.
for file in "${sources[@]}"; do
    [[ $file == examples/[0-9]*.c ]] || continue
    while read -r header; do
        grep -qE "/$header$" "$build/public_headers.txt" || fault "$file: $header is not a public header"
    done < <(sed -nE 's/^[ \t]*#[ \t]*include[ \t]*"([^"]+)".*/\1/p' "$source/$file")
done

refuse 'the library does not print' '(?<![\w>.])(v?printf|puts|putchar|perror)\s*\(|\b(stdout|stderr)\b' "${library[@]}"
refuse 'the library does not end the process' \
    '(?<![\w>.])(_?exit|_Exit|quick_exit|abort|assert|raise|kill)\s*\(|\bmain\s*\(' "${library[@]}"
# NCCL has no other way to be kept from NVLink multicast.
mapfile -t files < <(printf '%s\n' "${library[@]}" | grep -vx 'comm/nccl/nccl_library\.c')
refuse 'no behaviour behind an environment variable' '\b(secure_)?(getenv|setenv|putenv)\s*\(|\benviron\b' "${files[@]}"
refuse 'MPI is started and ended by its user' '\bMPI_(Init|Init_thread|Finalize)\b' "${library[@]}"

# Arithmetic that the compiler may rearrange gives bits that differ from build to build.
grep -nE -- '-f(fast-math|associative-math|unsafe-math-optimizations|fp-contract=fast)|-Ofast|use_fast_math' \
    "$build/compile_commands.json" "$source/CMakeLists.txt" "$source/tests/CMakeLists.txt" && fault "fast math"
refuse 'fast math' 'pragma\s+(GCC\s+optimize|STDC\s+FP_CONTRACT\s+ON|clang\s+fp)|__attribute__.*optimize' "${sources[@]}"

[ $faults -eq 0 ] && echo "$checked includes and ${#sources[@]} files keep the house's rules"
exit $((faults > 0))
