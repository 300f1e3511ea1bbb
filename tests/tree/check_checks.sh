#!/usr/bin/env bash
# The checks of the tree can fail: each finds a violation that is planted in a copy of the tree, and names it.
# usage: check_checks.sh BUILD_DIR SOURCE_DIR
set -uo pipefail
export LC_ALL=C
build=$1 source=$2
[ -z "${WB_SANITIZE:-}" ] || { echo "skip: the ordinary build checks this"; exit 77; }
checks=$source/tests/tree
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
tree=$scratch/tree
faults=0
fault() {
    echo "FAULT: $*"
    faults=$((faults + 1))
}
configure() {
    cmake -S "$tree" -B "$scratch/build" -DCMAKE_C_COMPILER="${CC:-cc}" -DBUILD_TESTING=OFF -DWB_CUDA=OFF -DWB_MPI=OFF \
        >"$scratch/output" 2>&1 || { cat "$scratch/output"; exit 1; }
}

# finds CHECK "what it must say" : CHECK, run on the copy, fails and says so
finds() {
    local check=$1 part=$2
    if bash "$checks/$check.sh" "$scratch/build" "$tree" >"$scratch/output" 2>&1; then
        fault "$check does not find it: $part"
    elif ! grep -qF -- "$part" "$scratch/output"; then
        fault "$check fails, but without a word of: $part"
        sed 's/^/    /' "$scratch/output"
    fi
    n=$((n + 1))
}
n=0
passes() {
    bash "$checks/$1.sh" "$scratch/build" "$tree" >"$scratch/output" 2>&1 && return
    fault "$1 finds a fault in an unchanged copy of the tree:"
    sed 's/^/    /' "$scratch/output"
}
# with FILE TEXT CHECK "what" : TEXT is added to FILE of the copy for one run of CHECK
with() {
    local file=$tree/$1 existed=no
    mkdir -p "$(dirname "$file")"
    [ -e "$file" ] && existed=yes && cp "$file" "$scratch/kept"
    printf '%s\n' "$2" >>"$file"
    finds "$3" "$4"
    if [ $existed = yes ]; then cp "$scratch/kept" "$file"; else rm "$file"; fi
}

mkdir "$tree"
(cd "$source" && find . -type d \( -name 'build*' -o -name '.?*' \) -prune -o \( -type f -o -type l \) -print0 |
    tar -c --null --no-recursion -T - -f -) | tar -x -C "$tree" -f -
configure

# ---- check_layers: what is read ----------------------------------------------------------------------------------
passes check_layers
with base/status.c 'void planted(void) { printf("x"); }' check_layers 'base/status.c: the library does not print'
with formats/rows.c 'void planted(void) { abort(); }' check_layers 'formats/rows.c: the library does not end the process'
with eplb/solve.c 'void planted(void) { getenv("X"); }' check_layers 'eplb/solve.c: no behaviour behind an environment variable'
with replay/wb_replay.h '#include <mpi.h>' check_layers 'replay/wb_replay.h: MPI outside of its adapter'
with kernels/wb_kernels.h '#include <cuda_runtime.h>' check_layers 'kernels/wb_kernels.h: CUDA outside of its backend'
with model/model.c '#include "../rollout/wb_rollout.h"' check_layers 'model/model.c: another room by its path'
with model/model.c '#include "layers/../../rollout/wb_rollout.h"' check_layers 'model/model.c: another room by its path'
with examples/01_train_hooks.c '#include "wb_memory.h"' check_layers 'wb_memory.h is not a public header'
with comm/planted.c 'int planted;' check_layers 'comm/planted.c: expected to open with'
with comm/rows.c '/* rows.c - a second file of this name. */' check_layers ' rows.c'
with nowhere/wb_planted.h '/* wb_planted.h - a room of its own. */' check_layers 'nowhere/wb_planted.h: its folder is missing'

