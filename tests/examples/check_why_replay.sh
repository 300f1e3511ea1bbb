#!/usr/bin/env bash
# check_why_replay.sh - examples/06_why_replay.py on one seed and two steps: its batches are the same with and without replay, replay
# brings the gradient nearer to that of the model which generated, in bf16 and in 8 bits, and there is a plot.
# usage: check_why_replay.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/grpo_checks.sh"
for python in "${WB_PYTHON:-}" python3 /usr/bin/python3 ''; do
    [ -n "$python" ] || continue
    "$python" -c 'import numpy' 2>/dev/null && break
done
"$python" -c 1 2>/dev/null || { echo "skipped: no python3 with numpy"; exit 77; }
"$python" "$source/examples/06_why_replay.py" "$grpo" out --seeds 1 --steps 2 >table 2>log || { cat log table; fail "the example"; }
cat table
"$python" "$source/examples/06_why_replay.py" ./nothing out2 2>log && fail "a program that is not there"
grep -qx "./nothing: cannot be run: No such file or directory" log || { cat log; fail "a program that is not there is not named"; }
for rollout in bf16 "8 bits"; do
    awk -F'|' -v rollout=" $rollout " '$2 == rollout { seen = 1; if (!($6 + 0 > 0 && $6 + 0 < 0.8 * $4)) bad = 1 } END { exit bad || !seen }' table ||
        fail "$rollout: expected replay to take a fifth of the gradient's error at least"
done
[ "$(grep -c '^| .* of 1 |\|^| replay off ' table)" = 5 ] || fail "expected a row of each way"
"$python" -c 'import sys, xml.dom.minidom as x; sys.exit(len(x.parse("out/why_replay.svg").getElementsByTagName("line")) != 5 + 4 * 3)' ||
    fail "the plot"
echo "all well"
