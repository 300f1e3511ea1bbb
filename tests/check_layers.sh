#!/usr/bin/env bash
# The house's rules, of which the build enforces what it can: a room finds the headers of the rooms below it and no others;
# MPI, NCCL and CUDA stay in their adapters; the library does not print, exit or read the environment.
# usage: check_layers.sh BUILD_DIR SOURCE_DIR
set -uo pipefail
export LC_ALL=C
build=$1 source=$2
cc=${CC:-cc}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
faults=0
fault() {
    echo "FAULT: $*"
    faults=$((faults + 1))
}

# ---- what each folder may include, of the public headers ---------------------------------------------------
rooms='
formats          wb_formats.h wb_check.h
kernels          wb_formats.h wb_check.h wb_kernels.h
kernels/cpu      wb_formats.h wb_check.h wb_kernels.h
kernels/cuda     wb_formats.h wb_check.h wb_kernels.h
kernels/comm     wb_formats.h wb_check.h wb_comm.h
kernels/comm/mpi wb_formats.h wb_check.h wb_comm.h wb_comm_mpi.h
eplb             wb_formats.h wb_check.h wb_comm.h wb_eplb.h
model            wb_formats.h wb_check.h wb_comm.h wb_kernels.h wb_model.h
replay           wb_formats.h wb_check.h wb_replay.h
train_hooks      wb_formats.h wb_check.h wb_kernels.h wb_replay.h wb_train_hooks.h
rollout          wb_formats.h wb_check.h wb_comm.h wb_kernels.h wb_model.h wb_rollout.h
cli              wb_formats.h wb_check.h wb_comm.h wb_eplb.h
'
library_rooms=$(echo "$rooms" | awk 'NF && $1 != "cli" { print $1 }')

mapfile -t sources < <(cd "$source" && find . -type d \( -name 'build*' -o -name '.?*' \) -prune -o \
    -type f \( -name '*.c' -o -name '*.h' -o -name '*.cu' \) -printf '%P\n' | sort)
[ ${#sources[@]} -gt 50 ] || fault "expected more than 50 source files under $source, found ${#sources[@]}"
mapfile -t headers < <(printf '%s\n' "${sources[@]}" | grep -E '(^|/)wb_[a-z_]+\.h$')

# The include path with which the build compiles FOLDER's files.
include_path() {
    local commands
    commands=$(grep '"command":' "$build/compile_commands.json" | grep -E -- "-c $source/$1/[^/ ]+\.(c|cu)[ \"]")
    {
        grep -oE -- '-(I|isystem) ?[^ ]+' <<<"$commands"
        grep -oE -- '--options-file [^ ]+' <<<"$commands" | sort -u | while read -r _ file; do # nvcc's
            tr ' ' '\n' <"$build/$file" | tr -d '"' | grep -E '^-I'
        done
    } | sort -u | tr '\n' ' '
}

# finds HEADER FLAG... : 0 when it compiles, 1 when HEADER itself is not found, 2 for anything else
finds() {
    local header=$1
    shift
    echo "#include \"$header\"" >"$scratch/one.c"
    "$cc" -std=c11 -D_GNU_SOURCE -fsyntax-only "$@" "$scratch/one.c" 2>"$scratch/messages" && return 0
    grep -qE "fatal error: '?$header'?( file not found|: No such file)" "$scratch/messages" && return 1
    return 2
}

checked=0
while read -r room allowed; do
    [ -n "$room" ] || continue
    read -ra path < <(include_path "$room")
    if [ ${#path[@]} -eq 0 ]; then
        echo "$room: not built here" # without CUDA or MPI
        case "$room" in kernels/cuda | kernels/comm/mpi) ;; *) fault "$room: no compile command" ;; esac
        continue
    fi
    for header in "${headers[@]##*/}"; do
        finds "$header" "${path[@]}"
        found=$?
        checked=$((checked + 1))
        case " $allowed " in
        *" $header "*) [ $found -eq 0 ] || { fault "$room may include $header, but that fails:"; cat "$scratch/messages"; } ;;
        *) [ $found -eq 1 ] || { fault "$room must not find $header, but does"; cat "$scratch/messages"; } ;;
        esac
    done