# ---- what the build makes a compile error, and check_layers if the build did not -----------------------------------
# compiles ROOM/FILE.c "#include line" : with the compiler and the include path of that file
compiles() {
    local command
    command=$(grep '"command":' "$scratch/build/compile_commands.json" | grep -F -- " -c $tree/$1" | head -n 1 |
        sed -E 's/^ *"command": "//; s/",?$//; s/\\"/"/g; s/ -o [^ ]+//; s/ -c [^ ]+//')
    [ -n "$command" ] || { fault "no command compiles $1"; return 1; }
    printf '%s\nextern int wb_planted;\n' "$2" >"$scratch/planted.c"
    eval "$command -fsyntax-only $scratch/planted.c" >"$scratch/output" 2>&1
}
# an_error FILE HEADER : FILE's room cannot include it
an_error() {
    n=$((n + 1))
    compiles "$1" "#include \"$2\"" && fault "$1 can include $2"
    grep -qE "$2.*No such file|'$2' file not found" "$scratch/output" || fault "$1 cannot include $2 for another reason"
}
# The sources are found, not named: files of the rooms may change.
one_of() { (cd "$tree" && find "$1" -maxdepth 1 -name '*.c' | sort | head -n 1); }
internal_of() { (cd "$tree" && find "$1" -name '*.h' ! -name 'wb_*' -printf '%P\n' | sort | head -n 1); }
compiles "$(one_of replay)" '#include "wb_formats.h"' || fault "replay cannot include wb_formats.h"
an_error "$(one_of replay)" "$(internal_of formats)"
an_error "$(one_of replay)" wb_model.h
an_error "$(one_of formats)" wb_comm.h
an_error "$(one_of model)" wb_rollout.h
an_error "$(one_of cli)" "$(internal_of eplb)"

cp "$tree/CMakeLists.txt" "$scratch/CMakeLists.txt"
# rebuilt "CMake line" "what it must say" : the line is added and the tree configured again
rebuilt() {
    cp "$scratch/CMakeLists.txt" "$tree/CMakeLists.txt"
    echo "$1" >>"$tree/CMakeLists.txt"
    configure
    finds check_layers "$2"
}
rebuilt 'target_include_directories(wb_replay PRIVATE formats)' "replay must not find $(basename "$(internal_of formats)"), which formats keeps to itself"
rebuilt 'target_link_libraries(wb_formats PUBLIC wb_comm)' 'formats must not find wb_comm.h'
rebuilt 'target_link_libraries(wb_model PRIVATE wb_rollout)' 'model must not find wb_rollout.h'
rebuilt 'target_compile_options(wb_base PRIVATE -ffast-math)' 'fast math'
cp "$scratch/CMakeLists.txt" "$tree/CMakeLists.txt"

# ---- check_circles: a room of three files that use each other -------------------------------------------------------
mkdir "$scratch/circles"
ln -s "$build"/libwb_*.a "$scratch/circles"
chain() { # ROOM A_USES_C : a uses b, b uses c, and c uses a unless told otherwise
    local room=$1 last=$2 i=0 next
    for next in two three "$last"; do
        i=$((i + 1))
        printf 'int one(void), two(void), three(void);\nint %s(void) { return %s; }\n' "$(echo one two three | cut -d' ' -f$i)" \
            "$([ "$next" = none ] && echo 1 || echo "$next()")" >"$scratch/$room$i.c"
        "${CC:-cc}" -c -o "$scratch/$room$i.o" "$scratch/$room$i.c" || exit 1
    done
    rm -f "$scratch/circles/libwb_$room.a"
    ar rc "$scratch/circles/libwb_$room.a" "$scratch/$room"[123].o
}
circles() { bash "$checks/check_circles.sh" "$scratch/circles" "$source" >"$scratch/output" 2>&1; }
if command -v nm >/dev/null && command -v tsort >/dev/null; then
    chain planted none
    circles || { fault "check_circles finds a circle in a chain:"; cat "$scratch/output"; }
    chain planted one
    circles && fault "check_circles does not find a circle of three files"
    grep -qF 'planted: files that use each other in a circle' "$scratch/output" || fault "check_circles does not name the room"
    for i in 1 2 3; do grep -q "planted$i" "$scratch/output" || fault "check_circles does not name planted$i.c"; done
    : >"$scratch/empty.c" && "${CC:-cc}" -c -o "$scratch/empty.o" "$scratch/empty.c"
    rm "$scratch/circles/libwb_planted.a" && ar rc "$scratch/circles/libwb_planted.a" "$scratch/empty.o"
    circles && fault "check_circles takes a room without a symbol for one without a circle"
    n=$((n + 2))
