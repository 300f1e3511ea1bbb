#!/usr/bin/env bash
# The Python package as the build tree has it, with numpy alone and without the network. tests/python/run.sh runs these tests on
# an installed wheel, and those of PyTorch and transformers. usage: check_python.sh BUILD_DIR SOURCE_DIR
set -uo pipefail
build=$1 source=$2
[ -z "${WB_SANITIZE:-}" ] || { echo "skip: an interpreter that is not sanitized cannot load the library"; exit 77; }
# The distribution's python3 has the packages of install-deps.sh, whatever comes first on the path.
for python in python3 /usr/bin/python3 ''; do
    [ -n "$python" ] || { echo "skip: no python3 with numpy here"; exit 77; }
    "$python" -c 'import sys, numpy; assert sys.version_info >= (3, 9)' 2>/dev/null && break
done
export PYTHONPATH=$build/python PYTHONDONTWRITEBYTECODE=1
faults=0
for test in "$source"/tests/python/test_*.py; do
    case ${test##*/} in test_torch.py | test_hf.py | test_megatron.py | test_trl.py | test_tokenize.py | test_round_trip.py) continue ;; esac
    timeout 300 "$python" "$test" || { echo "FAULT: ${test##*/}"; faults=$((faults + 1)); }
done
exit $((faults > 0))