done <<<"$rooms"

# A room that this table does not know, a header that is nobody's.
for header in "${headers[@]}"; do
    grep -qE "^$(dirname "$header") " <<<"$rooms" || fault "$header: folder $(dirname "$header") is missing in this check's table"
done

# ---- the rest by reading ---------------------------------------------------------------------------------
# code FILE : without comments and the insides of strings, the same lines
code() {
    perl -0777 -pe 's{/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\x27(?:\\.|[^\x27\\\n])+\x27}
                     { my $t = $&; my $lines = $t =~ tr/\n//; ($t =~ /^"/ ? "\"\"" : " ") . "\n" x $lines }gsex' "$1"
}

# refuse WHAT PATTERN FILE... : no code line matches the Perl pattern
refuse() {
    local what=$1 pattern=$2 file found
    shift 2
    for file in "$@"; do
        found=$(code "$source/$file" | grep -nP -- "$pattern") && fault "$file: $what: $found"
    done
}

# refuse_include WHAT PATTERN FILE...
refuse_include() {
    local what=$1 pattern=$2 file found
    shift 2
    for file in "$@"; do
        found=$(grep -nE "^[ \t]*#[ \t]*include[ \t]*[<\"]($pattern)[>\"]" "$source/$file") && fault "$file: $what: $found"
    done
}

outside() { printf '%s\n' "${sources[@]}" | grep -vE "^($1)/"; }
mapfile -t library < <(printf '%s\n' "${sources[@]}" | grep -E "^($(echo $library_rooms | tr ' ' '|'))/")

duplicates=$(printf '%s\n' "${sources[@]##*/}" | sort | uniq -d)
[ -z "$duplicates" ] || fault "file names used twice:" $duplicates

for file in "${sources[@]}"; do
    head -n 1 "$source/$file" | grep -qF "/* ${file##*/} - " || fault "$file: expected to open with /* ${file##*/} - what it owns"
done

mapfile -t files < <(outside 'kernels/comm/mpi|tests|examples')
refuse_include 'MPI outside of its adapter' 'mpi\.h' "${files[@]}"
mapfile -t files < <(outside 'kernels/comm/nccl|tests|examples')
refuse_include 'NCCL outside of its adapter' 'nccl\.h' "${files[@]}"
mapfile -t files < <(outside 'kernels/cuda|kernels/comm/nccl|tests')
refuse_include 'CUDA outside of its backend' 'cuda(_runtime|_runtime_api|_bf16|_fp16|_fp8)?\.h' "${files[@]}"
refuse_include 'another room by its path' '\.\./.*' "${library[@]}"

refuse 'the library does not print' '(?<![\w>.])(v?printf|puts|putchar|perror)\s*\(|\b(stdout|stderr)\b' "${library[@]}"
refuse 'the library does not end the process' \
    '(?<![\w>.])(_?exit|_Exit|quick_exit|abort|assert|raise|kill)\s*\(|\bmain\s*\(' "${library[@]}"
refuse 'no behaviour behind an environment variable' '\b(secure_)?(getenv|setenv|putenv)\s*\(|\benviron\b' "${library[@]}"
refuse 'MPI is started and ended by its user' '\bMPI_(Init|Init_thread|Finalize)\b' "${library[@]}"

# Arithmetic that the compiler may rearrange gives bits that differ from build to build.
grep -nE -- '-f(fast-math|associative-math|unsafe-math-optimizations|fp-contract=fast)|-Ofast|use_fast_math' \
    "$build/compile_commands.json" "$source/CMakeLists.txt" "$source/tests/CMakeLists.txt" && fault "fast math"
refuse 'fast math' 'pragma\s+(GCC\s+optimize|STDC\s+FP_CONTRACT\s+ON|clang\s+fp)|__attribute__.*optimize' "${sources[@]}"

[ $faults -eq 0 ] && echo "$checked includes and ${#sources[@]} files keep the house's rules"
exit $((faults > 0))
