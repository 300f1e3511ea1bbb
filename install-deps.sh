#!/usr/bin/env bash
# Installs what Waybill builds with, from the distribution's packages (Debian 12, Ubuntu 24.04); needs root or sudo only
# when something is missing. usage: install-deps.sh [--tests] [--clang]
set -euo pipefail

packages=(gcc libc6-dev cmake make pkg-config libopenmpi-dev openmpi-bin libzstd-dev zlib1g-dev libxxhash-dev libjansson-dev)
for option in "$@"; do
    case "$option" in
    --tests) packages+=(libcmocka-dev python3 python3-msgpack python3-numpy python3-zstandard clang-format g++) ;;
    --clang) packages+=(clang libclang-rt-dev libomp-dev) ;; # with its sanitizers and its OpenMP
    *) sed -n '2,3s/^# //p' "$0"; [ "$option" = --help ] && exit 0 || exit 2 ;;
    esac
done

installed() { dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }

# msgpack-c's package is libmsgpack-dev on Debian 12, libmsgpack-c-dev on Ubuntu 24.04 (where the old name is the C++ library).
installed libmsgpack-c-dev || [ -e /usr/include/msgpack/pack.h ] || packages+=(libmsgpack-c-dev)

missing=()
for package in "${packages[@]}"; do installed "$package" || missing+=("$package"); done
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "install-deps.sh: needs root or sudo to install: ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
fi
command -v apt-get >/dev/null || { echo "install-deps.sh: no apt-get here; please install: ${missing[*]}" >&2; exit 1; }

echo "installing: ${missing[*]}"
"${as_root[@]}" apt-get update -qq
for i in "${!missing[@]}"; do
    if [ "${missing[$i]}" = libmsgpack-c-dev ] && ! apt-cache show libmsgpack-c-dev >/dev/null 2>&1; then
        missing[$i]=libmsgpack-dev
    fi
done
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
