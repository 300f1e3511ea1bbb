#!/usr/bin/env bash
# Every public header compiles alone, as C11 and as C++17, without a warning, and brings no header of CUDA; mpi.h comes with
# wb_comm_mpi.h only. usage: check_headers.sh BUILD_DIR SOURCE_DIR
set -uo pipefail
source=$2 # public_headers.txt: what the build installs
cc=${CC:-cc}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
faults=0
fault() {
    echo "FAULT: $*"
    faults=$((faults + 1))
}

mapfile -t headers < <(grep . "$1/public_headers.txt"; printf '%s\n' "$source/comm/mpi/wb_comm_mpi.h" "$source/comm/nccl/wb_comm_nccl.h")
[ ${#headers[@]} -ge 8 ] || fault "expected 8 public headers and more, found ${#headers[@]}"

# As when installed: all of them in one folder, and nothing else.
mkdir "$scratch/include"
cp "${headers[@]}" "$scratch/include"

cxx=$(command -v g++ || command -v clang++) || cxx=
[ -n "$cxx" ] || echo "no C++ compiler here: headers are checked as C only"
strict=(-Wall -Wextra -Wconversion -pedantic -Werror -fsyntax-only -I "$scratch/include")

# compile HEADER FILE COMMAND... : FILE with its warnings and what it includes
compile() {
    local header=$1 file=$2
    shift 2
    "$@" "${strict[@]}" "$file" >"$scratch/messages" 2>&1 || {
        fault "$header: $*:"
        cat "$scratch/messages"
    }
    "$@" "${strict[@]}" -H "$file" 2>&1 | grep '^\.' >"$scratch/included"
    grep -qF "/$header" "$scratch/included" || fault "$header: the list of what it includes lacks itself"
    grep -iE '/(cuda[a-z_]*|cuda/.*|nccl)\.h' "$scratch/included" && fault "$header: includes a header of CUDA"
    if [ "$header" != wb_comm_mpi.h ] && grep -E '/mpi\.h' "$scratch/included"; then fault "$header: includes mpi.h"; fi
}

for path in "${headers[@]}"; do
    header=$(basename "$path")
    # Twice: the include guard holds. The declaration after it: C11 wants a translation unit not to be empty.
    printf '#include "%s"\n#include "%s"\nextern int wb_header_compiled;\n' "$header" "$header" >"$scratch/alone.c"
    cp "$scratch/alone.c" "$scratch/alone.cc"
    mpi=()
    if [ "$header" = wb_comm_mpi.h ]; then
        # As system headers: mpi.h's own warnings are not ours.
        read -ra mpi < <(grep '/comm_mpi\.c' "$1/compile_commands.json" | grep -oE -- '-isystem [^ ]+' | sort -u | tr '\n' ' ')
        [ ${#mpi[@]} -gt 0 ] || { echo "built without MPI: wb_comm_mpi.h is not checked"; continue; }
    fi
    compile "$header" "$scratch/alone.c" "$cc" -std=c11 "${mpi[@]}"
    [ -z "$cxx" ] || compile "$header" "$scratch/alone.cc" "$cxx" -std=c++17 "${mpi[@]}"
done

[ $faults -eq 0 ] && echo "${#headers[@]} public headers compile alone"
exit $((faults > 0))
