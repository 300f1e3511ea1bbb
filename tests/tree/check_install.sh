#!/usr/bin/env bash
# The installed tree serves a stranger: by find_package, with and without the MPI adapter, and by pkg-config, under a prefix
# other than the configured one. usage: check_install.sh BUILD_DIR SOURCE_DIR
set -uo pipefail
build=$1
cc=${CC:-cc}
[ -z "${WB_SANITIZE:-}" ] || { echo "skip: programs that link a sanitized library need its sanitizer"; exit 77; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
faults=0
# try WHAT COMMAND... : a fault with its output unless it succeeds
try() {
    local what=$1
    shift
    "$@" >"$scratch/output" 2>&1 && return 0
    echo "FAULT: $what: $*"
    sed 's/^/    /' "$scratch/output"
    faults=$((faults + 1))
    return 1
}
# says WHAT TEXT COMMAND... : it succeeds and prints TEXT
says() {
    local what=$1 text=$2
    shift 2
    try "$what" "$@" || return 1
    grep -qF -- "$text" "$scratch/output" && return 0
    echo "FAULT: $what: expected \"$text\", found: $(cat "$scratch/output")"
    faults=$((faults + 1))
}

# Installed, then moved: nothing may know where it was.
try "install" cmake --install "$build" --prefix "$scratch/first" || exit 1
mv "$scratch/first" "$scratch/prefix"
prefix=$scratch/prefix
# Texts, and where programs look for libraries; debug information may name the build.
grep -rIlF -e "$scratch/first" -e "$build" "$prefix" && { echo "FAULT: the files above name a build or install path"; faults=1; }
find "$prefix" -type f \( -name '*.so*' -o -path '*/bin/*' \) -exec readelf -d {} + | grep -E 'R(UN)?PATH' | grep -F "$build" &&
    { echo "FAULT: the above is looked for in the build folder"; faults=1; }
version=$("$prefix/bin/waybill" --version | sed 's/waybill //')

# ---- the programs
says "waybill --help" inspect "$prefix/bin/waybill" --help
[ ! -e "$prefix/bin/waybill-grpo" ] || says "waybill-grpo --help" usage: "$prefix/bin/waybill-grpo" --help

for program in "$prefix"/bin/*; do
    page=$prefix/share/man/man1/${program##*/}.1
    [ -s "$page" ] || { echo "FAULT: expected a manual page $page"; faults=$((faults + 1)); }
done

for file in bash-completion/completions/waybill zsh/site-functions/_waybill; do
    [ -s "$prefix/share/$file" ] || { echo "FAULT: expected a completion $prefix/share/$file"; faults=$((faults + 1)); }
done

# ---- a consumer
cat >"$scratch/consumer.c" <<'END'
#include <stdio.h>
#include <waybill.h>
#ifdef WITH_MPI
#include <wb_comm_mpi.h>
#endif

int main(int argc, char **argv) {
    wb_comm *comm = NULL;
    wb_device *device = NULL;
    wb_status status;
#ifdef WITH_MPI
    MPI_Init(&argc, &argv);
    status = wb_comm_open_mpi(MPI_COMM_SELF, &comm);
#else
    (void)argc, (void)argv;
    status = wb_comm_open_self(&comm);
#endif
    if (status == WB_OK) status = wb_device_open_cpu(1, &device);
    uint64_t largest = 7;
    if (status == WB_OK) status = wb_comm_all_reduce_max_u64(comm, &largest);
    if (status == WB_OK) printf("waybill %s on %s, %s, %d\n", wb_version(), wb_device_name(device), wb_comm_name(comm), (int)largest);
    else printf("%s\n", wb_error_message());
    wb_device_close(device);
    wb_comm_close(comm);
#ifdef WITH_MPI
    MPI_Finalize();
#endif
    return status != WB_OK;
}
END

# project FOLDER FIND_PACKAGE_ARGUMENTS TARGET : a CMake project of it
project() {
    mkdir "$scratch/$1"
    cp "$scratch/consumer.c" "$scratch/$1"
    cat >"$scratch/$1/CMakeLists.txt" <<END
cmake_minimum_required(VERSION 3.22)
project(consumer LANGUAGES C)
find_package(waybill $2)
add_executable(consumer consumer.c)
target_link_libraries(consumer PRIVATE $3)
END
    [ "$3" != waybill::waybill_mpi ] ||
        echo 'target_compile_definitions(consumer PRIVATE WITH_MPI)' >>"$scratch/$1/CMakeLists.txt"
}
configure() { cmake -S "$scratch/$1" -B "$scratch/$1/build" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_C_COMPILER="$cc"; }

project plain "${version%.*} REQUIRED" waybill::waybill
try "find_package(waybill)" configure plain &&
    try "a consumer's build" cmake --build "$scratch/plain/build" &&
    says "a consumer" "waybill $version on cpu" "$scratch/plain/build/consumer"

if [ -e "$prefix/include/waybill/wb_comm_mpi.h" ]; then
    project mpi "REQUIRED COMPONENTS mpi" waybill::waybill_mpi
    # One process without mpirun; a container's root is the usual user of CI.
    try "find_package(waybill COMPONENTS mpi)" configure mpi &&
        try "an MPI consumer's build" cmake --build "$scratch/mpi/build" &&
        says "an MPI consumer" ", mpi, 7" env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
            OMPI_MCA_orte_tmpdir_base="$scratch" \
            "$scratch/mpi/build/consumer"
    # The adapter finds the library beside it by itself.
    try "libwaybill_mpi's own libraries" bash -c '! ldd "$1"/*/libwaybill_mpi.so | grep "not found"' - "$prefix"
else
    echo "built without MPI: its component is not checked"
fi

# What there is not is refused.
for arguments in "99.0 REQUIRED" "REQUIRED COMPONENTS nothing_of_the_kind"; do
    rm -rf "$scratch/refused"
    project refused "$arguments" waybill::waybill
    if configure refused >"$scratch/output" 2>&1; then
        echo "FAULT: find_package(waybill $arguments): expected a refusal"
        faults=$((faults + 1))
    fi
done

# ---- pkg-config, in C and in C++
pc=$(dirname "$(find "$prefix" -name waybill.pc)")
flags() { PKG_CONFIG_PATH=$pc pkg-config "$@" waybill; }
try "pkg-config" flags --exists
[ "$(flags --modversion)" = "$version" ] || { echo "FAULT: pkg-config: expected version $version"; faults=$((faults + 1)); }
read -ra cflags < <(flags --cflags)
read -ra libs < <(flags --libs)
rpath=-Wl,-rpath,$(flags --variable=libdir)
try "C by pkg-config" "$cc" -std=c11 "${cflags[@]}" "$scratch/consumer.c" "${libs[@]}" "$rpath" -o "$scratch/consumer" &&
    says "C by pkg-config" "self, 7" "$scratch/consumer"
if command -v g++ >/dev/null; then
    try "C++ by pkg-config" g++ -std=c++17 "${cflags[@]}" -x c++ "$scratch/consumer.c" -x none "${libs[@]}" "$rpath" \
        -o "$scratch/consumer++" && says "C++ by pkg-config" "self, 7" "$scratch/consumer++"
fi

[ $faults -eq 0 ] && echo "installed, moved and used: waybill $version"
exit $((faults > 0))