fi

# ---- check_one_hand ----------------------------------------------------------------------------------------------
passes check_one_hand
with base/planted.c 'int planted(const char *p) { if (p == NULL) return 1; return 0; }' check_one_hand 'base/planted.c:1: '
with base/planted.c 'void *planted(int *p) { return (void **)&p; }' check_one_hand 'base/planted.c:1: '
with base/planted.c 'long long planted(int n) { return (long long)n; }' check_one_hand 'base/planted.c:1: '
with train_hooks/planted.c 'void *planted(void) { return malloc(1); }' check_one_hand 'train_hooks/planted.c:1: '
with base/planted.c 'int planted(void) { return rename("a", "b"); }' check_one_hand 'base/planted.c:1: '
with base/planted.c $'#include <stdio.h>\n#include "wb_base.h"' check_one_hand 'base/planted.c:2: '

# ---- check_docs: with the real build's tests ------------------------------------------------------------------------
docs() { # FILE "text added" "what it must say"
    cp "$tree/$1" "$scratch/kept"
    printf '%s\n' "$2" >>"$tree/$1"
    bash "$checks/check_docs.sh" "$build" "$tree" >"$scratch/output" 2>&1 && fault "check_docs does not find it: $3"
    grep -qF -- "$3" "$scratch/output" || { fault "check_docs does not say: $3"; sed 's/^/    /' "$scratch/output"; }
    cp "$scratch/kept" "$tree/$1"
    n=$((n + 1))
}
bash "$checks/check_docs.sh" "$build" "$tree" >"$scratch/output" 2>&1 ||
    { fault "check_docs finds a fault in an unchanged copy:"; sed 's/^/    /' "$scratch/output"; }
docs README.md 'See `formats/nothing.c`.' 'README.md names formats/nothing.c'
docs docs/words.md 'See `formats/nothing/`.' 'docs/words.md names formats/nothing/'
docs docs/words.md 'See [there](nothing.md).' 'docs/words.md links to nothing.md'
docs CONTRIBUTING.md 'See `nothing.sh`.' 'CONTRIBUTING.md names nothing.sh'
docs docs/rules.md $'## 40. One more\n**Tests:** `test_dump`.' "expected the headings"
docs docs/rules.md $'## 39. Again\n**Where:** nowhere.' 'rule 39 names no test and does not say what is missing'
docs docs/rules.md $'## 39. Again\n**Tests:** `test_nothing`.' 'test_nothing is not a test'
docs docs/rules.md $'## 39. Again\n**Tests:** `test_dump: test_nothing`.' 'test_dump has no function test_nothing'
docs docs/rules.md $'## 39. Again\n**Tests:** `test_dump`.' "the table's column holds"
version=$(sed -nE 's/^project\(waybill VERSION ([0-9.]+).*/\1/p' "$source/CMakeLists.txt")
docs base/status.c "const char planted[] = \"$version\";" 'the version is typed again'
docs tests/replay/test_replay.c 'static void test_rule_7_planted(void **unused) {' 'rule 7 does not name its test test_rule_7_planted'

[ $faults -eq 0 ] && echo "$n planted violations were found"
exit $((faults > 0))
