#!/usr/bin/env bash
# The tree is formatted as .clang-format says, by version 14: other versions differ in small things.
# usage: check_format.sh BUILD_DIR SOURCE_DIR
set -uo pipefail
cd "$2"
for clang_format in clang-format-14 clang-format ''; do
    [ -n "$clang_format" ] || { echo "skip: no clang-format 14 here"; exit 77; }
    "$clang_format" --version 2>/dev/null | grep -q 'version 14\.' && break
done
mapfile -t files < <(git ls-files '*.c' '*.h' '*.cu' 2>/dev/null)
[ ${#files[@]} -gt 0 ] || { echo "skip: not a git checkout"; exit 77; }
unformatted=0
# clang-format leaves long comments alone: a comment is broken where a reader would.
wide=$(awk 'length($0) > 110 { print "FAULT: " FILENAME ":" FNR ": " length($0) " columns, expected at most 110" }' "${files[@]}")
[ -z "$wide" ] || { echo "$wide"; unformatted=$((unformatted + 1)); }
for file in "${files[@]}"; do
    [ -e "$file" ] || continue # deleted, not yet committed
    "$clang_format" --dry-run -Werror "$file" 2>/dev/null || { echo "FAULT: $file"; unformatted=$((unformatted + 1)); }
done
[ $unformatted -eq 0 ] && echo "${#files[@]} files are formatted" || echo "run $clang_format -i on the files above"
exit $((unformatted > 0))
