#!/usr/bin/env bash
# `waybill tokenize`: its help, wrong command lines, and what it says where python3, the package or its tokenizers are not there; that
# the package's own command takes the same options. What it computes: tests/python/test_tokenize.py.
# usage: check_tokenize.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/../command_checks.sh"
check_help tokenize
grep -oE '^  --[a-z]+' "$scratch/help" | tr -d ' ' | sort >"$scratch/options"
echo "one plus one" >"$scratch/prompts.txt"
expect 2 "$waybill" tokenize
err_has "PROMPTS is needed"
expect 2 "$waybill" tokenize "$scratch/prompts.txt"
err_has "--tokenizer is needed"
expect 2 "$waybill" tokenize --tokenizer "$scratch" "$scratch/prompts.txt" -o "$scratch/prompts.txt"
err_has "expected a file that is not read"

expect 1 env PATH="$scratch" "$waybill" tokenize --tokenizer "$scratch" "$scratch/prompts.txt"
err_has "expected python3 on the path"

# ---- a python3 without the package, and one without what it needs; the second is the build's where numpy is there
for python in "${WB_PYTHON:-}" python3 /usr/bin/python3 ''; do
    [ -n "$python" ] || continue
    "$python" -c 'import numpy' 2>/dev/null && break
done
if [ -n "$python" ] && [ -z "${WB_SANITIZE:-}" ] && [ -e "$build/python/waybill/tokenize.py" ]; then
    mkdir "$scratch/bin" && ln -s "$(command -v "$python")" "$scratch/bin/python3"
    cd "$scratch" || exit 1
    tokenize() { env PATH="$scratch/bin:$PATH" PYTHONPATH="$1" PYTHONDONTWRITEBYTECODE=1 "$waybill" tokenize "${@:2}"; }
    if ! env -u PYTHONPATH "$python" -c 'import waybill' 2>/dev/null; then
        expect 1 tokenize "$scratch" --tokenizer . prompts.txt
        err_has "expected the Python package waybill in "
    fi
    mkdir -p hidden/tokenizers && echo 'raise ImportError("hidden")' >hidden/tokenizers/__init__.py
    echo '{}' >tokenizer.json
    expect 1 tokenize "$scratch/hidden:$build/python" --tokenizer . prompts.txt -o out.jsonl
    err_has "tokenizer.json: expected the Python package tokenizers to read it, found none"
    [ ! -e out.jsonl ] || fault "a file was written"
    expect 0 env PYTHONPATH="$build/python" PYTHONDONTWRITEBYTECODE=1 "$python" -m waybill.tokenize --help
    grep -oE '^  (-o OUT, |-h, )?--[a-z]+' "$scratch/out" | grep -oE -- '--[a-z]+' | grep -vx -- --help | sort >"$scratch/others"
    diff "$scratch/options" "$scratch/others" >"$scratch/err" || fault "the options of waybill tokenize and of waybill.tokenize differ"
fi
finish "waybill tokenize finds what it needs, or says what is missing"
