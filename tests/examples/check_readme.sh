#!/usr/bin/env bash
# README.md followed to the letter: every line of its ```sh blocks is run, in order, in a fresh copy of the tree, by one user with
# an empty home; its Python and its C are tried too. (The quickstart's table: check_learning.sh.)
# usage: check_readme.sh BUILD_DIR SOURCE_DIR
set -uo pipefail
source=$2
[ -x "$1/bin/waybill-grpo" ] || { echo "skipped: waybill-grpo was not built (no MPI)"; exit 77; }
[ -z "${WB_SANITIZE:-}" ] || { echo "skipped: the README's build is not a sanitized one"; exit 77; }
git -C "$source" rev-parse 2>/dev/null || { echo "skipped: no git tree to copy"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*"; exit 1; }

# The tree as git knows it, with what is not committed yet.
mkdir "$work/waybill" "$work/home"
(cd "$source" && git ls-files -z | while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done |
    xargs -0 cp -P --parents -t "$work/waybill") || fail "copy"
cd "$work/waybill" || exit 1

# fenced LANGUAGE: the lines of the README's ```LANGUAGE blocks
fenced() { awk -v fence="\`\`\`$1" '$0 == "```" { inside = 0 } inside; $0 == fence { inside = 1 }' README.md; }

# One shell runs all lines, so that an exported variable stays; a line that fails ends it and is named. tests/ is run by tests/.
fenced sh | grep -v '^\(#.*\)\?$' | grep -v '^\./tests/' >"$work/lines"
[ "$(wc -l <"$work/lines")" -ge 12 ] || fail "README.md: expected its commands in \`\`\`sh blocks, found $(wc -l <"$work/lines") lines"
{
    echo 'set -e -o pipefail; trap '\''echo "THIS LINE OF README.md FAILED: $line"'\'' ERR'
    while IFS= read -r line; do printf 'line=%q\necho "\n\$ $line"\n%s\n' "$line" "$line"; done <"$work/lines"
} >"$work/readme.sh"
# Two ranks on a machine of one core, beside other tests.
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_orte_tmpdir_base=$work
HOME=$work/home bash "$work/readme.sh" >"$work/log" 2>&1 </dev/null || { tail -n 60 "$work/log"; fail "README.md, see above"; }

# The Python reader on what was just trained, against the command. The first python3 of PATH may be one without the system's packages.
for python in python3 /usr/bin/python3 ''; do
    [ -z "$python" ] || "$python" -c 'import msgpack, numpy, zstandard' 2>/dev/null && break
done
if [ -n "$python" ]; then
    fenced python >"$work/reader.py"
    [ -s "$work/reader.py" ] || fail "README.md: expected a \`\`\`python block"
    # A folder, a file of it, and a folder with the files of ranks that died: before their header, in it, and later.
    first=$(find build/quickstart/dump -name '*.wbr' | sort | head -n 1)
    mkdir "$work/cut" && : >"$work/cut/empty.wbr"
    head -c 20 "$first" >"$work/cut/header.wbr" && head -c "$(($(stat -c %s "$first") / 2))" "$first" >"$work/cut/record.wbr"
    for dump in build/quickstart/dump "$first" "$work/cut"; do
        "$python" "$work/reader.py" "$dump" >"$work/python.out" 2>"$work/python.err" || { cat "$work/python.err"; fail "the README's Python: $dump"; }
        records=$(build/bin/waybill cat "$dump" | wc -l)
        [ "$(wc -l <"$work/python.out")" = "$records" ] || fail "the README's Python: $dump: expected $records lines, found $(wc -l <"$work/python.out")"
    done
    for name in empty header; do grep -q "cut/$name.wbr: skipped" "$work/python.err" || fail "the README's Python does not name cut/$name.wbr"; done
else
    echo "the README's Python was not run: no python3 with msgpack, numpy and zstandard"
fi

# Functions that the C block calls are public ones.
fenced c | grep -o '\bwb_[a-z0-9_]*(' | sort -u | tr -d '(' | while read -r name; do
    grep -rqw --include='wb_*.h' "$name" "$work/home/waybill/include" || { echo "README.md: $name is not in the installed headers"; exit 1; }
done || fail "the README's C"
echo "README.md followed: $(wc -l <"$work/lines") lines"
